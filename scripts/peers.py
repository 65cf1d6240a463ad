"""Anomalib's PatchCore, DRAEM, SuperSimpleNet and CS-Flow on our data, split, size and metrics.

Needs the `bench` extra, in an environment of its own (CONTRIBUTING.md). Anomalib's networks and
training objectives are used as they are; images are ours, squeezed to the size, and the metrics are
those of `detect evaluate`. DRAEM learns from scratch: without a GPU it gets a number of steps, not
its 700 epochs, and so does SuperSimpleNet, not its 300.

CS-Flow stands beside `detect train --method csflow --preset compact`: the same features, images to
learn from, width, kernels, steps, batches and optimiser. Anomalib's loss subtracts from each
image's energy the log |det| summed over the batch; its map is the product of the scales. It has
neither our ActNorm nor our mean of the weights.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from anomalib.data import InferenceBatch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.models.image.csflow.anomaly_map import AnomalyMapGenerator
from anomalib.models.image.csflow.loss import CsFlowLoss
from anomalib.models.image.csflow.torch_model import (
    CsFlowModel,
    ParallelGlowCouplingLayer,
    ParallelPermute,
)
from anomalib.models.image.draem.loss import DraemLoss
from anomalib.models.image.draem.torch_model import DraemModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.models.image.supersimplenet import torch_model as supersimplenet_module
from anomalib.models.image.supersimplenet.loss import SSNLoss
from numpy.typing import NDArray
from torch import Tensor, nn

from detect.data.feature_cache import filled_cache
from detect.evaluation.measure import evaluate
from detect.evaluation.testset import open_test_set
from detect.images import to_chw, to_unit
from detect.methods.csflow import RECIPE, CSFlowConfig
from detect.methods.flow import ALPHA
from detect.methods.flow_detector import MAX_NORM, FlowDetector
from detect.options import TrainOptions
from detect.scoring import Scored, Scorer, score_batches
from synth.base.backbones import Backbone, BackboneConfig, build_backbone
from synth.base.command import progress_bar
from synth.base.files import write_json
from synth.base.progress import Bars
from synth.data.catalog import open_category
from synth.data.normals import load_normals
from synth.pictures import Images


def to_batch(images: Images) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [0, 1]."""
    return to_unit(torch.stack([to_chw(image) for image in images]))


