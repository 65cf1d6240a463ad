"""Weights that a training starts from: a diffusers folder, a model on the Hub, an ADM checkpoint.

The network is then built in the source's shape. What still does not fit (colour channels, category
embeddings) starts at random and is listed; nothing is skipped in silence.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from synth.base.errors import UserError
from synth.base.files import DAMAGE, file_digest, read_json, reading
from synth.diffusion.adm import read_adm
from synth.diffusion.config import UNetConfig
from synth.diffusion.ddpm import STYLES, build_unet, unet_arguments
from synth.diffusion.hub_download import download_unet
from synth.diffusion.model import AS_SAVED
from synth.diffusion.prediction import PredictionKind

CONFIG_NAME = "config.json"
WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ANY_VALUE = {"sample_size", "in_channels", "out_channels", "num_class_embeds", "dropout"}
"""Arguments of UNet2DModel that may differ: they are ours to choose, or leave weights alone."""


PREDICTION_TYPES: dict[str, PredictionKind] = {"epsilon": "epsilon", "v_prediction": "v"}
"""Those of diffusers' schedulers that a network of ours can have."""


class Source(NamedTuple):
    """Weights to start from, float32, by diffusers' names; `unet` is their network's shape.

    `digest` is of the file that they are from.
    """

    name: str
    unet: UNetConfig
    weights: Mapping[str, Tensor]
    digest: str


class Fit(NamedTuple):
    """What of a source a network takes.

    widened: the source predicts no variance; its rows of the last convolution are added as a new
    network has them. fresh: tensors of the network that stay random. unused: tensors of the source
    without a place. Both with their shapes.
    """

    source: Source
    weights: Mapping[str, Tensor]
    widened: bool
    fresh: list[str]
    unused: list[str]

    @property
    def summary(self) -> str:
        """What fits and what does not, in one line."""
        parts = [f"starting from {self.source.name}: {len(self.weights)} tensors fit"]
        if self.widened:
            parts.append("conv_out is widened for the learned variance, which the source lacks")
        parts += [f"at random: {', '.join(self.fresh)}"] * bool(self.fresh)
        parts += [f"not used: {', '.join(self.unused)}"] * bool(self.unused)
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For the model's config.json."""
        return {
            "source": self.source.name,
            "digest": self.source.digest,
            "widened": self.widened,
            "fresh": self.fresh,
            "unused": self.unused,
        }


# Reading


def load_source(text: str) -> Source:
    """Read weights from a diffusers folder, an ADM .pt file, or a Hub id such as org/name.

    Raises UserError for what is none of them, does not exist, needs a token or cannot be reached,
    and for a network that ours cannot be.
    """
    path = Path(text)
    if path.is_file():
        unet, weights = read_adm(path)
        return checked(Source(path.name, unet, weights, file_digest(path)[:16]))
    if path.is_dir():
        source = read_folder(unet_folder(path), path.resolve().name)
        return source._replace(unet=replace(source.unet, prediction=predicted(path, source.name)))
    if HUB_ID.fullmatch(text):
        return read_folder(download_unet(text, CONFIG_NAME, WEIGHT_NAMES), text)
    raise UserError(
        f"--init-from: no file or folder {text!r}; give a diffusers folder, an ADM .pt file, or a "
        "Hub id such as google/ddpm-cat-256"
    )


def unet_folder(folder: Path) -> Path:
    """The folder of the network within a pipeline's. Raises UserError where there is none."""
    for candidate in (folder / "unet", folder):
        if (candidate / CONFIG_NAME).is_file() and any(
            (candidate / name).is_file() for name in WEIGHT_NAMES
        ):
            return candidate
    raise UserError(
        f"{folder}: no diffusers network (unet/{CONFIG_NAME} and unet/{WEIGHT_NAMES[0]}, or the "
        "same without unet/); give the folder of a pipeline or of its unet"
    )


def predicted(folder: Path, name: str) -> PredictionKind:
    """What the network of a pipeline's folder predicts, or of one of our models.

    Raises UserError for what ours cannot predict.
    """
    ours, theirs = folder / CONFIG_NAME, folder / "scheduler" / "scheduler_config.json"
    if ours.is_file():
        train = read_json(ours).get("train")
        if isinstance(train, dict):
            with reading(ours, AS_SAVED):
                return UNetConfig.from_json(train["unet"]).predicted.kind
    kind = read_json(theirs).get("prediction_type", "epsilon") if theirs.is_file() else "epsilon"
    if not isinstance(kind, str) or kind not in PREDICTION_TYPES:
        raise UserError(
            f"{name}: its network predicts {kind!r}; allowed are {', '.join(PREDICTION_TYPES)}: "
            "choose another model"
        )
    return PREDICTION_TYPES[kind]


