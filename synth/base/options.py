"""Types of options that several commands share, and the checks of their values."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro

from synth.base.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]

OF_PRESET = "(default: the preset's)"
PresetInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OF_PRESET)]
PresetFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OF_PRESET)]
PresetStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint=OF_PRESET)]
PresetSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint=OF_PRESET),
]
Size = Annotated[tuple[int, int], tyro.conf.arg(metavar="HEIGHT WIDTH")]
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
OptionalFolder = Annotated[
    Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")
]
ShardOption = Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="(optional)")]
"""A share of work that can be divided."""

# Checks of options

LARGEST_SIDE = 16_384


def require_output(folder: Path, option: str = "--out") -> None:
    """Raise UserError before long work where no results can go; nothing is made for this."""
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: {folder} is no folder that can be written to ({error.strerror}); "
            "give another one"
        ) from error


LARGEST = 2**63 - 1
"""What files and generators of random numbers take."""


def require_positive(**options: float | None) -> None:
    """Raise UserError for the first option that is given and not greater than 0, or too large."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise UserError(f"{option_name(name)}: got {value}, must be greater than 0")
    require_within(**options)


def require_not_negative(**options: int | None) -> None:
    """Raise UserError for the first option that is given and below 0, or too large."""
    for name, value in options.items():
        if value is not None and value < 0:
            raise UserError(f"{option_name(name)}: got {value}, must be 0 or more")
    require_within(**options)


def require_within(**options: float | None) -> None:
    """Raise UserError for the first option that is given and above LARGEST."""
    for name, value in options.items():
        if value is not None and value > LARGEST:
            raise UserError(f"{option_name(name)}: got {value}, must be {LARGEST} or less")


def require_size(size: tuple[int, int] | None) -> None:
    """Raise UserError for a height or width below 8 pixels, or beyond any image of ours."""
    if size is None:
        return
    if min(size) < 8:
        raise UserError(f"--size: got {size[0]} {size[1]}, both must be 8 pixels or more")
    if max(size) > LARGEST_SIDE:
        raise UserError(
            f"--size: got {size[0]} {size[1]}, both must be {LARGEST_SIDE} pixels or less"
        )


def option_name(name: str) -> str:
    """`batch_size` as it is typed: `--batch-size`."""
    return "--" + name.replace("_", "-")


def parse_shard(text: str | None) -> tuple[int, int]:
    """Share (from 0) and number of shares. Raises UserError unless `text` is I/N, 1 <= I <= N."""
    if text is None:
        return 0, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--shard: got {text!r}, must be I/N, for instance 1/8")
    share, num_shares = map(int, parts)
    if not 1 <= share <= num_shares:
        raise UserError(
            f"--shard: got {text}, the shares are 1/{max(num_shares, 1)} to "
            f"{max(num_shares, 1)}/{max(num_shares, 1)}; number a job array from 1 on"
        )
    return share - 1, num_shares
