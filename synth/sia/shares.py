"""The option --shard of long commands whose work can be divided."""

from typing import Annotated

import tyro

from synth.base.errors import UserError

Shard = Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="(optional)")]


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
