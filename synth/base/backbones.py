"""Frozen feature extractors: timm networks, cut after the last layer in use.

Layer k is the deepest feature map of stride 2^(k+1), whatever the family: layers 1, 2, 3, 4 have
strides 4, 8, 16, 32. For ResNets that is layer1 to layer4. Where all maps have one stride, as in a
ViT, layer k is the output of block k, from 1 on.
Shapes: N images, H x W pixels, C_k channels and stride s_k of layer k.
"""

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models._features import FeatureGetterNet  # timm exports it under no public name
from torch import Tensor, nn

from synth.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which timm network, which of its layers, and where its weights come from."""

    name: str
    """timm's name, such as resnet18 or wide_resnet50_2.racm_in1k."""
    layers: tuple[int, ...]
    """Layers in use, ascending: from 1 (stride 4) to 4 (stride 32), or blocks of a ViT."""
    weights: str = "hub"
    """"hub" (downloaded once by timm), "bundled" (of a name in BUNDLED), "random", or a file.

    A file is a safetensors file with timm's names.
    """
    seed: int = 0
    """Of random weights."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]; None takes timm's. A file trained with another one needs it here."""
    std: tuple[float, float, float] | None = None
    """As `mean`."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise(self.layers))
        if not self.layers or not ascending or self.layers[0] < 1:
            raise UserError(
                f"backbone layers: got {' '.join(map(str, self.layers)) or 'none'}; give one or "
                "more in ascending order from 1 on, where layer k has stride 2^(k+1), or is block "
                "k of a ViT"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not all(0 <= value <= 1 for value in values):
                raise UserError(
                    f"backbone {name}: got {' '.join(map(str, values))}; all three lie between 0 "
                    "and 1, as of images whose levels do"
                )
        if self.std is not None and 0 in self.std:
            raise UserError(f"backbone std: got {' '.join(map(str, self.std))}; none may be 0")


BUNDLED = {"resnet10t": Path(__file__).parent / "weights" / "resnet10t_textures.safetensors"}
"""Weights that come with the package, by timm's name; scripts/train_backbone.py makes them."""

DEFAULT_BACKBONE = BackboneConfig(name="resnet10t", layers=(1, 2, 3), weights="bundled")
"""Needs no download: for the demo and the check of a diffusion model's samples."""


