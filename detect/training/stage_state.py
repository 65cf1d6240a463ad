"""One stage apart from the rest of its detector: what it trains, and what is saved of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detect.detector import Detector, Stage
from synth.base.errors import UserError
from synth.base.files import atomic_path, read_json, write_json
from synth.base.resume import STATE_FILE, TRACE_FILE

AFTER_FILE = "after.json"


@contextmanager
def alone(detector: Detector, stage: Stage) -> Iterator[None]:
    """Freeze everything but what the stage trains; all else is in evaluation mode."""
    own = set(stage.trained())
    others = [p for p in detector.parameters() if p.requires_grad and p not in own]
    detector.zero_grad()
    for parameter in others:
        parameter.requires_grad_(False)
    set_modes(detector, stage)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def set_modes(detector: Detector, stage: Stage) -> None:
    """Put the stage's modules in training mode and all others in evaluation mode."""
    detector.eval()
    for module in stage.modules:
        module.train()


class OwnState:
    """A stage's part of a detector's state: its parameters and the buffers of its modules."""

    def __init__(self, detector: Detector, stage: Stage) -> None:
        self.detector = detector
        buffers = [buffer for module in stage.modules for buffer in module.buffers()]
        own = {id(tensor) for tensor in (*stage.trained(), *buffers)}
        tensors = detector.state_dict(keep_vars=True)
        self.names = [name for name, tensor in tensors.items() if id(tensor) in own]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by their names in the detector."""
        tensors = self.detector.state_dict()
        return {name: tensors[name] for name in self.names}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Put tensors in place; others of the detector, which older states hold, are left out.

        Raises LookupError or RuntimeError for missing and for foreign tensors.
        """
        foreign = sorted(set(state) - set(self.detector.state_dict()))
        if foreign:
            raise LookupError(f"{foreign[0]} is no part of it")
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape:
                raise RuntimeError(f"{name} has another size")
            tensor.copy_(state[name])


def forget_if_outdated(work: Path, before: Sequence[Mapping[str, Any]]) -> bool:
    """Remove a stage's state that followed other earlier stages; whether there was one.

    Notes what it follows from now on.
    """
    path, wanted = work / AFTER_FILE, json.loads(json.dumps(before))
    if path.exists() and read_json(path).get("stages") == wanted:
        return False
    files = [work / STATE_FILE, work / TRACE_FILE]
    had_one = any(file.exists() for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    write_json(path, {"stages": wanted})
    return had_one


def save_trained(own: OwnState, path: Path) -> None:
    """Write a stage's part of the detector, as it is."""
    state = {name: tensor.contiguous() for name, tensor in own.state_dict().items()}
    with atomic_path(path) as partial:
        save_file(state, partial)


def load_trained(own: OwnState, path: Path) -> None:
    """Read what `save_trained` wrote. Raises UserError when it is damaged or of another model."""
    try:
        own.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: damaged ({reason}); delete {path.parent} and train again"
        ) from error
