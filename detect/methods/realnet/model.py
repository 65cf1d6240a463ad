"""RealNet: reconstruct the features of the normal image, segment what could not be reconstructed.

Source: Zhang, Xu, Zhou, "RealNet", CVPR 2024; details as in the authors' code.
A is the (blended) image, I the normal one, M the mask, phi_k the channels of layer k that AFS
keeps, G_k their reconstruction network, E_k the residual.
Shapes: N images of H x W pixels; layer k has m_k channels on h_k x w_k pixels. A layer here is a
block of backbone layers where the configuration puts several into one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detect.data.feature_cache import FeatureCache, filled_cache
from detect.detector import Batch, Detector, Scores, Stage
from detect.methods.realnet.blocks import joined_blocks
from detect.methods.realnet.config import RealNetConfig
from detect.methods.realnet.reconstruction import ReconstructionUNet
from detect.methods.realnet.rrs import RRS, SegmentationHead
from detect.methods.realnet.separable import SeparableUNet
from detect.pooling import image_scores
from synth.base.backbones import Backbone, build_backbone, seeded_init
from synth.images import Progress


class RealNet(Detector):
    """AFS channels -> reconstruction -> RRS -> segmentation; normalises images itself.

    Backbone weights and AFS indices are part of the state: `from_state` needs nothing else.
    """

    def __init__(
        self, config: RealNetConfig, backbone: Backbone, afs_indices: Sequence[Tensor]
    ) -> None:
        """Build with fresh weights. afs_indices: int64 [m_k] per layer, of `select_channels`."""
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.cache: FeatureCache | None = None
        exponents = config.feature_exponents or (0,) * len(config.backbone.layers)
        self.afs = nn.ModuleList(
            ChannelSelection(index, 0.5**e) for index, e in zip(afs_indices, exponents, strict=True)
        )
        with seeded_init(config.seed):
            network = (
                SeparableUNet
                if config.separable
                else partial(ReconstructionUNet, norm_groups=config.norm_groups)
            )
            self.reconstruction = nn.ModuleList(
                network(m, width, config.multipliers, config.num_res_blocks)
                for m, width in zip(
                    config.block_channels, config.reconstruction_widths, strict=True
                )
            )
            self.rrs = RRS(sum(config.num_selected), config.num_max, config.num_mean)
            self.head = SegmentationHead(
                config.num_max + config.num_mean,
                config.head_widths,
                separable=config.separable,
                activation=config.head_activation,
            )

    @classmethod
    def from_state(cls, config: RealNetConfig, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a saved model from its own state alone, strictly.

        Raises UserError when the state does not belong to the configuration.
        """
        backbone = build_backbone(replace(config.backbone, weights="random"))
        blanks = [torch.zeros(m, dtype=torch.int64) for m in config.num_selected]
        return cls(config, backbone, blanks).with_state(state)

    def stages(self) -> list[Stage]:
        """Return the one stage: reconstruction and head together, the backbone frozen."""
        return [
            Stage(
                name="realnet",
                num_steps=self.config.num_steps,
                modules=(self.reconstruction, self.rrs, self.head),
                loss=self.losses,
                lr=self.config.learning_rate,
                average=self.config.averages,
            )
        ]

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the two terms of the loss, scalars float32, each of weight 1.

        "segmentation" is the pixelwise CE(map, M), whose gradients flow on into G_k;
        "reconstruction" is sum_k MSE(G_k(phi_k(A)), phi_k(I)). Nothing is drawn at random.
        """
        H, W = batch.image.shape[-2:]
        phi_A, phi_I = self.training_features(batch)
        G = self.reconstruct(phi_A)
        logits = self.segment(phi_A, G, (H, W))
        errors = [F.mse_loss(g, phi) for g, phi in zip(G, phi_I, strict=True)]
        return {
            "segmentation": F.cross_entropy(logits, batch.mask.long()),
            "reconstruction": torch.stack(errors).sum(),
        }

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1]; maps are probabilities in [0, 1]."""
        phi_A = self.features(images)
        H, W = images.shape[-2:]
        logits = self.segment(phi_A, self.reconstruct(phi_A), (H, W))
        maps = logits.softmax(dim=1)[:, 1]  # [N, H, W]
        return Scores(image_scores(maps), maps)

    def remember(
        self, images: Sequence[NDArray[np.uint8]], progress: Progress | None = None
    ) -> None:
        """Compute the features of all normal images to train on, uint8 [H, W, 3], beforehand.

        Training is then faster and gives the same results up to rounding. `Batch.number` counts the
        images in this order.
        """
        device = next(self.parameters()).device
        self.cache = filled_cache(images, self._features, device, progress)

    # --- the steps -------------------------------------------------------------------------

    def features(self, images: Tensor) -> list[Tensor]:
        """Return phi_k of the images, float32 [N, m_k, h_k, w_k] per layer."""
        return [phi.float() for phi in self._features(images)]

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        """Return phi_k in the backbone's own type, bfloat16 under autocast."""
        layers = self.backbone(images)
        selected = [select(x) for select, x in zip(self.afs, layers, strict=True)]
        return joined_blocks(selected, self.config.layer_blocks)

    @torch.no_grad()
    def training_features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return phi_k(A) and phi_k(I), computing only what blending changed.

        Features of normal images come from the cache if they are in it, and an image that nothing
        was blended into has the features of its normal image.
        """
        if batch.number is None or self.cache is None:
            phi_I = self.features(batch.normal)
        else:
            phi_I = self.cache(batch.number, batch.normal, self._features)
        blended = batch.mask.flatten(1).any(1).nonzero().flatten()
        phi_A = [phi.clone() for phi in phi_I]
        if len(blended):
            for maps, new in zip(phi_A, self.features(batch.image[blended]), strict=True):
                maps[blended] = new
        return phi_A, phi_I

    def reconstruct(self, phi_A: Sequence[Tensor]) -> list[Tensor]:
        """Return G_k(phi_k(A)), float32 [N, m_k, h_k, w_k] per layer."""
        return [G_k(phi).float() for G_k, phi in zip(self.reconstruction, phi_A, strict=True)]

    def segment(
        self, phi_A: Sequence[Tensor], G: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Return logits float32 [N, 2, *size] from the residuals E_k = (phi_k(A) - G_k)^2."""
        finest = phi_A[0].shape[-2:]
        E = [(phi - g).square() for phi, g in zip(phi_A, G, strict=True)]
        E = [F.interpolate(e, size=finest, mode="bilinear", align_corners=True) for e in E]
        return self.head(self.rrs(torch.cat(E, dim=1)), size)


class ChannelSelection(nn.Module):
    """Pick the channels that AFS kept, times a factor; the indices are part of the state."""

    def __init__(self, index: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.index: Tensor
        self.register_buffer("index", index.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, m, h, w]."""
        return self.scaled(features.index_select(1, self.index))

    def scaled(self, features: Tensor) -> Tensor:
        """Multiply by the factor, unless it is 1."""
        return features if self.factor == 1 else features * self.factor
