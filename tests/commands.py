"""Run a console command in this process."""

import sys
from typing import NamedTuple

import detect.cli
import synth.cli

MAINS = {"synth": synth.cli.main, "detect": detect.cli.main}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line on stderr."""
        return self.err.replace("\r", "\n").strip().splitlines()[-1]


class Command:
    """`run("synth", "train", ...)` as from a shell."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words) -> Ended:
        self.monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        self.capsys.readouterr()
        try:
            MAINS[words[0]]()
        except SystemExit as ended:
            return Ended(int(ended.code or 0), *self.capsys.readouterr())
        raise AssertionError("a command exits")

    def refused(self, *words) -> str:
        """The one line a mistake is answered with."""
        ended = self(*words)
        assert ended.code == 2, ended
        assert "Traceback" not in ended.err
        assert ended.out == ""
        return ended.line
