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


def lines_for_dash(places: Sequence[Path]) -> list[str]:
    """What stdin lists where "-" is among the places; nothing else waits for it."""
    if Path("-") not in places:
        return []
    data = sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows writes lists
        try:
            return data.decode("utf-16").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"images: the list is no whole UTF-16 text ({error.reason})") from error
    return [os.fsdecode(line) for line in data.removeprefix(codecs.BOM_UTF8).splitlines()]
