"""The detector around a normalizing flow: features at several scales, likelihood, scores.

An image at S, S/2, S/4, ... goes through one layer of a frozen backbone; a flow of
`detect.methods.flow` learns how likely such features are. Source: CS-Flow (Rudolph et al., WACV
2022). Shapes: N images of H x W pixels; C channels on h_i x w_i cells at scale i, finest first; D
latents of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from detect.config import TrainedConfig, require_fields_positive
from detect.data.feature_cache import FeatureCache, stored_cache
from detect.data.material import Material
from detect.detector import ADAM, Batch, Detector, Scores, Stage
from detect.images import to_batch
from detect.methods.flow import ActNorm, Flow, negative_log_likelihood
from synth.base.backbones import Backbone, build_backbone, seeded_init
from synth.base.errors import UserError
from synth.base.run_folder import agreed
from synth.data.normals import spread
from synth.pictures import Images

T = TypeVar("T", bound="FlowDetector")

NUM_INITIAL = 16
"""Normal images that set the first ActNorm: a batch, spread over all of them."""
MAX_NORM, ADAM_EPS = 1.0, 1e-4
"""Of the gradients; of Adam. Source: CS-Flow's code."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(TrainedConfig, ABC):
    """What all flows share; a method adds the shape of its own."""

    hidden: int
    """Channels inside the couplings' networks."""
    num_scales: int = 3
    """Sizes that an image is looked at: its own, one half, one quarter, ..."""
    downscale: Literal["nearest", "area"] = "nearest"
    """How images get smaller: every second pixel, as CS-Flow's code does, or means."""
    map: Literal["fine", "sum", "product"] = "fine"
    """Which scales make the map: the finest (CS-Flow's code), the mean of all (its text), or their
    product."""
    weight_decay: float = 1e-5
    """Of Adam, on all parameters."""
    average: bool = True
    """Keep the mean of the weights over the steps; the papers keep the last step's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields_positive(hidden=self.hidden, num_scales=self.num_scales)
        if len(self.backbone.layers) != 1:
            raise UserError(
                f"--backbone-layers: got {' '.join(map(str, self.backbone.layers))}; a flow reads "
                "one layer, at several sizes of the image: give one"
            )

    @property
    def averages(self) -> bool:
        """As the configuration says."""
        return self.average

    @property
    def stage_steps(self) -> dict[str, int]:
        """The one stage."""
        return {"flow": self.num_steps}

    @abstractmethod
    def flow(self, channels: int) -> Flow:
        """Build the flow over features of C channels, with weights not yet seeded."""

    def for_data(self, backbone: Backbone, images: Sequence[Images]) -> Self:
        """As `TrainedConfig.for_data`.

        Raises UserError for a size that the scales cannot halve evenly, and for a layer whose
        channels are not two halves.
        """
        (C,), (stride,) = backbone.channels, backbone.strides
        multiple = stride * 2 ** (self.num_scales - 1)
        if any(side % multiple for side in self.image_size):
            height, width = self.image_size
            fits = (max(1, round(side / multiple)) * multiple for side in self.image_size)
            raise UserError(
                f"--size: got {height} {width}; {self.num_scales} scales of a layer of stride "
                f"{stride} need multiples of {multiple}: try {' '.join(map(str, fits))}"
            )
        if C % 2:
            raise UserError(
                f"--backbone-layers: {self.backbone.name} has {C} channels there; a flow splits "
                "them into halves: take a layer with an even number"
            )
        return super().for_data(backbone, images)


class FlowDetector(Detector):
    """Scores by the likelihood of features; backbone weights are part of the state."""

    pooled: ClassVar[bool] = False

    def __init__(self, config: FlowConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.cache: FeatureCache | None = None
        with seeded_init(config.seed):
            self.flow = config.flow(backbone.channels[0])

    @classmethod
    def from_state(cls, config: FlowConfig, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a saved model from its own state alone, strictly.

        Raises UserError when the state does not belong to the configuration.
        """
        backbone = build_backbone(replace(config.backbone, weights="random"))
        return cls(config, backbone).with_state(state)

    def stages(self) -> list[Stage]:
        """Return the one stage: the flow, on features that stay."""
        return [
            Stage(
                name="flow",
                num_steps=self.config.num_steps,
                modules=(self.flow,),
                loss=self.losses,
                lr=self.config.learning_rate,
                optimizer=partial(
                    ADAM,
                    eps=ADAM_EPS,
                    weight_decay=self.config.weight_decay,
                ),
                max_norm=MAX_NORM,
                average=self.config.averages,
            )
        ]

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the mean over the images of `negative_log_likelihood`; nothing is drawn."""
        if self.cache is None or batch.number is None:
            maps = self.frozen_features(batch.normal)
        else:
            maps = self.cache(batch.number, batch.normal, self.frozen_features)
        return {"nll": negative_log_likelihood(self.flow(maps)).mean()}

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1].

        With latents z, an image's score is the mean of z^2 / 2 over all D (no log |det|); a
        pixel's, that over the channels of its cell, bilinearly between cells.
        """
        latents = self.flow(self.features(images)).maps
        D = sum(z[0].numel() for z in latents)
        scores = torch.stack([z.square().flatten(1).sum(1) for z in latents]).sum(0) / (2 * D)
        size = images.shape[-2:]
        cells = [z.square().mean(1, keepdim=True) / 2 for z in latents]
        if self.config.map == "fine":
            cells = cells[:1]
        maps = torch.stack(
            [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in cells]
        )
        maps = maps.prod(0) if self.config.map == "product" else maps.mean(0)
        return Scores(scores, maps[:, 0])

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Return the layer's maps at every scale, float32 [N, C, h_i, w_i]."""
        found = []
        for i in range(self.config.num_scales):
            step = 2**i
            nearest = self.config.downscale == "nearest"
            scaled = images[..., ::step, ::step] if nearest else F.avg_pool2d(images, step)
            found += [x.float() for x in self.backbone(scaled)]
        return found

    def frozen_features(self, images: Tensor) -> list[Tensor]:
        """As `features`, in fp32 whatever the training computes in: cached or not, the same."""
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images)


def build_flow_detector(config: FlowConfig, material: Material[Any]) -> FlowDetector:
    """Build a flow that is ready to be trained."""
    return prepared_flow(FlowDetector(config, material.backbone), material)


def prepared_flow(detector: T, material: Material[Any]) -> T:
    """Compute the features of the normal images beforehand, and set ActNorm by some of them."""
    accelerator, images = material.accelerator, [*chain.from_iterable(material.images)]
    device, config = accelerator.device, detector.config
    detector.to(device)
    about = {
        "backbone": material.backbone.digest,
        "layer": config.backbone.layers[0],
        "num_scales": config.num_scales,
        "downscale": config.downscale,
        "device": device.type,
    }
    with material.bars("features of the normal images", "image") as update:

        def fill() -> FeatureCache:
            return stored_cache(images, detector.frozen_features, device, about, update)

        if accelerator.is_main_process:
            detector.cache = fill()
        agreed(accelerator, lambda: None)
        if not accelerator.is_main_process:
            detector.cache = fill()
    if any(isinstance(step, ActNorm) for step in detector.flow.steps):
        chosen = spread(len(images), NUM_INITIAL)
        batch = to_batch((images[n] for n in chosen), device)
        assert detector.cache is not None
        maps = detector.cache(torch.tensor(chosen), batch, detector.frozen_features)
        detector.flow.initialise(maps)
    return detector
