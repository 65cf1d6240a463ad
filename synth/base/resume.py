"""Training that survives `kill -9`: one atomic state file and a trace of losses.

A step function draws all it needs from (seed, step), so that a run continued from step k equals
one that never stopped.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from synth.base.errors import UserError
from synth.base.files import (
    atomic_path,
    file_digest,
    read_json_lines,
    reading,
    remove_partials,
    write_text,
)
from synth.base.memory import keeping_freed_memory

StepFunction = Callable[[int], Mapping[str, Tensor]]
"""Does optimiser step k; returns the loss terms to be logged, scalar tensors of this process."""
OnStep = Callable[[int, int, Mapping[str, float]], None]
"""Told (steps done, steps in all, loss terms) after every step."""


class Stateful(Protocol):
    """What has a state to save: a module, or the part of one that is trained."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Put tensors in place. Raises LookupError or RuntimeError when they do not fit."""
        ...


CHECKPOINT_SECONDS, SAVE_SHARE = 60.0, 20.0
CONFIG_FILE, STATE_FILE, TRACE_FILE = "config.json", "state.safetensors", "trace.jsonl"
WITHOUT_TRACE = "delete it to go on without the losses so far"


@keeping_freed_memory()
def run_steps(
    accelerator: Accelerator,
    step_function: StepFunction,
    *,
    folder: Path,
    num_steps: int,
    model: Stateful,
    optimizer: Optimizer,
    ema: EMAModel | None = None,
    checkpoint_steps: int | None = None,
    on_step: OnStep | None = None,
    start: int | None = None,
) -> None:
    """Run steps up to `num_steps`, going on from the state in `folder` when there is one.

    start: how many steps model, optimiser and averages have had as they are; None reads the state.

    The state is written every `checkpoint_steps`; None is every minute, or more rarely where
    writing would take more than a twentieth of the time. When it is written changes no result.
    Raises UserError when a loss is not finite (the last good state stays), the state does not fit
    the model or has gone beyond `num_steps`.
    """
    if accelerator.is_main_process:
        remove_partials(folder / STATE_FILE)
    if start is None:
        start = 0
        if (folder / STATE_FILE).exists():
            start = load_state(folder / STATE_FILE, model, optimizer, ema)
    trace = read_trace(folder / TRACE_FILE, start) if start else []
    if start > num_steps:
        raise UserError(
            f"num_steps: got {num_steps}, but {folder} has done {start} already; "
            "give that many or more, or another --out"
        )
    saved_at, save_seconds, saved_step = time.monotonic(), 0.0, start
    for step in range(start, num_steps):
        terms = step_function(step)
        row = {name: float(mean) for name, mean in reduce_terms(accelerator, terms).items()}
        require_finite_loss(row, step + 1, folder, saved_step)
        trace.append(json.dumps({"step": step + 1, **row}))
        done = step + 1
        if on_step is not None:  # before the state knows of it: a kill repeats rather than skips
            on_step(done, num_steps, row)
        if checkpoint_steps is None:
            wait = max(CHECKPOINT_SECONDS, SAVE_SHARE * save_seconds)
            due = time.monotonic() - saved_at >= wait
        else:
            due = done % checkpoint_steps == 0
        if accelerator.is_main_process and (due or done == num_steps):
            began = time.monotonic()
            write_text(folder / TRACE_FILE, "\n".join(trace) + "\n")
            save_state(folder / STATE_FILE, done, model, optimizer, ema)
            saved_at, saved_step = time.monotonic(), done
            save_seconds = saved_at - began
    accelerator.wait_for_everyone()


def require_finite_loss(row: Mapping[str, float], step: int, folder: Path, saved_step: int) -> None:
    """Raise UserError for a loss term or gradient norm that is NaN or infinite."""
    if all(map(math.isfinite, row.values())):
        return
    loss = ", ".join(f"{name} {mean:.4g}" for name, mean in row.items())
    kept = f"{folder} keeps the last good state, of step {saved_step}"
    raise UserError(
        f"the loss became {loss} at step {step}; "
        f"{kept if saved_step else 'nothing was saved yet'}: lower the learning rate, or use fp32, "
        "and run again into another --out"
    )


def reduce_terms(accelerator: Accelerator, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each loss term's mean over the processes."""
    stacked = torch.stack([term.detach().float() for term in terms.values()])
    reduced = accelerator.reduce(stacked, reduction="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(terms, reduced.cpu(), strict=True))


def read_trace(path: Path, last_step: int) -> list[str]:
    """The rows of a loss trace up to `last_step`, the state's; none when there is no trace.

    The trace is written before the state, so that it may know more, never less. Raises UserError
    when it is damaged.
    """
    with reading(path, WITHOUT_TRACE):
        rows = [*read_json_lines(path, WITHOUT_TRACE)] if path.exists() else []
        return [json.dumps(row) for row in rows if row["step"] <= last_step]


def save_state(
    path: Path, step: int, model: Stateful, optimizer: Optimizer, ema: EMAModel | None
) -> None:
    """Weights, averaged weights and optimiser moments after `step` steps, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(v) for name, v in moments.items()}
    metadata = {"step": str(step), "run": run_of(path.parent)}
    if ema is not None:
        tensors |= {f"ema.{index}": value for index, value in enumerate(ema.shadow_params)}
        metadata["ema_step"] = str(ema.optimization_step)
    with atomic_path(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)


def load_state(path: Path, model: Stateful, optimizer: Optimizer, ema: EMAModel | None) -> int:
    """Put a saved state back in place; the number of steps it has done.

    Raises UserError when the file is damaged, belongs to another model or to another run. States
    of before 0.2 do not say which run they are of.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(metadata["step"])
        if metadata.get("run", run_of(path.parent)) != run_of(path.parent):
            raise LookupError(f"of another run than {path.parent}")
        model.load_state_dict(with_prefix(tensors, "model."))
        load_moments(optimizer, with_prefix(tensors, "optimizer."))
        if ema is not None:
            for index, shadow in enumerate(ema.shadow_params):
                shadow.copy_(tensors[f"ema.{index}"])
            ema.optimization_step = int(metadata["ema_step"])
    except (SafetensorError, RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: damaged, or of another model or run ({reason}); delete it to train from the "
            "start"
        ) from error
    return step


def run_of(folder: Path) -> str:
    """A fingerprint of the configuration that `folder` or the one above it was claimed with."""
    for path in (folder / CONFIG_FILE, folder.parent / CONFIG_FILE):
        if path.is_file():
            return file_digest(path)[:16]
    return ""


def load_moments(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put moments named <parameter's index>.<moment> into the optimiser, laid out as its weights.

    Fused Adam goes through memory in order: a moment in another memory format than its weight
    would be applied to the wrong elements.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        moments.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
