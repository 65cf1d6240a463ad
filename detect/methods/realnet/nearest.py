"""RealNet whose reconstruction is the nearest normal patch: nothing anomalous can pass through.

AFS chooses channels, RRS selects residuals and the head segments them, as in RealNet; in place of
the networks G_k stands a coreset of normal patches, all layers in one descriptor (as PatchCore,
Roth et al., CVPR 2022): a network trained to reconstruct reconstructs defects too, and residuals
layer by layer find an excuse in each. The distance to the patch is evidence by itself, and the head
learns what to add to it: on anomalies of other kinds than it was trained on a head alone does worse
than the distance.
Shapes: N images of H x W pixels; h x w cells of the finest layer; C channels of all layers, of
which AFS keeps m; a bank of B patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.config import require_fields_positive
from detect.data.material import Material
from detect.detector import Batch, Detector, Scores, Stage
from detect.images import to_chw, to_unit
from detect.method import Recipe
from detect.methods.patch_nn import (
    BLUR_PX,
    PatchNNConfig,
    blurred,
    build_bank,
    nearest_patches,
    patches,
)
from detect.methods.realnet.config import COMPACT, TINY, RealNetConfig
from detect.methods.realnet.recipe import chosen_channels
from detect.methods.realnet.rrs import RRS, SegmentationHead
from detect.pooling import image_scores
from synth.base.backbones import Backbone, build_backbone, seeded_init
from synth.data.normals import spread
from synth.images import Progress
from synth.pictures import Image

NUM_SCALED = 64
"""Normal images, spread over all, whose residuals say what is usual."""
LEAST = 1e-2
"""Of a channel's usual residual over the mean of all: it may be constant over normal images."""
MOST_ADDED = 8.0
"""What the head adds to the evidence at most, in spreads of the normal log distances."""
TINY_SQUARE, NORMAL_MAD = 1e-12, 1.4826
"""Of a distance of 0; a Gaussian's standard deviation over its median absolute deviation."""
HEAD_SHARE = 0.5
"""Of what the head adds, in scores: less than in training, where anomalies are those it knows."""


