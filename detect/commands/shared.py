"""Options and checks that the commands which use a detector share."""

import codecs
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from synth.base.errors import UserError
from synth.base.options import option_name

Paths = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
]
Rate = Annotated[
    float | None,
    tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: the detector's own)"),
]
CategoryName = Annotated[
    str | None,
    tyro.conf.arg(metavar="STR", help_behavior_hint="(default: that of all together)"),
]
BatchSize = Annotated[
    int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: what is fast here)")
]


def require_share(**options: float | None) -> None:
    """Raise UserError for the first option that is given and not between 0 and 1."""
    for name, value in options.items():
        if value is not None and not 0 < value < 1:
            raise UserError(f"{option_name(name)}: got {value}, must lie between 0 and 1")


def with_listed(places: Sequence[Path]) -> list[Path]:
    """The places, those that stdin lists in place of "-"; nothing else waits for it.

    Raises UserError for a list that names nothing, or has what no path can have.
    """
    if Path("-") not in places:
        return list(places)
    lines = [Path(line) for line in listed_on_stdin() if line.strip()]
    if not lines:
        raise UserError("images: the list on standard input names none; give one name a line")
    if any("\0" in str(line) for line in lines):
        raise UserError(
            "images: the list on standard input has NUL bytes, which no name has; end names with "
            "newlines (find -print, not -print0)"
        )
    return [place for each in places for place in (lines if str(each) == "-" else [each])]


def listed_on_stdin() -> list[str]:
    """The lines of standard input, in UTF-8 or UTF-16; none where it is closed."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows writes lists
        try:
            return data.decode("utf-16").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"images: the list is no whole UTF-16 text ({error.reason})") from error
    return [os.fsdecode(line) for line in data.removeprefix(codecs.BOM_UTF8).splitlines()]