_Pair = tuple[int, int]


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Make the initial weights of modules built inside depend on `seed` alone.

    torch's initialisers take no generator: they draw from the global one, put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Backbone(nn.Module):
    """A frozen network in evaluation mode (`train` keeps it there) that returns feature maps."""

    def __init__(
        self, net: FeatureGetterNet, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.channels: tuple[int, ...] = tuple(net.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(net.feature_info.reduction())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the statistics are frozen with the weights."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps [N, C_k, H/s_k, W/s_k], finest first.

        images: float32 [N, 3, H, W], RGB in [0, 1]. Features are float32 unless the caller
        opened an autocast region.
        """
        x = (images - self.mean) / self.std
        # Channels last takes 0.7 of the time on a CPU; the maps come out in that layout.
        return self.net(x.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def require_image_size(self, size: tuple[int, int]) -> None:
        """Raise UserError where the network cannot take images of this height and width."""
        try:
            self(torch.zeros(1, 3, *size, device=self.mean.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            if "memory" in str(error):
                raise
            height, width = size
            raise UserError(
                f"--size: the backbone cannot take images of {height} x {width} px "
                f"({str(error).partition(chr(10))[0]}); {self._way_out(size)}"
            ) from error

    def _way_out(self, size: tuple[int, int]) -> str:
        """Which sizes to give instead of one that is refused."""
        patches = next((m for m in self.modules() if isinstance(m, PatchEmbed)), None)
        if patches is None:
            return "give a larger --size"
        fixed, step = cast(_Pair | None, patches.img_size), cast(_Pair, patches.patch_size)
        if patches.strict_img_size and fixed is not None:
            return f"it takes --size {fixed[0]} {fixed[1]} alone"
        height, width = (max(1, round(a / b)) * b for a, b in zip(size, step, strict=True))
        return f"both must be multiples of the patches' {step[0]} px: try --size {height} {width}"

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and the normalisation, as 64 hexadecimal digits.

        Two cuts of one network differ; which of the layers within a cut are returned is not part.
        """
        sha = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the network, load its weights, cut it after the last layer in use and freeze it.

    Raises UserError for an unknown name, a layer the network lacks, weights that cannot be had
    from the hub, and a weights file that is missing, unreadable or does not fit.
    """
    full = _full_network(config)
    default = resolve_model_data_config(full)
    full_keys = set(full.state_dict())
    net = FeatureGetterNet(full, out_indices=_feature_indices(full, config))
    if config.weights == "random":
        _open_closed_blocks(net)
    elif config.weights == "bundled":
        _load_file(net, full_keys, _bundled_file(config.name))
    elif config.weights != "hub":
        _load_file(net, full_keys, Path(config.weights))
    return Backbone(net, config.mean or default["mean"], config.std or default["std"])


# --- the network ---------------------------------------------------------------------------


@cache
def spread_blocks(name: str, count: int) -> tuple[int, ...] | None:
    """Return `count` blocks of a ViT evenly over its depth: of twelve, three are 3, 6 and 9.

    None for networks whose layers differ in stride. Nothing is downloaded. Raises UserError as
    `build_backbone` for a name.
    """
    _require_known(name)
    with torch.device("meta"):
        strides = _strides(_create(name, False, 0), name)
    if len(set(strides)) > 1:
        return None
    places = (-(-k * len(strides) // (count + 1)) for k in range(1, count + 1))  # rounded up
    return tuple(dict.fromkeys(places))


def _require_known(name: str) -> None:
    names = timm.list_models() + timm.list_models(pretrained=True)  # without and with a tag
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise UserError(f"backbone name: got {name!r}, which timm does not know; {hint}")


def _full_network(config: BackboneConfig) -> nn.Module:
    _require_known(config.name)
    from_hub = config.weights == "hub"
    try:
        return _create(config.name, from_hub, config.seed)
    except (OSError, RuntimeError) as error:
        if not from_hub:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"backbone weights: those of {config.name!r} could not be downloaded ({reason}); "
            f"give --backbone-weights FILE{_where_to_find(config.name)}, or --backbone-weights "
            "random"
        ) from error


def _create(name: str, pretrained: bool, seed: int) -> nn.Module:
    """Make timm's network; a ViT interpolates its positions to images of other sizes."""
    with seeded_init(seed):
        try:
            return timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
        except TypeError:  # the option is a ViT's alone; nothing was drawn yet
            return timm.create_model(name, pretrained=pretrained)


def _where_to_find(name: str) -> str:
    """Which file holds a network's weights, as far as timm knows."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return ""
    repository = str(known.hf_hub_id)
    if repository.endswith("/"):
        tag = f".{known.tag}" if known.tag else ""
        repository = f"{repository}{known.architecture}{tag}"
    return f" with model.safetensors of https://huggingface.co/{repository}"


def _strides(full: nn.Module, name: str) -> list[int]:
    """Return the strides of all feature maps, the first one first."""
    if not hasattr(full, "forward_intermediates"):
        raise UserError(
            f"backbone name: {name!r} gives no feature maps; use a network such as "
            "resnet18, wide_resnet50_2, mobilenetv2_100, efficientnet_b4 or vit_tiny_patch16_224"
        )
    info = FeatureGetterNet(full, out_indices=(0,), prune=False).feature_info.info
    return [entry["reduction"] for entry in info]


def _feature_indices(full: nn.Module, config: BackboneConfig) -> tuple[int, ...]:
    """Return where in timm's list of feature maps the layers are."""
    strides = _strides(full, config.name)
    if len(set(strides)) == 1:
        layers = {number: number - 1 for number in range(1, len(strides) + 1)}
        described = f"it has blocks 1 to {len(strides)}, all of stride {strides[0]}"
    else:
        last_of_stride = {stride: index for index, stride in enumerate(strides)}
        layers = {k: last_of_stride[2 ** (k + 1)] for k in range(1, 8) if 2 ** (k + 1) in strides}
        described = ", ".join(f"{k} (stride {2 ** (k + 1)})" for k in layers)
        described = f"it has layers {described}"
    missing = [k for k in config.layers if k not in layers]
    if missing:
        raise UserError(f"backbone layers: {config.name!r} has no layer {missing[0]}; {described}")
    return tuple(layers[k] for k in config.layers)


@torch.no_grad()
def _open_closed_blocks(net: nn.Module) -> None:
    """Set zero BatchNorm gains to one.

    timm starts residual branches with a gain of zero. Training would open them; a frozen random
    network would be left with its skips alone.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.masked_fill_(module.weight == 0, 1.0)


# --- weights from a file -------------------------------------------------------------------


def _bundled_file(name: str) -> Path:
    if name not in BUNDLED:
        raise UserError(
            f"backbone weights: none are bundled for {name!r}, only for {', '.join(BUNDLED)}; "
            'use "hub", "random" or the path of a safetensors file'
        )
    return BUNDLED[name]


def _load_file(net: FeatureGetterNet, full_keys: set[str], path: Path) -> None:
    """Load every weight of the cut network; only weights of the part cut off may be left over."""
    weights = _read_file(path)
    wanted = net.model.state_dict()
    missing = [key for key in wanted if key not in weights]
    foreign = [key for key in weights if key not in full_keys]
    misshapen = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    for fault, keys in (("lacks", missing), ("has unknown", foreign), ("misshapes", misshapen)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"backbone weights: {path} {fault} {', '.join(keys[:3])}{more}; "
                "give a safetensors file with timm's names for this network"
            )
    net.model.load_state_dict({key: weights[key] for key in wanted}, strict=True)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f'backbone weights: got {path}, which is not a file; allowed are "hub", "bundled", '
            '"random" or the path of a safetensors file'
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"backbone weights: {path} is not a readable safetensors file ({error})"
        ) from error
