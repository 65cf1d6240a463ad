"""A trained detector on disk: config.json, model.safetensors, calibration.json. Nothing else is needed to predict."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detect.calibration import Calibration
from detect.detector import Detector
from detect.realnet import RealNet, RealNetConfig
from synth.errors import UserError
from synth.files import atomic_path, read_json, write_json

CONFIG_FILE, WEIGHTS_FILE, CALIBRATION_FILE = "config.json", "model.safetensors", "calibration.json"

Rebuild = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Detector]
METHODS: dict[str, Rebuild] = {
    "realnet": lambda config, state: RealNet.from_state(RealNetConfig.from_json(config), state),
}


class TrainedDetector(NamedTuple):
    """A detector ready to score; `config` says how it came about."""

    detector: Detector
    config: Mapping[str, Any]
    calibration: Calibration

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to."""
        height, width = self.config["detector"]["image_size"]
        return height, width


def save_detector(folder: Path, detector: Detector, calibration: Calibration) -> None:
    """Write weights and calibration beside the config.json that the training wrote."""
    state = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as partial:
        save_file(state, partial)
    write_json(folder / CALIBRATION_FILE, calibration.to_json())


def load_detector(folder: Path, device: torch.device) -> TrainedDetector:
    """Load what `detect train` wrote, strictly, in evaluation mode on `device`.

    Raises UserError when `folder` is no detector, of an unknown method, unfinished or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    if config.get("method") not in METHODS:
        raise UserError(
            f"{folder}: method {config.get('method')!r} is none of {', '.join(METHODS)}; "
            "give the --out of `detect train`"
        )
    if not (folder / CALIBRATION_FILE).exists():
        raise UserError(
            f"{folder}: training is unfinished; run its `detect train` command again to complete it"
        )
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: damaged ({error}); delete it and run its `detect train` command again"
        ) from error
    detector = METHODS[config["method"]](config["detector"], state).to(device).eval()
    return TrainedDetector(
        detector, config, Calibration.from_json(read_json(folder / CALIBRATION_FILE))
    )
