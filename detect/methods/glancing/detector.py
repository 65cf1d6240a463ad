"""The detector: Local-Net, Global-Net, two heads, three stages, and dense scoring.

Shapes: N images of H x W pixels; n numbers describe a patch; K patches in question; R x S patches
in the grid.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.batch_norm import GlobalBatchNorm2d, whole_batch
from detect.config import TrainedConfig, require_fields_positive
from detect.data.material import Material
from detect.detector import ADAM, Batch, Detector, Scores, Stage
from detect.images import to_batch
from detect.method import Recipe
from detect.methods.glancing.global_net import WIDTHS, GlobalNet, around
from detect.methods.glancing.holes import Grid, Hidden, Hole, Mode
from detect.methods.glancing.local import (
    LAYERS,
    LocalNet,
    compactness,
    distillation,
    receptive_field,
)
from detect.methods.glancing.patches import grid_patches, random_patches, stained
from detect.methods.patch_nn import blurred
from detect.pooling import image_scores
from synth.base.backbones import DEFAULT_BACKBONE, Backbone, BackboneConfig, seeded_init
from synth.base.errors import UserError
from synth.base.seeding import generator as seeded
from synth.data.normals import spread
from synth.pictures import Images

NUM_TAUGHT = 64
"""Images, spread over all, whose patches say how large each of the teacher's numbers usually is."""
EXACT_BATCH = 16
"""Windows with a hole each that go through Global-Net together."""
LEAST = 1e-2
"""Of the spread of a teacher's number over the mean of all: some hardly ever change."""
TINY_SQUARE = 1e-12
"""Of a distance of 0."""


