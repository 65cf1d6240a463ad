import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import pytest
from commands import Command
from limits import killed_after
from rights import ordinary_rights

from synth.base.command import MORE_MEMORY, OUT_OF_MEMORY, progress_bar, run_command, warn
from synth.base.errors import DataWarning, ImageWarning, SharedError, UserError
from synth.base.options import require_not_negative, require_output, require_positive, require_size
from synth.data.layouts import READERS
from synth.data.options import DATASET_NAMES, DataOptions


def test_every_layout_is_on_offer():
    assert get_args(DATASET_NAMES) == tuple(READERS)


def run(monkeypatch, command, *arguments):
    def work(data: DataOptions, *, num: int = 1) -> None:
        """Work."""
        command(num)

    monkeypatch.setattr(sys, "argv", ["tool", "work", *arguments])
    return run_command("tool", "A tool.", {"work": work, "other": work})


def raising(error):
    def command(num):
        raise error

    return command


def test_a_refusal_is_printed_by_the_first_process_at_once_and_by_others_late(monkeypatch, capsys):
    """The launcher has ended the others by then, unless they gave up alone."""
    waits = []
    monkeypatch.setattr("synth.base.command.time.sleep", waits.append)
    refusal = raising(UserError("--num: got 0"))
    for rank, line, waited in (("0", "tool: --num: got 0\n", []),
                               ("1", "tool: --num: got 0 (process 1)\n", [5.0])):  # fmt: skip
        monkeypatch.setenv("RANK", rank)
        assert run(monkeypatch, refusal) == 2
        assert capsys.readouterr().err == line
        assert waits == waited
    assert run(monkeypatch, raising(SharedError("--num: got 0"))) == 2  # the first one tells
    assert run(monkeypatch, raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")
    assert waits == [5.0]


@pytest.mark.slow
def test_under_a_launcher_a_refusal_is_one_line():
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "detect")
    command = [sys.executable, *launch, "train", "--root", "nowhere", "--out", "nowhere/out"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    refusals = [line for line in ended.stderr.splitlines() if line.startswith("detect: ")]
    assert refusals == ["detect: nowhere: no such folder; check its name"], ended.stderr


def test_result_of_a_command(monkeypatch):
    got = []
    assert run(monkeypatch, got.append, "--num", "3") == 0
    assert got == [3]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--num: got 0, must be 1"), 2, "tool: --num: got 0, must be 1\n"),
        (
            KeyboardInterrupt(),
            130,
            "tool: interrupted; run the same command again to go on from what is saved\n",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            2,
            f"tool: out of memory; {MORE_MEMORY}\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            f"tool: out of memory; {MORE_MEMORY}\n",
        ),
        (MemoryError(), 2, f"tool: out of memory; {MORE_MEMORY}\n"),
    ],
)
def test_expected_ends_are_one_line(monkeypatch, capsys, error, code, line):
    assert run(monkeypatch, raising(error)) == code
    assert capsys.readouterr().err == line