def read_folder(folder: Path, name: str) -> Source:
    """Read a network in diffusers' format, strictly."""
    path, cure = folder / CONFIG_NAME, "download it again"
    config = read_json(path, cure)
    try:
        unet = shape_of(config, name)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: damaged ({error}); {cure}") from error
    weights_path = next(folder / file for file in WEIGHT_NAMES if (folder / file).is_file())
    try:
        loaded, report = UNet2DModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
        )
    except (OSError, SafetensorError, *DAMAGE) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:120]
        raise UserError(f"{weights_path}: damaged ({reason}); download it again") from error
    faults = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if faults:
        raise UserError(
            f"{weights_path}: does not fit its own {CONFIG_NAME} ({len(faults)} tensors, the "
            f"first: {faults[0]}); download both again"
        )
    weights = {key: value.float() for key, value in loaded.state_dict().items()}
    return Source(name, unet, weights, file_digest(weights_path)[:16])


def shape_of(config: Mapping[str, Any], name: str) -> UNetConfig:
    """The shape of a network from diffusers' config.json.

    Raises UserError for a network that none of STYLES describes, with what differs.
    """
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(
            f"{name}: its network is a {kind}; --init-from needs an unconditional pixel network, "
            "a UNet2DModel, such as google/ddpm-cat-256"
        )
    signature = inspect.signature(UNet2DModel.__init__).parameters
    theirs = {
        key: as_tuple(config.get(key, parameter.default))
        for key, parameter in signature.items()
        if key != "self"
    }
    C, outputs = theirs["in_channels"], theirs["out_channels"]
    if C not in (1, 3) or outputs not in (C, 2 * C):
        raise UserError(
            f"{name}: got {C} channels in and {outputs} out, allowed are 1 or 3 in and the same or "
            "twice as many out; latent networks do not draw images by themselves"
        )
    attended = [n for n, kind in enumerate(theirs["down_block_types"]) if "Attn" in kind]
    differences: list[str] = []
    for style in STYLES:
        unet = UNetConfig(
            image_size=(256, 256),
            num_channels=C,
            block_channels=theirs["block_out_channels"],
            layers_per_block=theirs["layers_per_block"],
            attention_levels=tuple(attended),
            head_channels=theirs["attention_head_dim"],
            norm_groups=theirs["norm_num_groups"],
            style=style,
        )
        ours = {key: parameter.default for key, parameter in signature.items()}
        ours |= unet_arguments(unet)
        if style != "adm" and theirs["attn_norm_num_groups"] == unet.norm_groups:
            ours["attn_norm_num_groups"] = unet.norm_groups  # what None means there
        found = [
            f"{key} {value!r}, ours {ours[key]!r}"
            for key, value in theirs.items()
            if key not in ANY_VALUE and value != as_tuple(ours[key])
        ]
        if not found:
            return unet
        differences = found if not differences else min(differences, found, key=len)
    raise UserError(
        f"{name}: a network of another kind ({'; '.join(differences[:3])}); known kinds are "
        f"{', '.join(STYLES)}: choose another model"
    )


def as_tuple(value: object) -> Any:
    """Lists of JSON as the tuples that they are in Python."""
    return tuple(value) if isinstance(value, list) else value


def checked(source: Source) -> Source:
    """Raise UserError unless the weights are all that a network of their shape has."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_unet(source.unet).state_dict().items()}
    wrong = [
        name
        for name, shape in shapes.items()
        if name not in source.weights
        or (source.weights[name].shape != shape and not name.startswith("conv_out."))
    ]
    if wrong:
        raise UserError(
            f"{source.name}: {len(wrong)} tensors are missing or of another shape, the first: "
            f"{wrong[0]}; download it again"
        )
    return source


# Fitting


def fit_source(source: Source, config: UNetConfig) -> Fit:
    """Sort a source's weights into those that the network of `config` takes, and the others."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_unet(config).state_dict().items()}
    weights = dict(source.weights)
    C = config.num_channels
    widened = source.unet.num_channels == C and len(weights["conv_out.bias"]) == C
    if widened:
        weight, bias = weights["conv_out.weight"], weights["conv_out.bias"]
        weights["conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
        weights["conv_out.bias"] = torch.cat([bias, torch.full_like(bias, -1)])
    fits = {n: w for n, w in weights.items() if n in shapes and w.shape == shapes[n]}
    fresh = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in fits]
    unused = [f"{name} {list(w.shape)}" for name, w in weights.items() if name not in fits]
    return Fit(source, fits, widened, fresh, unused)
