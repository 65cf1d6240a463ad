"""Files of ours that other hands changed, walked through the commands that read them.

Kinds: a name that leads out of the folder; JSON that is nested too deep, of another type, no UTF-8,
empty, a folder; numbers as text; a state of another run; streams that are closed, full or odd; a
disk that fills up.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import MAINS, Command
from disks import small_disk
from products import write_product
from tiny import write_model

from synth.base.errors import UserError
from synth.base.files import require_component
from synth.images import read_image, write_png
from synth.sia.reader import Item, SiaHeader, write_sia

LEADING_OUT = ("../victim/new", "..", "/victim", "a/b", "a\\b", "", "x" * 300, 7, None)
TRAIN = ("--backbone", "resnet10t", "--backbone-weights", "random", "--size", 32, 32)
TRAIN = ("--method", "realnet", *TRAIN)
TRAIN = (*TRAIN, "--batch-size", 4, "--precision", "fp32", "--source", "noise")


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A product, an SIA folder, a diffusion model and a detector; do not write to it."""
    folder = tmp_path_factory.mktemp("made")
    product = write_product(folder / "widget")
    images = {path.name: path for path in sorted(product.glob("train/good/*.png"))}
    picture = next(iter(images.values()))

    def items(indices):
        for index in indices:
            mask = read_image(picture)[..., 0] > 128
            yield Item(index, read_image(picture), mask, {"seed": 0, "strength": 0.1})

    def plain(indices):
        return (item._replace(mask=None) for item in items(indices))

    about = ("folder", "widget", {"method": "x"})
    write_sia(folder / "sia", SiaHeader("blended", *about), 2, items)
    write_sia(folder / "source", SiaHeader("source", *about), 2, plain)
    write_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        words = ["detect", "train", "--root", product, *TRAIN, "--num-steps", 2]
        patch.setattr(sys, "argv", [*map(str, words), "--out", str(folder / "detector")])
        with pytest.raises(SystemExit) as ended:
            MAINS["detect"]()
    assert ended.value.code == 0
    return folder


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy to spoil, deep enough that a path could leave it."""
    return Path(shutil.copytree(made, tmp_path / "outer" / "own"))


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "own" not in path.parts[len(folder.parts) :]}


def commands_on(own: Path) -> dict[str, list[tuple[object, ...]]]:
    """The commands that read a file of ours, by its path."""
    out, data = own / "out", ("--root", own / "widget")
    sia, model, detector = own / "sia", own / "model", own / "detector"
    of_sia = [
        ("synth", "export", sia, "--layout", "folder", *data, "--out", out),
        ("synth", "publish", sia, "--repo", "me/data", "--staging", out, "--dry-run"),
    ]
    of_detector = [
        ("detect", "evaluate", "--model", detector, *data, "--out", out),
        ("detect", "predict", own / "widget" / "train", "--model", detector, "--out", out),
        ("detect", "drift", own / "widget" / "train", "--model", detector, "--out", out),
        ("detect", "export", "--model", detector, "--format", "pt2", "--out", out),
    ]
    again = ("detect", "train", *TRAIN, *data, "--num-steps", 3, "--out", detector)
    source, once = ("--sia", own / "source", *data, "--out", out), ("--num-steps", 1)
    of_source = [
        ("synth", "blend", "--num", 1, *source),
        ("detect", "train", *TRAIN[:-1], "sia", *once, *source),
    ]
    return {
        "sia/sia.json": of_sia,
        "source/sia.json": of_source,
        "source/metadata.jsonl": of_source,
        "sia/metadata.jsonl": of_sia,
        "sia/shards/000.json": of_sia[:1],
        "model/config.json": [("synth", "generate", "--model", model, "--num", 1, "--out", out)],
        "detector/config.json": [*of_detector, again],
        "detector/calibration.json": of_detector,
        "detector/realnet/trace.jsonl": [again],
    }


DAMAGES = {
    "nested ten thousand deep": b"[" * 10_000,
    "objects nested ten thousand deep": b'{"a":' * 10_000,
    "a list": b"[]",
    "a number": b"7",
    "no UTF-8": b'{"category": "\xff\xfe"}',
    "half of it": b'{"category": "wid',
    "nothing in it": b"",
    "an empty object": b"{}",
}
FILES = tuple(commands_on(Path()))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [*DAMAGES, "a folder"])
def test_a_damaged_file_is_one_line(run, own, tmp_path, file, damage):
    path = own / file
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "nothing in it" and file.endswith("trace.jsonl"):
        return  # no losses so far
    else:
        path.write_bytes(DAMAGES[damage])
    before = tree(tmp_path)
    for words in commands_on(own)[file]:
        ended = run(*words)
        assert ended.code == 2, (words, ended)
        assert "Traceback" not in ended.err
        assert path.name in ended.line or str(path.parent) in ended.line, (words, ended.line)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_from_a_file_is_one_component(name):
    with pytest.raises(UserError, match=r"category is .*, must be the name of one folder"):
        require_component("category", name)


def test_names_of_any_other_kind_are_taken():
    for name in ("nut", "Schräglage", "a b", "...", "[x]", ".hidden", "x" * 255, "\udcff"):
        assert require_component("category", name) == name


@pytest.mark.parametrize("field", ["dataset", "category"])
@pytest.mark.parametrize("file", ["sia/sia.json", "model/config.json"])
def test_no_name_leads_out_of_the_output_folder(run, own, tmp_path, file, field):
    path = own / file
    values = json.loads(path.read_text())
    before = tree(tmp_path)
    for name in ("../../victim/new", "/victim", ".."):
        path.write_text(json.dumps(values | {field: name}))
        for words in commands_on(own)[file]:
            assert f"{field} is" in run.refused(*words) or name in run(*words).line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("field", ["file_name", "mask_file_name"])
def test_rows_name_their_own_files_alone(run, own, tmp_path, field):
    path = own / "sia/metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_png(tmp_path / "secret.png", np.zeros((8, 8, 3), np.uint8))
    rows[1][field] = "../../../secret.png"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in commands_on(own)["sia/metadata.jsonl"]:
        assert f"{field} of index 1 is '../../../secret.png'" in run.refused(*words)


@pytest.mark.parametrize(
    "change",
    [
        {"overlay": "../../keep.png"},
        {"mask": "/keep.png"},
        {"score": "0.5"},
        {"number": "1"},
        {"size": "7"},
        {"verdict": None},
    ],
)
def test_a_record_of_scores_with_odd_values_is_refused(run, own, tmp_path, change):
    (tmp_path / "keep.png").write_bytes(b"kept")
    words = commands_on(own)["detector/calibration.json"][1]
    assert run(*words).code == 0
    log = own / "out/scores.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    assert f"scores.jsonl: damaged (line 1: {next(iter(change))} is" in run.refused(*words)
    assert (tmp_path / "keep.png").exists()


def test_an_image_size_beyond_all_memory_is_refused(run, own):
    path = own / "detector/config.json"
    values = json.loads(path.read_text())
    values["detector"]["image_size"] = [10**9, 10**9]
    path.write_text(json.dumps(values))
    for words in commands_on(own)["detector/config.json"]:
        ended = run(*words)
        assert ended.code == 2, ended
        assert "Traceback" not in ended.err


def test_the_state_of_another_run_is_not_taken(run, own):
    again = commands_on(own)["detector/config.json"][-1]
    other = (*again[:-1], own / "other", "--seed", 1)
    assert run(*other).code == 0
    shutil.copy(own / "other/realnet/state.safetensors", own / "detector/realnet")
    line = run.refused(*again)
    assert "state.safetensors: damaged, or of another model or run" in line
    (own / "detector/realnet/state.safetensors").unlink()
    assert run(*again).code == 0


# Streams


def start(*words, cwd, close=(), **streams):
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        preexec_fn=lambda: [os.close(number) for number in close],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        timeout=300,
        **streams,
    )


ONE_CLOSED = [(0,), (1,), (2,)]


@pytest.mark.parametrize("close", [*ONE_CLOSED, (0, 1, 2)])
def test_closed_streams_end_no_check(own, close):
    words = ("synth", "validate", own / "sia")
    assert start(*words, cwd=own, close=close).returncode == 0
    (own / "sia/images/000/000001.png").unlink()
    assert start(*words, cwd=own, close=close).returncode == 2


@pytest.mark.parametrize(
    "close", [*(pytest.param(each, marks=pytest.mark.slow) for each in ONE_CLOSED), (0, 1, 2)]
)
def test_closed_streams_end_no_work(own, close):
    words = commands_on(own)["detector/calibration.json"][1]
    streams = {} if 2 in close else {"stderr": subprocess.PIPE}
    ended = start(*words, cwd=own, close=close, **streams)
    assert ended.returncode == 0, ended
    assert (own / "out/scores.csv").read_text().count("\n") > 1
    assert start(*words[:2], "nothing", *words[3:], cwd=own, close=close).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_remarks_that_cannot_be_written_and_letters_that_are_lacking_end_no_work(own, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    words = (*commands_on(own)["detector/calibration.json"][1][:-1], own / "Öl")
    with open("/dev/full", "w") as full:
        ended = start(*words, cwd=own, stdout=subprocess.PIPE, stderr=full)
    assert ended.returncode == 0
    assert b"\\xd6l/scores.csv" in ended.stdout


@pytest.mark.parametrize("listed", [b"widget/a\0widget/b\n", b"", b" \n\n"])
def test_a_list_that_names_nothing_is_refused(own, listed):
    words = commands_on(own)["detector/calibration.json"][1][3:]
    ended = start("detect", "predict", "-", *words, cwd=own, input=listed, capture_output=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"detect: images: the list on standard input")
    assert len(ended.stderr.splitlines()) == 1


def test_blank_lines_of_a_list_name_nothing(run, own, monkeypatch):
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n \nwidget/train\n")))
    words = commands_on(own)["detector/calibration.json"][1][3:]
    assert run("detect", "predict", "-", *words).code == 0


@pytest.mark.parametrize("kib", [0, 4, 16, 64, 96, 160, 256])
@pytest.mark.parametrize("work", ["evaluate", "predict", "drift", "train"])
def test_a_disk_that_fills_up_is_one_line(run, own, tmp_path, work, kib):
    of_detector = {words[1]: words for words in commands_on(own)["detector/config.json"]}
    with small_disk(tmp_path / "disk", kib) as disk:
        out = disk / "out" if kib else Path("/dev/full/out")
        ended = run(*of_detector[work][:-1], out)
        assert ended.code in (0, 2)
        assert "Traceback" not in ended.err
        if ended.code:
            assert "disk" in ended.line or "/dev/full" in ended.line, ended
            assert not [*disk.rglob("*.partial")]


def test_an_export_onto_a_full_disk_is_one_line(run, own, tmp_path):
    export = next(words for words in commands_on(own)["detector/config.json"] if "export" in words)
    with small_disk(tmp_path / "disk", 64) as disk:
        ended = run(*export[:-1], disk / "d.pt2")  # torch itself would abort the process
        assert ended.code == 2
        assert "d.pt2: not written, the disk is full" in ended.line
        assert not [*disk.iterdir()]
