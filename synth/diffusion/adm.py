"""OpenAI's ADM checkpoints as weights of our U-Net, name by name.

ADM: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021. Its blocks lie in
flat lists: with L residual blocks a level, each level takes L + 1 entries of input_blocks (the
first level the first convolution and L blocks, a later one the block that halves the image and L)
and L + 1 of output_blocks, of which the last also doubles the image.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, NamedTuple, cast
from zipfile import BadZipFile

import torch
from torch import Tensor

from synth.base.errors import UserError
from synth.diffusion.config import UNetConfig

HEAD_CHANNELS, NORM_GROUPS = 64, 32
OTHER_ATTENTION = {(192, 384, 576, 768): "64 px", (256, 256, 512, 768, 1024): "128 px"}
"""Published networks by their channels whose attention rows are ordered in other ways."""

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
WHOLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}


class AdmWeights(NamedTuple):
    """A network's shape (its image size is not known to the file) and its weights by our names."""

    unet: UNetConfig
    weights: dict[str, Tensor]


def read_adm(path: Path) -> AdmWeights:
    """Read a checkpoint such as 256x256_diffusion.pt; nothing in it is executed.

    RealNet's trainer keeps the same under "state_dict", its names behind "module." where it ran on
    several GPUs.

    Raises UserError for a file that is none, or of a network that ours cannot be.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, BadZipFile, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = (str(error) or "it is empty").splitlines()[0][:80]
        raise UserError(
            f"{path}: not a file of PyTorch weights ({reason}); "
            "--init-from takes an ADM .pt, a diffusers folder or a Hub id"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = {str(k).removeprefix("module."): v for k, v in state["state_dict"].items()}
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: no ADM checkpoint, which is a flat table of tensors")
    try:
        return convert_adm(cast(dict[str, Tensor], state))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def convert_adm(state: Mapping[str, Tensor]) -> AdmWeights:
    """Rename ADM's tensors; attention's interleaved rows become queries, keys and values.

    Raises UserError when a tensor is missing, or there is one without a place.
    """
    try:
        unet = adm_shape(state)
        places = block_names(unet)
        weights: dict[str, Tensor] = {}
        for name, tensor in state.items():
            block, kind = split_name(name, places)
            weights |= rename(places[block], kind, tensor.float())
    except (LookupError, RuntimeError, ZeroDivisionError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise UserError(
            f"no ADM U-Net ({reason}); download 256x256_diffusion.pt, or another of OpenAI's "
            "256 px networks, again"
        ) from error
    return AdmWeights(unet, weights)


def adm_shape(state: Mapping[str, Tensor]) -> UNetConfig:
    """The shape of the network that a checkpoint is of. Raises KeyError for another's."""
    blocks = [re.match(r"output_blocks\.(\d+)\.", name) for name in state]
    num_blocks = 1 + max((int(match[1]) for match in blocks if match), default=-1)
    doubling = [
        n
        for n in range(num_blocks)
        if any(f"output_blocks.{n}.{place}.in_layers.0.weight" in state for place in (1, 2))
    ]
    levels = len(doubling) + 1
    per_level = num_blocks // levels
    first = [1 + level * per_level for level in range(levels)]
    channels = tuple(state[f"input_blocks.{n}.0.out_layers.3.weight"].shape[0] for n in first)
    attended = [n for n in range(levels) if f"input_blocks.{first[n]}.1.qkv.weight" in state]
    if channels in OTHER_ATTENTION:
        raise UserError(
            f"the {OTHER_ATTENTION[channels]} network, whose attention is laid out in another way; "
            "take 256x256_diffusion.pt"
        )
    width = channels[0]
    if state["time_embed.0.weight"].shape != (4 * width, width):
        raise UserError(
            "a network whose time embedding does not follow from its first level, such as the "
            "512 px one; take 256x256_diffusion.pt"
        )
    in_channels = state["input_blocks.0.0.weight"].shape[1]
    if in_channels not in (1, 3):
        raise UserError(
            f"a network for {in_channels} channels, such as the upsamplers; "
            "take 256x256_diffusion.pt"
        )
    return UNetConfig(
        image_size=(256, 256),
        num_channels=cast(Literal[1, 3], in_channels),
        block_channels=channels,
        layers_per_block=per_level - 1,
        attention_levels=tuple(attended),
        head_channels=HEAD_CHANNELS,
        norm_groups=NORM_GROUPS,
    )


def block_names(unet: UNetConfig) -> dict[str, str]:
    """ADM's blocks and what they are called in diffusers."""
    levels, per_level = len(unet.block_channels), unet.layers_per_block + 1
    names = dict(WHOLE)
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for n in range(per_level):
            names[f"output_blocks.{level * per_level + n}.0"] = f"{up}.resnets.{n}"
        for n in range(per_level - 1):
            block = f"input_blocks.{1 + level * per_level + n}"
            names[f"{block}.0"] = f"{down}.resnets.{n}"
            if level in unet.attention_levels:
                names[f"{block}.1"] = f"{down}.attentions.{n}"
        attended = levels - 1 - level in unet.attention_levels
        if attended:
            for n in range(per_level):
                names[f"output_blocks.{level * per_level + n}.1"] = f"{up}.attentions.{n}"
        if level < levels - 1:
            names[f"input_blocks.{(level + 1) * per_level}.0"] = f"{down}.downsamplers.0"
            last = (level + 1) * per_level - 1
            names[f"output_blocks.{last}.{2 if attended else 1}"] = f"{up}.upsamplers.0"
    return names


def split_name(name: str, places: Mapping[str, str]) -> tuple[str, str]:
    """ADM's name as (block, what it is within). Raises KeyError for one without a place."""
    words = name.split(".")
    for count in range(len(words) - 1, 0, -1):
        block = ".".join(words[:count])
        if block in places:
            return block, ".".join(words[count:])
    raise KeyError(f"unexpected {name}")


def rename(place: str, kind: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block under diffusers' names; three where it is queries, keys and values."""
    layer, _, leaf = kind.rpartition(".")
    if not layer:
        return {f"{place}.{leaf}": tensor}
    if ".attentions." not in place:
        return {f"{place}.{RESIDUAL[layer]}.{leaf}": tensor}
    matrix = tensor.flatten(1) if leaf == "weight" and tensor.ndim > 1 else tensor
    if layer != "qkv":
        return {f"{place}.{ATTENTION[layer]}.{leaf}": matrix}
    # Rows are [head][query, key, value][HEAD_CHANNELS].
    heads = matrix.unflatten(0, (-1, 3, HEAD_CHANNELS))
    return {
        f"{place}.{target}.{leaf}": heads[:, n].flatten(0, 1).contiguous()
        for n, target in enumerate(("to_q", "to_k", "to_v"))
    }
