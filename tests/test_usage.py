"""Command lines that cannot be parsed are answered in one line."""

import contextlib
import io

import pytest

import detect.cli
import synth.cli
from synth.base.errors import UserError
from synth.base.usage import options_of, parse

COMMANDS = {"synth": synth.cli.COMMANDS, "detect": detect.cli.COMMANDS}
TRAIN = "synth train --root photos --out model"


def parsed(line: str):
    name, *words = line.split()
    return parse(name, "About.", COMMANDS[name], words, True)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "300"])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("synth trian", "trian: no command; did you mean train? see synth --help"),
        ("synth", "no command given; there are: train, generate, blend, inspect, validate, "
         "import-textures, baseline, export, publish; see synth --help"),
        (f"{TRAIN} --rot", "--rot: no option of synth train; did you mean --rotate? see"),
        (f"{TRAIN} --num_stepz=3", "--num-stepz: no option of synth train; did you mean --num-s"),
        (f"{TRAIN} --qqq", "--qqq: no option of synth train; see synth train --help"),
        ("synth train --root photos", "--out: missing, synth train needs it; see synth train"),
        (f"{TRAIN} --num-steps 3.5", "--num-steps: got 3.5, needs a whole number; see synth train"),
        (f"{TRAIN} --num_steps=3.5", "--num-steps: got 3.5, needs a whole number; see synth train"),
        (f"{TRAIN} --learning-rate x", "--learning-rate: got x, needs a number; see synth train"),
        (f"{TRAIN} --size 64", "--size: got 64, needs HEIGHT WIDTH; see synth train --help"),
        (f"{TRAIN} --size 64 64 64", "--size: got 64 64 64, needs HEIGHT WIDTH; see synth"),
        (f"{TRAIN} --seed --rotate", "--seed: got nothing, needs a value; see synth train --help"),
        (f"{TRAIN} --preset bass", "--preset: got bass, allowed: tiny, small, base, adm; see"),
        (f"{TRAIN} more", "more: not understood by synth train; see synth train --help"),
        ("synth generate --model a --out b --precision no",
         "--precision: got no, allowed: auto, bf16, fp32; see synth generate --help"),
        ("synth baseline --root a --out b --method noise --size 64",
         "--size: got 64, needs 2 values; see synth baseline --help"),
        ("synth validate", "FOLDER: missing, synth validate needs it; see synth validate --help"),
        ("detect predict a --modle b --out c", "--modle: no option of detect predict; did you me"),
    ],
)  # fmt: skip
def test_one_line_names_the_word_and_what_is_allowed(monkeypatch, line, told, columns, encoding):
    monkeypatch.setenv("COLUMNS", columns)
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # the parser draws boxes to suit
    with pytest.raises(UserError) as caught, contextlib.redirect_stdout(output):
        parsed(line)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_what_is_parsed_is_run_later():
    work = parsed(f"{TRAIN} --num_steps 3 --size 32 64 --rotate")
    assert work.keywords["training"].num_steps == 3
    assert work.keywords["training"].size == (32, 64)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_known(name, capsys):
    """The names are read from the signatures, the help by the parser."""
    for each, command in COMMANDS[name].items():
        with pytest.raises(SystemExit) as ended:
            parsed(f"{name} {each} --help")
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert all(f" {option}" in shown for option in options_of(command))


def test_help_has_no_breaks_within_sentences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for line, told in (
        ("synth generate --help", "and compare. Its row says how, whatever strength, steps, seed"),
        ("synth publish --help", "SIA folders of one dataset and kind, or folders above them."),
        ("synth inspect --help", "how varied they are; copies of training images. Normal images"),
    ):
        with pytest.raises(SystemExit):
            parsed(line)
        assert told in capsys.readouterr().out
