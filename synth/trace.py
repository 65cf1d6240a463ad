"""What a loss trace says of training that was done before."""

from pathlib import Path

from synth.errors import UserError
from synth.resume import TRACE_FILE


def require_no_fewer_steps(folder: Path, num_steps: int) -> None:
    """Raise UserError where `folder` has trained for more steps than are asked for now."""
    trace = folder / TRACE_FILE
    done = len(trace.read_text(encoding="utf-8").splitlines()) if trace.exists() else 0
    if done > num_steps:
        raise UserError(
            f"--num-steps: got {num_steps}, but {folder} has already trained for {done}; "
            f"give --num-steps {done}, or another --out"
        )