@dataclass(frozen=True, kw_only=True)
class GlancingConfig(TrainedConfig):
    """Everything that defines the detector and its training. What the paper does not give is ours.

    `backbone` is the teacher, ResNet-18 in the paper; nothing of it is left in the detector.
    `num_steps`, `batch_size` (images) and `learning_rate` are the last stage's.
    """

    patch: int = 33
    """Side of a patch in pixels: 17, 33 or 65, which choose Local-Net's layers."""
    num_features: int = 128
    """n: as in Uninformed Students, whose networks Local-Net's are."""
    stride: int = 8
    """Pixels between scored patches: that of Global-Net's cells."""
    mode: Mode = "lattice"
    """Which patches are hidden together: those of one hole (exact, as in the paper), or of many
    holes in a regular lattice. A detector is trained as it scores: what surrounds a patch looks the
    same."""
    patches_per_hole: int = 2
    """Along each axis; the paper has one. Four patches to a hole need a quarter of the passes."""
    period: int = 4
    """Of a lattice, in holes: with 2 patches to a hole a strip of 26 px stays visible between, as
    with 3 and a period of 3, which needs 9 passes rather than 16."""
    widths: tuple[int, int, int] = WIDTHS
    """Channels of Global-Net's stages: ResNet-18's."""
    patches_per_image: int = 16
    """Patches that a step learns from in each image."""
    teacher_px: int = 64
    """Side that patches are enlarged to for the teacher, which is used to whole things."""
    distil_steps: int = 1500
    distil_learning_rate: float = 1e-3
    tune_steps: int = 150
    tune_learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    """Of Adam in both: that of Uninformed Students, as are the rates of the preset `paper`; short
    trainings take larger ones."""
    balance: float = 0.5
    """lambda, the share of s_IAD in a score: both alike, for lack of a reason."""
    blur_px: float = 4.0
    """Standard deviation of the map's blur; that of PatchCore and others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields_positive(
            num_features=self.num_features,
            patches_per_hole=self.patches_per_hole,
            period=self.period,
            patches_per_image=self.patches_per_image,
            distil_steps=self.distil_steps,
            distil_learning_rate=self.distil_learning_rate,
            tune_steps=self.tune_steps,
            tune_learning_rate=self.tune_learning_rate,
        )
        if self.patch not in LAYERS:
            raise UserError(f"patch: got {self.patch}; allowed are {', '.join(map(str, LAYERS))}")
        size, own = receptive_field(self.patch)
        if not 0 < self.stride <= size or self.stride % own:
            raise UserError(
                f"stride: got {self.stride}; allowed are multiples of {own}, Local-Net's own, up "
                f"to {size // own * own}: a patch shows {size} px, and a larger stride leaves "
                "parts of the image without a score"
            )
        if not 0 <= self.balance <= 1:
            raise UserError(f"balance: got {self.balance}; allowed is 0 to 1")
        if self.mode == "lattice" and self.period < 2:
            raise UserError("period: got 1; a lattice needs 2 or more, or nothing stays visible")
        self.require_context()

    @property
    def grid(self) -> Grid:
        """The patches of an image."""
        return Grid(
            self.image_size,
            receptive_field(self.patch),
            self.stride,
            self.patches_per_hole,
            self.period,
        )

    def require_context(self) -> None:
        """Raise UserError for images that a hole leaves too little of to tell anything."""
        hole = (self.patches_per_hole - 1) * self.stride + receptive_field(self.patch).size
        least = hole + 2 * GlobalNet.stride
        if min(self.image_size) < least:
            height, width = self.image_size
            raise UserError(
                f"--size: got {height} {width}; a hole of {hole} px and {GlobalNet.stride} px of "
                f"context on each side need {least} px: give a larger --size"
            )

    @property
    def stage_steps(self) -> dict[str, int]:
        """Local-Net learns from the teacher, then on the product alone; then the comparison."""
        return {"distil": self.distil_steps, "tune": self.tune_steps, "compare": self.num_steps}

    @property
    def extent(self) -> str:
        """Steps of all stages, and the size of a batch."""
        steps = " + ".join(map(str, self.stage_steps.values()))
        return f"{steps} steps of {self.batch_size} images"


class Teacher:
    """R: a backbone that describes whole patches by the means of its maps, standardised."""

    def __init__(self, backbone: Backbone, side: int, usual: Tensor) -> None:
        """usual: patches float32 [K, 3, p, p] in [0, 1] that the numbers are standardised by."""
        self.backbone, self.side = backbone, side
        self.mean, self.std = torch.zeros(()), torch.ones(())
        described = torch.cat([self(part) for part in usual.split(64)])
        std = described.std(0)
        self.mean, self.std = described.mean(0), std.clamp(min=LEAST * float(std.mean()))

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> Tensor:
        """Describe patches float32 [K, 3, p, p], RGB in [0, 1], by T numbers of about 1 each."""
        size = (self.side, self.side)
        large = F.interpolate(patches, size, mode="bilinear", align_corners=False)
        maps = self.backbone(large)
        return (torch.cat([x.float().mean((2, 3)) for x in maps], dim=1) - self.mean) / self.std


class Glancing(Detector):
    """Compare what a patch shows (Z_l) with what its surroundings let expect (Z_g)."""

    def __init__(
        self, config: GlancingConfig, mean: Tensor, std: Tensor, teacher_channels: int
    ) -> None:
        """mean, std: of RGB in [0, 1], [1, 3, 1, 1]; the teacher's."""
        super().__init__()
        self.config, self.grid = config, config.grid
        self.teacher: Teacher | None = None  # in training alone
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        n = config.num_features
        with seeded_init(config.seed):
            self.local = LocalNet(config.patch, n, teacher_channels)
            self.surroundings = GlobalNet(n, config.widths)
            self.dad = nn.Sequential(nn.Linear(2 * n, n), nn.LeakyReLU(), nn.Linear(n, 1))
        self.usual = GlobalBatchNorm2d(1, affine=False)
        """Mean and variance of log s_IAD over normal images."""

    @classmethod
    def from_state(cls, config: GlancingConfig, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a saved model from its own state alone, strictly.

        Raises UserError when the state does not belong to the configuration.
        """
        decoder = state.get("local.decoder.weight", torch.empty(1, 0))
        blank = torch.zeros(1, 3, 1, 1)
        return cls(config, blank, blank, len(decoder)).with_state(state)

    # Training

    def stages(self) -> list[Stage]:
        """Return the three stages."""
        config = self.config
        adam = partial(ADAM, weight_decay=config.weight_decay)
        local = {"modules": (self.local,), "optimizer": adam}
        return [
            Stage(
                name="distil",
                num_steps=config.distil_steps,
                loss=self.distil_losses,
                lr=config.distil_learning_rate,
                **local,
            ),
            Stage(
                name="tune",
                num_steps=config.tune_steps,
                loss=self.tune_losses,
                lr=config.tune_learning_rate,
                **local,
            ),
            Stage(
                name="compare",
                num_steps=config.num_steps,
                modules=(self.surroundings, self.dad, self.usual),
                loss=self.comparison_losses,
                lr=config.learning_rate,
            ),
        ]

    def distil_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return l_k and l_c of patches at all angles and scales, half of them stained."""
        K, size = self.config.patches_per_image, self.grid.field.size
        patches = random_patches(batch.normal, K, size, generator)
        by_image = patches.view(-1, K, *patches.shape[1:])
        half = K // 2
        if half:
            dirty = stained(by_image[:, :half], generator)
            patches = torch.cat([dirty, by_image[:, half:]], dim=1).flatten(0, 1)
        return self._local_losses(patches)

    def tune_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return l_k and l_c of patches of the grid, as they are."""
        chosen = self._chosen([*self.grid.sets("exact")], generator)
        return self._local_losses(self._cut(batch.normal, chosen).flatten(0, 1))

    def _local_losses(self, patches: Tensor) -> dict[str, Tensor]:
        assert self.teacher is not None
        features = self.local(self._normalised(patches)).flatten(1)
        decoded = self.local.decoder(features).float()
        return {
            "l_k": distillation(decoded, self.teacher(patches)),
            "l_c": compactness(whole_batch(features)),
        }

    def comparison_losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return l_IAD of normal patches, and the binary cross-entropy of C.

        Normal patches are the one class, the same with stains the other. What C learns from does
        not reach Global-Net.
        """
        sets = [*self.grid.sets(self.config.mode)]
        hidden = sets[int(torch.randint(len(sets), (), generator=generator))]
        chosen = self._chosen([hidden], generator)
        images = self._normalised(batch.normal)
        whole = Hole(0, 0, *self.grid.image_size)
        seen = self.surroundings(images, hidden.mask(whole).to(images.device))
        told = around(seen, self.grid.cells(chosen, whole))  # Z_g, [N, K, n]
        patches = self._cut(batch.normal, chosen)
        with torch.no_grad():
            clean, dirty = (
                self.local(self._normalised(x.flatten(0, 1))).view_as(told)
                for x in (patches, stained(patches, generator))
            )
        real, fake = self._real(clean, told.detach()), self._real(dirty, told.detach())
        return {
            "l_iad": inconsistency(clean, told).mean(),
            "l_dad": (F.softplus(-real) + F.softplus(fake)).mean() / 2,
        }

    def _chosen(self, sets: Sequence[Hidden], generator: torch.Generator) -> Tensor:
        """Draw patches out of sets, the same of all images: int64 [K, 2]."""
        patches = torch.cat([each.patches for each in sets])
        order = torch.randperm(len(patches), generator=generator)
        return patches[order[: self.config.patches_per_image]]

    def _cut(self, images: Tensor, patches: Tensor) -> Tensor:
        return grid_patches(images, patches, self.grid.field.size, self.config.stride)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _real(self, local: Tensor, told: Tensor) -> Tensor:
        """The logit of C(Z_l, Z_g), 1 for a normal patch: [..., n] each -> [...]."""
        return self.dad(torch.cat([local, told], dim=-1)).squeeze(-1).float()

    # Scores

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1].

        s = lambda s_IAD + (1 - lambda) s_DAD for every patch, bilinearly between their centres,
        blurred. s_IAD is sigmoid((log |Z_l - Z_g|^2 / n - mean) / std), with mean and standard
        deviation over normal images; s_DAD is 1 - C(Z_l, Z_g).
        """
        local, told = self.described(images)
        iad, dad = self.head_scores(local, told)
        scores = self.config.balance * iad + (1 - self.config.balance) * dad
        maps = blurred(self.to_pixels(scores), self.config.blur_px)
        return Scores(image_scores(maps[:, 0]), maps[:, 0])

    def head_scores(self, local: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return s_IAD and s_DAD in [0, 1]: Z_l, Z_g [N, R, S, n] -> [N, 1, R, S] each."""
        distances = inconsistency(local, told).clamp(min=TINY_SQUARE).log().unsqueeze(1)
        return self.usual(distances).sigmoid(), (-self._real(local, told)).sigmoid().unsqueeze(1)

    def described(self, images: Tensor, mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """Return Z_l and Z_g of all patches of the grid, float32 [N, R, S, n] each.

        mode: the configuration's own, unless given.
        """
        images = self._normalised(images)
        step = self.config.stride // self.grid.field.stride
        local = self.local(images)[:, :, ::step, ::step].movedim(1, -1)
        sets = [*self.grid.sets(mode or self.config.mode)]
        one_hole = all(len(hidden.holes) == 1 for hidden in sets)
        told = self._by_window(images, sets) if one_hole else self._by_image(images, sets)
        R, S = self.grid.shape
        places = torch.cat([hidden.patches for hidden in sets])
        back = (places[:, 0] * S + places[:, 1]).argsort().to(images.device)
        return local, torch.cat(told, dim=1)[:, back].unflatten(1, (R, S))

    def _by_image(self, images: Tensor, sets: Sequence[Hidden]) -> list[Tensor]:
        """Z_g of the patches of each set, [N, K, n]: many holes in a whole image."""
        whole = Hole(0, 0, *self.grid.image_size)
        told = []
        for hidden in sets:
            seen = self.surroundings(images, hidden.mask(whole).to(images.device))
            told.append(around(seen, self.grid.cells(hidden.patches, whole)))
        return told

    def _by_window(self, images: Tensor, sets: Sequence[Hidden]) -> list[Tensor]:
        """Z_g of the patches of each set, [N, K, n]: one hole, in the window that matters."""
        by_shape = defaultdict[tuple[int, int], list[int]](list)
        windows = [self.grid.context(hidden) for hidden in sets]
        for i, (top, left, bottom, right) in enumerate(windows):
            by_shape[bottom - top, right - left].append(i)
        told: dict[int, Tensor] = {}
        for numbers in by_shape.values():
            todo = iter(numbers)
            while part := list(islice(todo, EXACT_BATCH)):
                shown = [
                    images[..., w.top : w.bottom, w.left : w.right]
                    for w in (windows[i] for i in part)
                ]
                mask = torch.cat([sets[i].mask(windows[i]) for i in part]).to(images.device)
                N, B = images.shape[0], len(part)
                flat = torch.stack(shown, dim=1).flatten(0, 1)
                seen = self.surroundings(flat, mask.repeat(N, 1, 1, 1))
                for place, i in enumerate(part):
                    one = type(seen)(*(x.unflatten(0, (-1, B))[:, place] for x in seen))
                    told[i] = around(one, self.grid.cells(sets[i].patches, windows[i]))
        return [told[i] for i in range(len(sets))]

    def to_pixels(self, scores: Tensor) -> Tensor:
        """Bring scores of patches to pixels, at their centres: [N, 1, R, S] -> [N, 1, H, W].

        Beyond the outermost centres the nearest value holds.
        """
        (H, W), stride = self.grid.image_size, self.config.stride
        before = (self.grid.field.size - stride) // 2
        large = F.interpolate(
            scores, scale_factor=float(stride), mode="bilinear", align_corners=False
        )
        height, width = large.shape[-2:]
        after = (W - width - before, H - height - before)
        return F.pad(large, (before, after[0], before, after[1]), mode="replicate")


def inconsistency(local: Tensor, told: Tensor) -> Tensor:
    """s_IAD = |Z_l - Z_g|^2 / n, not standardised: [..., n] each -> [...]."""
    return (local - told).square().mean(-1)


# The method

_COMPACT = GlancingConfig(
    image_size=(256, 256),
    backbone=replace(DEFAULT_BACKBONE, layers=(2, 3)),
    batch_size=4,
    num_steps=800,
    learning_rate=3e-4,
)
_PAPER = replace(
    _COMPACT,
    backbone=BackboneConfig(name="resnet18", layers=(4,)),
    mode="exact",
    patches_per_hole=1,
    batch_size=16,
    distil_steps=50_000,
    distil_learning_rate=2e-4,
    tune_steps=5_000,
    tune_learning_rate=2e-5,
    num_steps=20_000,
    learning_rate=1e-4,
)
PRESETS = {
    "tiny": replace(
        _COMPACT, image_size=(128, 128), widths=(32, 64, 128), distil_steps=500, num_steps=500
    ),
    "compact": _COMPACT,
    "paper": _PAPER,
}


def build_glancing(config: GlancingConfig, material: Material[Any]) -> Glancing:
    """Let the teacher describe some patches, to know how large its numbers usually are."""
    backbone = material.backbone
    images: list[Images] = [*chain.from_iterable(material.images)]
    chosen = (images[i] for i in spread(len(images), NUM_TAUGHT))
    normal = to_batch(chosen, material.accelerator.device)
    size = receptive_field(config.patch).size
    draws = seeded(config.seed, 5)
    usual = random_patches(normal, config.patches_per_image, size, draws)
    teacher = Teacher(backbone, config.teacher_px, usual)
    channels = sum(backbone.channels)
    detector = Glancing(config, backbone.mean, backbone.std, channels)
    detector.teacher = teacher
    return detector


RECIPE = Recipe(
    config=GlancingConfig,
    presets=PRESETS,
    build=build_glancing,
    restore=Glancing.from_state,
)
