"""The folder that a training works in, alone, on one process or on several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from synth.base.claims import claim_folder
from synth.base.errors import SharedError, UserError
from synth.base.files import read_json, reading
from synth.base.locks import sole_user
from synth.base.options import Precision
from synth.base.resume import CONFIG_FILE, STATE_FILE, TRACE_FILE, WITHOUT_TRACE

T = TypeVar("T")


@contextmanager
def run_folder(
    accelerator: Accelerator,
    out: Path,
    about: Mapping[str, Any],
    *,
    work: Path,
    num_steps: int,
    made: str = STATE_FILE,
    upgraded: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> Iterator[bool]:
    """Keep other commands out of `out` for a while and mark it as made with the configuration.

    work: the folder of the training's state. made: the first file that is made in it. upgraded: as
    `claim_folder`. Yields whether earlier work goes on. Raises
    UserError, on all processes, where another command is at work, for a folder of another
    configuration, and where it has done more than `num_steps`.
    """
    with ExitStack() as stack:

        def claim() -> bool:
            stack.enter_context(sole_user(out))
            goes_on = claim_folder(out, about, CONFIG_FILE, work / made, upgraded)
            require_no_fewer_steps(work, num_steps)
            return goes_on

        yield agreed(accelerator, claim)


def agreed(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the first process decides, on all of them; a refusal of its is raised by all.

    The others would wait for a process that has given up. All call it together.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise (UserError if accelerator.is_main_process else SharedError)(outcome[1])
    return outcome[0]


def saved_precision(out: Path, asked: Precision, fields: Sequence[str]) -> Precision:
    """What to compute in: a run that goes on keeps its own arithmetic where "auto" is asked for.

    fields: where the folder's config.json has it, from the outside in.
    """
    if asked != "auto" or not (out / CONFIG_FILE).exists():
        return asked
    value: Any = read_json(out / CONFIG_FILE)
    with reading(out / CONFIG_FILE, "give another --out"):
        for field in fields:
            value = value.get(field, {})
    return value or "auto"


def num_steps_done(folder: Path) -> int:
    """How many steps the training with its state in `folder` has done; 0 where there is none."""
    trace = folder / TRACE_FILE
    if not trace.exists():
        return 0
    with reading(trace, WITHOUT_TRACE):
        return trace.read_bytes().count(b"\n")


def require_no_fewer_steps(folder: Path, num_steps: int) -> None:
    """Raise UserError where `folder` has trained for more steps than are asked for now."""
    done = num_steps_done(folder)
    if done > num_steps:
        raise UserError(
            f"--num-steps: got {num_steps}, but {folder} has already trained for {done}; "
            f"give --num-steps {done}, or another --out"
        )