@dataclass(frozen=True, kw_only=True)
class NearestConfig(RealNetConfig):
    """Everything that defines the detector and its training; fields of the networks are unused."""

    bank_size: int = 10_000
    """Patches of normal images to compare with, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields_positive(bank_size=self.bank_size)

    @property
    def stage_steps(self) -> dict[str, int]:
        """The head alone is trained."""
        return {"head": self.num_steps}


class NearestRealNet(Detector):
    """Nearest normal patch -> residuals of AFS's channels -> RRS -> segmentation.

    bank: float32 [B, C]. In training there are besides: owners, int64 [B], the training image of
    each patch, as an image must not find itself; known, int32 [images, h w], the nearest patches of
    all training images, found once. Of normal images, `usual`, float32 [C], is the mean
    squared residual, and `log_distance`, float32 [2], median and spread of the log distance.
    """

    def __init__(
        self, config: NearestConfig, backbone: Backbone, bank: Tensor, afs_index: Tensor
    ) -> None:
        """afs_index: int64 [m], AFS's channels of all layers, counted through."""
        super().__init__()
        self.config, self.backbone = config, backbone
        self.owners: Tensor | None = None
        self.known: Tensor | None = None
        self.bank: Tensor
        self.usual: Tensor
        self.log_distance: Tensor
        self.index: Tensor
        self.register_buffer("bank", bank.clone())
        self.register_buffer("usual", torch.ones(bank.shape[1]))
        self.register_buffer("log_distance", torch.tensor([0.0, 1.0]))
        self.register_buffer("index", afs_index.clone())
        with seeded_init(config.seed):
            self.rrs = RRS(len(afs_index), config.num_max, config.num_mean)
            self.head = SegmentationHead(
                config.num_max + config.num_mean,
                config.head_widths,
                separable=config.separable,
                activation=config.head_activation,
            )
        last = self.head.classify[-1]
        assert isinstance(last, nn.Conv2d)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # the distance alone, to begin with
        self.to_logit = nn.Parameter(torch.tensor([1.0, -3.0]))

    @classmethod
    def from_state(cls, config: NearestConfig, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a saved model from its own state alone, strictly.

        Raises UserError when the state does not belong to the configuration.
        """
        backbone = build_backbone(replace(config.backbone, weights="random"))
        blank = torch.zeros(sum(config.num_selected), dtype=torch.int64)
        return cls(config, backbone, torch.zeros_like(state["bank"]), blank).with_state(state)

    @property
    def facts(self) -> str:
        """How many patches, and how large the head is."""
        return f"{len(self.bank):,} normal patches, {super().facts}"

    def stages(self) -> list[Stage]:
        """Return the one stage: the head, on residuals that stay as they are."""
        return [
            Stage(
                name="head",
                num_steps=self.config.num_steps,
                modules=(self.rrs, self.head),
                parameters=(self.to_logit,),
                loss=self.losses,
                lr=self.config.learning_rate,
                max_norm=1.0,
                average=self.config.averages,
            )
        ]

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the pixelwise cross-entropy of k (evidence + added) + b and M, a scalar float32.

        k and b are learned; nothing is drawn at random.
        """
        H, W = batch.image.shape[-2:]
        squares = self.training_residuals(batch)
        evidence = sized(self.evidence(squares), (H, W))[:, 0]
        k, b = self.to_logit
        logits = k * (evidence + self.added(squares, (H, W))) + b
        loss = F.binary_cross_entropy_with_logits(logits, batch.mask.float())
        return {"segmentation": loss}

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1].

        Maps are the evidence, blurred as `patch_nn` does, and HEAD_SHARE of what the head adds; no
        probabilities, which would all be 1 for clear anomalies.
        """
        H, W = images.shape[-2:]
        squares = self.residuals(images)
        evidence = blurred(sized(self.evidence(squares), (H, W)), BLUR_PX * min(H, W) / 256)
        maps = evidence[:, 0] + HEAD_SHARE * self.added(squares, (H, W))
        return Scores(image_scores(maps), maps)

    # --- the steps -------------------------------------------------------------------------

    @torch.no_grad()
    def residuals(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return (phi - G)^2 of all channels, float32 [N, h, w, C].

        numbers: int64 [N], which training images they are; patches of their own are left out.
        """
        with torch.autocast(images.device.type, enabled=False):
            phi = patches(self.backbone, images)
            return (phi - self.bank[self.nearest(phi, numbers)]).square()

    def nearest(self, phi: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return which patch is nearest to each cell: [N, h, w, C] to int64 [N, h, w]."""
        N, h, w, _ = phi.shape
        asking = None
        if numbers is not None and self.owners is not None:
            asking = numbers.to(phi.device).repeat_interleave(h * w)
        return nearest_patches(phi.flatten(0, 2), self.bank, asking, self.owners).view(N, h, w)

    @torch.no_grad()
    def training_residuals(self, batch: Batch) -> Tensor:
        """As `residuals` of the batch's images; only what was blended is searched for anew."""
        numbers = batch.number
        if numbers is None or self.known is None:
            return self.residuals(batch.image, numbers)
        with torch.autocast(batch.image.device.type, enabled=False):
            phi = patches(self.backbone, batch.image)
            N, h, w, _ = phi.shape
            places = self.known[numbers].to(phi.device).long().view(N, h, w)
            blended = batch.mask.flatten(1).any(1).nonzero().flatten()
            if len(blended):
                places[blended] = self.nearest(phi[blended], numbers[blended.cpu()])
            return (phi - self.bank[places]).square()

    @torch.no_grad()
    def remember(self, images: Sequence[Image], progress: Progress | None = None) -> None:
        """Find the nearest patches of all training images, uint8 [H, W, 3], in their order."""
        found = []
        for number, image in enumerate(images):
            x = to_unit(to_chw(image)[None].to(self.bank.device))
            places = self.nearest(patches(self.backbone, x), torch.tensor([number]))
            found.append(places.flatten(1).int().cpu())
            if progress is not None:
                progress(number + 1, len(images))
        self.known = torch.cat(found)

    def evidence(self, squares: Tensor) -> Tensor:
        """Return the log distance in spreads from the normal median, float32 [N, 1, h, w]."""
        median, spread_of_normals = self.log_distance
        return ((log_distances(squares) - median) / spread_of_normals).unsqueeze(1)

    def added(self, squares: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what the head adds, float32 [N, *size], within MOST_ADDED.

        Squares reach over orders of magnitude: the head reads log (1 + E), E in units of `usual`.
        """
        E = (squares / self.usual).movedim(-1, 1).index_select(1, self.index)  # [N, m, h, w]
        logits = self.head(self.rrs(E.log1p()), size)
        return MOST_ADDED * ((logits[:, 1] - logits[:, 0]) / MOST_ADDED).tanh()

    @torch.no_grad()
    def measure_normals(self, images: Tensor, numbers: Tensor) -> None:
        """Set what is usual by normal images, each without its own patches."""
        pairs = zip(images, numbers, strict=True)
        squares = torch.cat([self.residuals(image[None], number[None]) for image, number in pairs])
        usual = squares.mean((0, 1, 2))
        self.usual.copy_(usual.clamp(min=max(LEAST * usual.mean().item(), TINY_SQUARE)))
        logs = log_distances(squares)
        median = logs.median()
        deviation = NORMAL_MAD * (logs - median).abs().median()
        self.log_distance.copy_(torch.stack([median, deviation.clamp(min=LEAST)]))


def log_distances(squares: Tensor) -> Tensor:
    """Logarithm of the Euclidean distance: [N, h, w, C] to [N, h, w]."""
    return squares.sum(-1).clamp(min=TINY_SQUARE).log() / 2


def sized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps [N, 1, h, w] bilinearly to a size."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def build_nearest(config: NearestConfig, material: Material[NearestConfig]) -> NearestRealNet:
    """Choose the channels, fill the bank, and measure what is usual."""
    afs = chosen_channels(config, material)
    starts = torch.tensor([0, *material.backbone.channels[:-1]]).cumsum(0)
    index = torch.cat([i + start for i, start in zip(afs.indices, starts, strict=True)])
    device = material.accelerator.device
    images = [*chain.from_iterable(material.images)]
    coreset = PatchNNConfig(
        image_size=config.image_size,
        backbone=config.backbone,
        seed=config.seed,
        bank_size=config.bank_size,
        choice="coreset",
    )
    with material.bars("filling the bank", "image") as update:
        bank, owners = build_bank(material.backbone, images, coreset, device, update)
    detector = NearestRealNet(config, material.backbone, bank, index).to(device)
    detector.owners = owners if len(images) > 1 else None
    with material.bars("nearest patches of the normal images", "image") as update:
        detector.remember(images, update)
    chosen = spread(len(images), NUM_SCALED)
    few = to_unit(torch.stack([to_chw(images[n]) for n in chosen]).to(device))
    detector.measure_normals(few, torch.tensor(chosen))
    return detector


def _preset(base: RealNetConfig, **changes: Any) -> NearestConfig:
    own = {"backbone": replace(base.backbone, layers=(2, 3)), **changes}
    return NearestConfig(**{**vars(base), **own})


_small = partial(_preset, num_selected=(128, 256), num_max=32, num_mean=32, separable=True)
PRESETS = {
    "tiny": _small(TINY, num_steps=300, learning_rate=3e-3),
    "compact": _small(COMPACT, num_steps=500),
}
RECIPE = Recipe(
    config=NearestConfig,
    presets=PRESETS,
    build=build_nearest,
    restore=NearestRealNet.from_state,
)