class NamedLayers(nn.Module):
    """Our frozen backbone in the place of anomalib's: the same weights, layers by their names."""

    def __init__(self, backbone: Backbone, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the layers' maps by name."""
        return dict(zip(self.names, self.backbone(images), strict=True))


NAMES = ["layer2", "layer3"]


def patchcore(images: Images, backbone: Backbone, coreset: float, bars: Bars) -> nn.Module:
    """PatchCore on two layers of the backbone, with a greedy coreset of the share given."""
    model = PatchcoreModel(layers=NAMES, backbone="resnet18", pre_trained=False)
    model.feature_extractor = NamedLayers(backbone, NAMES)
    model.train()
    with bars("embedding", "image") as update, torch.no_grad():
        for start in range(0, len(images), 16):
            model(to_batch(images[start : start + 16]))
            update(min(start + 16, len(images)), len(images))
    model.subsample_embedding(coreset)
    return model.eval()


def supersimplenet(
    images: Images, backbone: Backbone, num_steps: int, seed: int, bars: Bars
) -> nn.Module:
    """SuperSimpleNet on two layers of the backbone, with its own loss, rates and 32 images a step.

    Its rates fall after 80 and 90 % of the steps, as they do after as much of its epochs.
    """
    torch.manual_seed(seed)
    extractor = NamedLayers(backbone, NAMES)
    supersimplenet_module.TimmFeatureExtractor = lambda **_: extractor  # its own is downloaded
    model, loss_function = supersimplenet_module.SupersimplenetModel(layers=NAMES), SSNLoss()
    adaptor = {"params": model.adaptor.parameters(), "lr": 1e-4}
    heads = {"params": model.segdec.parameters(), "lr": 2e-4, "weight_decay": 1e-5}
    optimizer = torch.optim.AdamW([adaptor, heads])
    milestones = [int(num_steps * 0.8), int(num_steps * 0.9)]
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.4)
    with bars("training supersimplenet", "step") as update:
        for step, chosen in enumerate(shuffled(len(images), 32, num_steps, seed), start=1):
            maps, scores, masks, labels = model(
                to_batch(images[chosen]), labels=torch.zeros(len(chosen))
            )
            loss = loss_function(maps, scores, masks, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            update(step, num_steps, {"loss": loss.item()})
    return model.eval()


def draem(images: Images, textures: Path, num_steps: int, seed: int, bars: Bars) -> nn.Module:
    """DRAEM with its own corruption and loss, Adam 1e-4, 8 images per step."""
    torch.manual_seed(seed)
    model, loss_function = DraemModel(), DraemLoss()
    augment = PerlinAnomalyGenerator(anomaly_source_path=textures, blend_factor=(0.1, 1.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    with bars("training draem", "step") as update:
        for step, chosen in enumerate(shuffled(len(images), 8, num_steps, seed), start=1):
            batch = to_batch(images[chosen])
            corrupted, mask = augment(batch)
            reconstruction, prediction = model(corrupted)
            loss = loss_function(batch, reconstruction, mask, prediction)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update(step, num_steps, {"loss": loss.item()})
    return model.eval()


def shuffled(
    num_images: int, batch_size: int, num_steps: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Numbers of the images of each batch, in random order, epoch after epoch."""
    rng, order = np.random.default_rng(seed), np.array([], dtype=np.int64)
    for _ in range(num_steps):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(num_images)])
        yield order[:batch_size]
        order = order[batch_size:]


class CSFlow(nn.Module):
    """Anomalib's permutations and couplings, which need other channels than its model has."""

    def __init__(self, config: CSFlowConfig, backbone: Backbone) -> None:
        super().__init__()
        self.ours = FlowDetector(config, backbone)  # for its features
        (C,), (stride,), (height, width) = backbone.channels, backbone.strides, config.image_size
        shapes = [(C, height // stride // 2**i, width // stride // 2**i) for i in range(3)]
        self.steps = nn.ModuleList()
        for k, kernel in enumerate(config.kernels):
            subnet = {"channels_hidden": config.hidden, "kernel_size": kernel}
            self.steps.append(ParallelPermute(shapes, seed=k))
            self.steps.append(ParallelGlowCouplingLayer(shapes, subnet, clamp=ALPHA))
        self.map = AnomalyMapGenerator((3, height, width))

    def latents(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Map features to latents; log |det| is that of the whole batch."""
        log_det = torch.zeros(())
        for step in self.steps:
            maps, step_log_det = step(maps)
            log_det = log_det + step_log_det
        return maps, log_det

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images, in [0, 1]."""
        latents, _ = self.latents(self.ours.features(images))
        scores = CsFlowModel._compute_anomaly_scores(latents)
        return InferenceBatch(pred_score=scores, anomaly_map=self.map(latents))


def csflow(images: Images, config: CSFlowConfig, bars: Bars) -> nn.Module:
    """CS-Flow on features of our backbone, computed once; the weights are the last step's."""
    torch.manual_seed(config.seed)
    model, loss_function = CSFlow(config, build_backbone(config.backbone)), CsFlowLoss()
    features = model.ours.features
    with bars("features", "image") as update:
        cache = filled_cache(images, features, torch.device("cpu"), update)
    (stage,) = model.ours.stages()
    parameters = [*model.steps.parameters()]
    optimizer = stage.optimizer(parameters, lr=stage.lr)
    batches = shuffled(len(images), config.batch_size, config.num_steps, config.seed)
    with bars("training csflow", "step") as update:
        for step, chosen in enumerate(batches, start=1):
            maps = cache(torch.from_numpy(chosen), to_batch(images[chosen]), features)
            loss = loss_function(*model.latents(maps))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            update(step, config.num_steps, {"loss": loss.item()})
    return model.eval()


def scorer(model: nn.Module) -> Scorer:
    """Anomalib's own image score and map."""

    @torch.no_grad()
    def score(images: Images) -> Scored:
        found = model(to_batch(images))
        maps = found.anomaly_map.reshape(len(images), *images.shape[1:3])
        return Scored(found.pred_score.flatten().numpy(), maps.numpy())

    return score


def main(
    method: Literal["patchcore", "draem", "supersimplenet", "csflow"],
    out: Path,
    dataset: str,
    root: Path,
    category: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    backbone_mean: tuple[float, float, float] | None = None,
    backbone_std: tuple[float, float, float] | None = None,
    textures: Path = Path("dtd"),
    size: int = 256,
    coreset: float = 0.005,
    num_steps: int | None = None,
    seed: int = 0,
) -> None:
    """Train a peer on a category's normal images, measure it on the test split, write a JSON file.

    Args:
        method: Which peer.
        out: The JSON file.
        dataset: Layout of the data, as for `detect train`.
        root: Folder of the data.
        category: Category below the root.
        backbone: A network of timm: of PatchCore and SuperSimpleNet (default: resnet18), whose
            layers 2 and 3 are used; of CS-Flow (default: as of our preset `compact`), whose layer 3
            is used.
        backbone_weights: As for `detect train`: "hub", or a file.
        backbone_mean: As for `detect train`.
        backbone_std: As for `detect train`.
        textures: Folder of textures that DRAEM blends in.
        size: Pixels that images are squeezed to.
        coreset: Share of the patches that PatchCore keeps.
        num_steps: Of DRAEM and SuperSimpleNet (default: 100) and of CS-Flow (default: as of our
            preset `compact`).
        seed: Of weights and order, and of PatchCore's coreset.

    """
    torch.manual_seed(seed)
    opened = open_category(dataset, root, category, progress_bar)
    test = open_test_set(opened, progress_bar)
    normals = load_normals(opened, (size, size), progress_bar)
    images = np.concatenate([normals.fit, normals.held])  # neither needs a threshold here
    start = time.perf_counter()
    if method in ("patchcore", "supersimplenet"):
        chosen = BackboneConfig(
            name=backbone or "resnet18",
            layers=(2, 3),
            weights=backbone_weights or "hub",
            mean=backbone_mean,
            std=backbone_std,
        )
        built = build_backbone(chosen)
        if method == "patchcore":
            model = patchcore(images, built, coreset, progress_bar)
        else:
            model = supersimplenet(images, built, num_steps or 100, seed, progress_bar)
    elif method == "draem":
        model = draem(images, textures, num_steps or 100, seed, progress_bar)
    else:
        options = TrainOptions(
            method="csflow",
            preset="compact",
            size=(size, size),
            num_steps=num_steps,
            seed=seed,
            backbone=backbone,
            backbone_weights=backbone_weights,
            backbone_mean=backbone_mean,
            backbone_std=backbone_std,
        )
        model = csflow(normals.fit, RECIPE.configure(options), progress_bar)
    seconds = time.perf_counter() - start
    with progress_bar("scoring", "image") as update:
        batches = score_batches(scorer(model), test.paths, (size, size), progress=update)
        found = evaluate(test, batches, whole=False)
    figures: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "training_seconds": seconds,
        "image": found.figures.image._asdict(),
        "pixel": found.figures.pixel._asdict() if found.figures.pixel else None,
    }
    write_json(out, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    tyro.cli(main)
