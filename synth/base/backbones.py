"""Frozen feature extractors: networks of timm and torchvision, cut after the last layer in use.

Layer k is the deepest feature map of stride 2^(k+1), whatever the family: layers 1, 2, 3, 4 have
strides 4, 8, 16, 32. For ResNets that is layer1 to layer4. Where all maps have one stride, as in a
ViT, layer k is the output of block k, from 1 on. Any other map has the name of its module, such as
`blocks.5` in timm's networks and `features.6` in torchvision's.
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
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models import create_feature_extractor
from timm.models._features import FeatureGetterNet  # timm exports it under no public name
from torch import Tensor, nn

from synth.base.backbone_weights import LOADERS, load_into, read_weights_file
from synth.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network, which of its layers, and where its weights come from."""

    name: str
    """timm's name, such as resnet18 or wide_resnet50_2.racm_in1k; torchvision's, such as
    efficientnet_b5, with its weights."""
    layers: tuple[int | str, ...]
    """Layers in use: from 1 (stride 4) to 4 (stride 32) in ascending order, blocks of a ViT, or
    names of modules."""
    weights: str = "hub"
    """"bundled" (of a name in BUNDLED), "hub" (timm's) or "torchvision" (both downloaded once),
    "random", or a file: safetensors or a state dict of torch, with the network's own names."""
    seed: int = 0
    """Of random weights."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]; None is the network's own. A file that was trained with another mean needs
    it here."""
    std: tuple[float, float, float] | None = None
    """As `mean`."""

    def __post_init__(self) -> None:
        numbers = [layer for layer in self.layers if isinstance(layer, int)]
        ascending = all(a < b for a, b in pairwise(numbers))
        repeated = len(set(self.layers)) < len(self.layers)
        if not self.layers or not ascending or repeated or min(numbers, default=1) < 1:
            raise UserError(
                f"backbone layers: got {' '.join(map(str, self.layers)) or 'none'}; give one or "
                "more in ascending order from 1 on, where layer k has stride 2^(k+1), or is block "
                "k of a ViT; or names of modules, each once"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not all(0 <= value <= 1 for value in values):
                raise UserError(
                    f"backbone {name}: got {' '.join(map(str, values))}; all three lie between 0 "
                    "and 1, as of images whose levels do"
                )
        if self.std is not None and 0 in self.std:
            raise UserError(f"backbone std: got {' '.join(map(str, self.std))}; none may be 0")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers where all have numbers. Raises UserError where one is a module's name."""
        numbers = tuple(layer for layer in self.layers if isinstance(layer, int))
        if len(numbers) < len(self.layers):
            raise UserError(
                f"backbone layers: got {' '.join(map(str, self.layers))}; this method needs "
                "numbers, such as 1 2 3"
            )
        return numbers


DEFAULT_BACKBONE = BackboneConfig(name="tf_efficientnet_lite0", layers=(1, 2, 3), weights="bundled")
"""ImageNet features without a download."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_Pair = tuple[int, int]
_Colour = tuple[float, float, float]
PROBED_PX = 128
"""Side of the image that channels and strides of named modules are read off."""


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
        self,
        net: nn.Module,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        """net: returns its maps as a list, of these channels and strides."""
        super().__init__()
        self.net, self.channels, self.strides = net, channels, strides
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
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

    Raises UserError for an unknown name, a layer the network lacks, weights that cannot be had,
    and a weights file that is missing, unreadable or does not fit.
    """
    full, mean, std = _full_network(config)
    full_keys = set(full.state_dict())
    if config.weights in LOADERS:
        full.load_state_dict(LOADERS[config.weights](config.name, full.state_dict()))
    net, channels, strides = _cut(full, config)
    cut = net.model
    if config.weights == "random":
        _open_closed_blocks(cut)
    elif config.weights not in LOADERS:
        path = Path(config.weights)
        load_into(cut, full_keys, read_weights_file(path), str(path))
    return Backbone(net, channels, strides, config.mean or mean, config.std or std)


# --- the network ---------------------------------------------------------------------------


@cache
def spread_blocks(name: str, count: int) -> tuple[int, ...] | None:
    """Return `count` blocks of a ViT evenly over its depth: of twelve, three are 3, 6 and 9.

    None for networks whose layers differ in stride. Nothing is downloaded. Raises UserError as
    `build_backbone` for a name.
    """
    _require_known(name)
    with torch.device("meta"):
        strides = _strides(_create(name, 0), name)
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


def _full_network(config: BackboneConfig) -> tuple[nn.Module, _Colour, _Colour]:
    """Make the whole network with random weights, and its mean and standard deviation."""
    if config.weights == "torchvision":
        return _torchvision_network(config), IMAGENET_MEAN, IMAGENET_STD
    _require_known(config.name)
    full = _create(config.name, config.seed)
    own = resolve_model_data_config(full)
    return full, own["mean"], own["std"]


def _torchvision_network(config: BackboneConfig) -> nn.Module:
    from torchvision import models

    if config.name not in models.list_models(module=models):
        close = difflib.get_close_matches(config.name, models.list_models(module=models), n=3)
        raise UserError(
            f"backbone name: got {config.name!r}, which torchvision does not know"
            + (f"; did you mean {', '.join(close)}?" if close else "")
        )
    with seeded_init(config.seed):
        return models.get_model(config.name, weights=None)


def _create(name: str, seed: int) -> nn.Module:
    """Make timm's network; a ViT interpolates its positions to images of other sizes."""
    with seeded_init(seed):
        try:
            return timm.create_model(name, dynamic_img_size=True)
        except TypeError:  # the option is a ViT's alone; nothing was drawn yet
            return timm.create_model(name)


def _cut(
    full: nn.Module, config: BackboneConfig
) -> tuple["FeatureGetterNet | NamedMaps", tuple[int, ...], tuple[int, ...]]:
    """Return a network that gives the layers' maps, with their channels and strides."""
    if all(isinstance(layer, int) for layer in config.layers):
        net = FeatureGetterNet(full, out_indices=_feature_indices(full, config))
        info = net.feature_info
        return net, tuple(info.channels()), tuple(info.reduction())
    net = NamedMaps(full, config)
    with torch.no_grad():
        maps = net.eval()(torch.zeros(1, 3, PROBED_PX, PROBED_PX))
    for layer, x in zip(config.layers, maps, strict=True):
        if x.ndim != 4:
            raise UserError(
                f"backbone layers: {layer} of {config.name!r} gives {list(x.shape[1:])}, not a map "
                "of channels, height and width; name another module"
            )
    return net, tuple(x.shape[1] for x in maps), tuple(PROBED_PX // x.shape[-1] for x in maps)


class NamedMaps(nn.Module):
    """A network traced up to the modules that are named; it keeps the whole one's state names."""

    def __init__(self, full: nn.Module, config: BackboneConfig) -> None:
        super().__init__()
        modules = dict(full.named_modules())
        named = [layer for layer in config.layers if isinstance(layer, str)]
        for layer in named:
            if layer not in modules:
                close = difflib.get_close_matches(layer, modules, n=3)
                hint = f"; did you mean {', '.join(close)}?" if close else ""
                raise UserError(f"backbone layers: {config.name!r} has no module {layer!r}{hint}")
        if len(named) < len(config.layers):
            raise UserError(
                f"backbone layers: got {' '.join(map(str, config.layers))}; give numbers alone or "
                "names alone"
            )
        self.layers = named
        self.model = create_feature_extractor(full, {layer: layer for layer in named})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps in the order of the layers."""
        maps = self.model(x)
        return [maps[layer] for layer in self.layers]


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
    numbers = [k for k in config.layers if isinstance(k, int)]
    missing = [k for k in numbers if k not in layers]
    if missing:
        raise UserError(f"backbone layers: {config.name!r} has no layer {missing[0]}; {described}")
    return tuple(layers[k] for k in numbers)


@torch.no_grad()
def _open_closed_blocks(net: nn.Module) -> None:
    """Set zero BatchNorm gains to one.

    timm starts residual branches with a gain of zero. Training would open them; a frozen random
    network would be left with its skips alone.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.masked_fill_(module.weight == 0, 1.0)