def test_advice_on_memory_names_options_that_are_there(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run = Command(monkeypatch, capsys)
    for (name, command), advice in OUT_OF_MEMORY.items():
        options = re.findall(r"--[a-z-]+", advice)
        assert options
        text = run(name, command, "--help").out
        for option in options:
            assert re.search(rf"{option}[ ,]", text), (name, command, option)


def test_a_reader_that_has_enough_is_no_fault():
    code = (
        "import sys; from synth.base.command import run_command, say\n"
        "def many():\n"
        "    for number in range(100_000): say(str(number))\n"
        "sys.argv = ['tool', 'many']\n"
        "sys.exit(run_command('tool', 'A tool.', {'many': many, 'no': many}))"
    )
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        killed_after(process, 120),
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_what_to_know_of_the_data_is_one_line_on_stderr(monkeypatch, capsys):
    def command(num):
        warnings.warn("two images are copies", DataWarning, stacklevel=1)

    with warnings.catch_warnings():
        assert run(monkeypatch, command) == 0
    assert capsys.readouterr().err == "warning: two images are copies\n"


def test_what_was_said_is_not_said_again(monkeypatch, capsys):
    def command(num):
        for text in ("a: copies", "b: copies", "a: copies"):
            warnings.warn(text, DataWarning, stacklevel=1)
        for text in ("a.png: dark", "b.png: dark"):
            warnings.warn(text, ImageWarning, stacklevel=1)

    with warnings.catch_warnings():
        for _ in range(2):  # another command says it anew
            assert run(monkeypatch, command) == 0
            lines = capsys.readouterr().err.splitlines()
            assert lines == [f"warning: {x}" for x in ("a: copies", "b: copies", "a.png: dark")]


def test_paths_out_of_reach_are_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    for path, words in (
        (tmp_path / "closed/a.png", "Permission denied"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with ordinary_rights():
            assert run(monkeypatch, lambda num, path=path: path.is_dir()) == 2
        line = f"tool: {path}: {words}; check the path and its rights\n"
        assert capsys.readouterr().err == line
    with pytest.raises(FileNotFoundError):  # our own fault
        run(monkeypatch, lambda num: (tmp_path / "none").read_text())


@pytest.mark.parametrize("error", [RuntimeError("odd"), ValueError("odd"), ZeroDivisionError()])
def test_our_own_faults_are_not_hidden(monkeypatch, error):
    with pytest.raises(type(error)):
        run(monkeypatch, raising(error))


@pytest.mark.parametrize("arguments", [("--num", "x"), ("--dataset", "none"), ("--odd", "1")])
def test_wrong_usage_exits_with_2(monkeypatch, capsys, arguments):
    assert run(monkeypatch, raising(AssertionError()), *arguments) == 2
    ended = capsys.readouterr()
    assert ended.out == ""
    assert ended.err.startswith(f"tool: {arguments[0]}: ")
    assert ended.err.count("\n") == 1


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tool", "--version"])
    assert run_command("tool", "A tool.", {}) == 0
    assert capsys.readouterr().out.startswith("tool (siaforge) ")


def test_help_needs_no_torch():
    for name in ("synth", "detect"):
        code = f"import sys, {name}.cli; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


# Bars


def last_bar(text: str) -> str:
    return text.replace("\r", "\n").strip().splitlines()[-1]


def test_bar_counts_to_the_end(capsys):
    with progress_bar("work", "image") as update:
        for done in (16, 32, 40):
            update(done, 40, {"loss": 0.5, "part": 0.25})
    text = capsys.readouterr().err
    assert "work: 100%" in last_bar(text)
    assert "40/40" in last_bar(text)
    assert "loss=0.5000" in last_bar(text)
    assert "part" not in text
    assert "None" not in text


def test_bar_that_continues_begins_where_work_stopped(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter(range(100))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    with progress_bar("training", "step", continues=True) as update:
        update(991, 1000)
        update(992, 1000)
    bars = capsys.readouterr().err.replace("\r", "\n").split("\n")
    shown = [bar for bar in bars if "/1000" in bar]
    assert "991/1000" in shown[0]
    assert "99%" in shown[0]
    for bar in shown:  # a step takes a second or more on this clock
        rate = re.search(r"(\S+)step/s", bar)
        assert rate is not None
        assert rate[1] == "?" or float(rate[1]) <= 1


def test_bar_without_work_says_nothing_odd(capsys):
    with progress_bar("training", "step", continues=True):
        pass
    text = capsys.readouterr().err
    assert "0step" not in text
    assert "None" not in text


def test_error_inside_a_bar_begins_its_own_line(monkeypatch, capsys):
    def command(num):
        with progress_bar("work", "image") as update:
            update(1, 3)
            raise UserError("image.png: broken; remove it")

    assert run(monkeypatch, command) == 2
    assert capsys.readouterr().err.endswith("\ntool: image.png: broken; remove it\n")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_warning_inside_a_bar_begins_its_own_line(monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress_bar("work", "image") as update:
        warn("before the first")
        update(1, 3)
        warn("a.avi: cut")
        update(3, 3)
    warn("after")
    text = capsys.readouterr().err
    lines = text.split("\n")
    if is_terminal:  # a bar that was cleared by spaces is no more
        lines = [re.sub(r".*\r *\r", "", line) for line in lines]
    for line in ("before the first", "a.avi: cut", "after"):
        assert f"warning: {line}" in lines, text
    assert "3/3" in last_bar(text.removesuffix("warning: after\n"))


def test_other_processes_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress_bar("work", "image") as update:
        update(1, 1)
    assert capsys.readouterr().err == ""


# Checks


def test_checks_of_options():
    require_positive(num=1, rate=0.1, batch_size=None)
    require_not_negative(seed=0, workers=None)
    require_size((8, 300))
    with pytest.raises(UserError, match="--batch-size: got 0, must be greater than 0"):
        require_positive(num=1, batch_size=0)
    with pytest.raises(UserError, match="--learning-rate: got nan"):
        require_positive(learning_rate=float("nan"))
    with pytest.raises(UserError, match="--seed: got -1"):
        require_not_negative(seed=-1)
    with pytest.raises(UserError, match="--size: got 300 7"):
        require_size((300, 7))


def test_output_must_be_a_folder(tmp_path):
    require_output(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []  # a command that is refused leaves no empty folder
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--out: .* is no folder that can be written to"):
            require_output(path)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "detect", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("detect: standard output: cannot be written (No space left")
    assert len(ended.stderr.splitlines()) == 1


def test_numbers_have_an_upper_bound():
    for check in (require_positive, require_not_negative):
        check(seed=2**63 - 1)
        with pytest.raises(UserError, match=f"--seed: got {2**63}, must be {2**63 - 1} or less"):
            check(seed=2**63)
