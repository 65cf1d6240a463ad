"""A trained detector on disk: config.json, model.safetensors, calibration.json.

Prediction needs nothing else. The calibration is written last: without it, training is unfinished.
"""

from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detect.calibration import Calibration
from detect.config import TrainedConfig
from detect.detector import Detector
from detect.methods import METHODS
from synth.base.errors import UserError
from synth.base.files import atomic_path, read_fault, read_json, reading, write_json

CONFIG_FILE, WEIGHTS_FILE, CALIBRATION_FILE = "config.json", "model.safetensors", "calibration.json"
AGAIN = "run its `detect train` command again"


class TrainedDetector(NamedTuple):
    """A detector ready to score; `config` says how it was made, except for its number of steps.

    image_size: height and width in pixels that images are resized to. by_category: the threshold of
    each category where there are several; `calibration` is for images of an unknown one.
    """

    detector: Detector
    config: Mapping[str, Any]
    num_steps: int
    image_size: tuple[int, int]
    calibration: Calibration
    by_category: Mapping[str, Calibration] = {}

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories it was trained on."""
        return tuple(self.config.get("categories", [self.config["category"]]))

    def calibration_for(self, category: str) -> Calibration:
        """The category's own threshold if it has one, else the common one."""
        return self.by_category.get(category, self.calibration)


def save_detector(
    folder: Path,
    detector: Detector,
    num_steps: int,
    calibration: Calibration,
    by_category: Mapping[str, Calibration] | None = None,
    *,
    half_weights: bool = False,
) -> None:
    """Write weights and calibration beside the config.json that the training wrote.

    by_category: for a detector of several categories; `calibration` is the common one.
    half_weights: as `rounded_to_half` has left them, in fp16.
    """
    (folder / CALIBRATION_FILE).unlink(missing_ok=True)  # never of other weights
    state = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    if half_weights:
        halved = {name: tensor.half() for name, tensor in detector.named_parameters()}
        state |= {name: tensor.detach().contiguous() for name, tensor in halved.items()}
    with atomic_path(folder / WEIGHTS_FILE) as partial:
        save_file(state, partial, {"num_steps": str(num_steps)})
    own = {name: each.to_json() for name, each in (by_category or {}).items()}
    together = {**calibration.to_json(), "categories": own} if own else calibration.to_json()
    write_json(folder / CALIBRATION_FILE, together)


@torch.no_grad()
def rounded_to_half(detector: Detector) -> None:
    """Round all parameters to fp16, in place; buffers, such as statistics, stay as they are.

    Raises UserError for one that fp16 cannot hold.
    """
    for name, parameter in detector.named_parameters():
        parameter.copy_(parameter.half())
        if not parameter.isfinite().all():
            raise UserError(f"--half-weights: {name} is too large for fp16; leave the option out")


def load_detector(folder: Path, device: torch.device) -> TrainedDetector:
    """Load what `detect train` wrote, strictly, in evaluation mode on `device`.

    Raises UserError when `folder` is no detector, of an unknown method, unfinished or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    method = METHODS.get(str(config.get("method")))
    if method is None:
        raise UserError(f"{folder}: not a detector; give the --out of `detect train`")
    if not (folder / CALIBRATION_FILE).exists():
        raise UserError(f"{folder}: training is unfinished; {AGAIN} to complete it")
    saved = read_json(folder / CALIBRATION_FILE, f"delete it and {AGAIN}")
    with reading(folder / CALIBRATION_FILE, f"delete it and {AGAIN}"):
        calibration = Calibration.from_json(saved)
        categories = saved.get("categories", {}).items()
        own = {name: Calibration.from_json(each) for name, each in categories}
    num_steps, state = read_weights(folder / WEIGHTS_FILE)
    with reading(folder / CONFIG_FILE, "train into another folder"):
        _ = config["dataset"], config["category"]  # whoever uses it asks for them
        recipe, about = method.recipe(), dict(config["detector"])
        if issubclass(recipe.config, TrainedConfig):
            about["num_steps"] = num_steps
        height, width = map(index, about["image_size"])
        detector = recipe.restore(recipe.config.from_json(about), state)
    detector.to(device).eval()
    return TrainedDetector(detector, config, num_steps, (height, width), calibration, own)


def read_weights(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The number of steps trained, and the state, on the CPU.

    Raises UserError for a file that is missing, cannot be read or is damaged.
    """
    try:
        with path.open("rb"):  # safetensors calls a file without rights missing, too
            pass
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return int(file.metadata()["num_steps"]), state
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {AGAIN}") from None
    except OSError as error:
        raise UserError(read_fault(path, error)) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged ({reason}); delete it and {AGAIN}") from error
