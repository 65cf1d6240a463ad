"""A trained diffusion model on disk: a network in diffusers' format beside our config.json."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synth.base.errors import UserError
from synth.base.files import atomic_path, file_digest, read_json, reading, require_component
from synth.base.options import Precision
from synth.diffusion.config import UNetConfig
from synth.diffusion.ddpm import build_scheduler, build_unet, noise_schedule, unet_arguments
from synth.diffusion.prediction import STATISTICAL, Prediction, PredictionKind, implied_eps

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "unet/diffusion_pytorch_model.safetensors"
STAGING = ".model.partial"
AS_SAVED = "put the file back that was saved with the model"


class DiffusionModel(NamedTuple):
    """A network for one category, or for several. `digest` is that of its weights."""

    unet: UNet2DModel
    config: dict[str, Any]
    digest: str

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what it draws."""
        height, width = self.config["train"]["unet"]["image_size"]
        return height, width

    @property
    def num_channels(self) -> int:
        """1 for grey products, else 3."""
        return self.config["train"]["unet"]["num_channels"]

    @property
    def prediction(self) -> Prediction:
        """How images follow from the network's output."""
        return UNetConfig.from_json(self.config["train"]["unet"]).predicted

    @property
    def categories(self) -> list[str]:
        """What it draws; a conditional model's categories in the order of its labels."""
        return self.config.get("categories") or [self.config["category"]]

    @property
    def conditional(self) -> bool:
        """Whether it has to be told the category that it shall draw."""
        return self.config["train"]["unet"].get("num_categories") is not None

    def label(self, category: str | None) -> int | None:
        """The label that the network is given for `category`; None where it is not conditional.

        Raises UserError for a category that it does not know, and where it needs one.
        """
        if category is None and self.conditional:
            raise UserError(
                f"category: this model knows several; choose one of {', '.join(self.categories)}"
            )
        if category is not None and category not in self.categories:
            raise UserError(
                f"category: the model knows no {category!r}; it knows {', '.join(self.categories)}"
            )
        return self.categories.index(category) if category and self.conditional else None

    @property
    def precision(self) -> Precision:
        """The arithmetic it was trained in."""
        return self.config["train"]["precision"]


class EpsilonUNet(UNet2DModel):
    """A network of any prediction that answers eps and v, as diffusers' pipelines expect.

    `DDPMPipeline.from_pretrained` loads epsilon and v models as they are. The input of an edm or
    wiener model is scaled by t, which diffusers' schedulers do not do; this wrapper does both
    conversions:

        model = load_model(folder, torch.device("cpu"))
        pipeline = DDPMPipeline(EpsilonUNet.of(model), build_scheduler())
    """

    prediction = Prediction()

    @classmethod
    def of(cls, model: DiffusionModel) -> "EpsilonUNet":
        """Wrap a loaded model; its weights are shared, not copied."""
        with torch.device("meta"):
            wrapped = cls(**unet_arguments(UNetConfig.from_json(model.config["train"]["unet"])))
        wrapped.load_state_dict(model.unet.state_dict(), assign=True)
        wrapped.prediction = model.prediction
        return wrapped.eval()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor, ...]:
        """x_t, float32 [N, C, H, W], and its timestep to eps and v, [N, 2C, H, W]."""
        t = torch.as_tensor(timestep, device=sample.device).long().expand(len(sample))
        alpha_bar = noise_schedule().alpha_bar.to(sample.device)[t]
        x = self.prediction.input(sample, alpha_bar)
        (output,) = super().forward(x, timestep, class_labels, return_dict=False)
        F, v = output.chunk(2, dim=1)
        eps = implied_eps(sample, self.prediction.x_0(sample, F, alpha_bar), alpha_bar)
        both = torch.cat([eps, v], dim=1)
        return UNet2DOutput(sample=both) if return_dict else (both,)


def save_model(folder: Path, unet: UNet2DModel, kind: PredictionKind = "epsilon") -> None:
    """Write the network (averaged weights) and its scheduler as `DDPMPipeline` loads them.

    An edm or wiener model gets no model_index.json: a pipeline would load and draw noise
    (`EpsilonUNet`). The weights appear last and whole. Raises UserError when the disk is full.
    """
    staging = folder / STAGING
    with atomic_path(folder / WEIGHTS_FILE) as weights:
        shutil.rmtree(staging, ignore_errors=True)
        try:
            DDPMPipeline(unet=unet, scheduler=build_scheduler(kind)).save_pretrained(staging)
            if kind in STATISTICAL:
                (staging / "model_index.json").unlink()
            os.replace(staging / WEIGHTS_FILE, weights)
            shutil.copytree(staging, folder, dirs_exist_ok=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def load_model(folder: Path, device: torch.device) -> DiffusionModel:
    """Load what `synth train` wrote, for sampling on `device`.

    Raises UserError when `folder` is no such model, is unfinished or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    with reading(folder / CONFIG_FILE, AS_SAVED):
        try:
            _ = config["train"]["precision"]
            categories = config.get("categories") or [config["category"]]
            for name in (config["dataset"], *categories):
                require_component(f"{folder / CONFIG_FILE}: a category", name)
            shape = UNetConfig.from_json(config["train"]["unet"])
            if shape.num_categories not in (None, len(config.get("categories") or ())):
                raise LookupError("categories")
            _ = shape.predicted
            unet = build_unet(shape)
        except (LookupError, TypeError, AttributeError):
            raise UserError(
                f"{folder}: not a diffusion model; give the --out of `synth train`"
            ) from None
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        raise UserError(
            f"{folder}: training is unfinished; run its `synth train` command again to complete it"
        )
    digest = file_digest(weights)[:16]  # safetensors calls what it may not read missing
    try:
        unet.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{weights}: damaged ({str(error).splitlines()[0]}); "
            "delete it and run its `synth train` command again"
        ) from error
    unet.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    unet.eval().requires_grad_(False)
    return DiffusionModel(unet, config, digest)
