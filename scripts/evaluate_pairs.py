"""What pairs are worth: anomalies drawn into normal images, by depth and strength.

    python scripts/evaluate_pairs.py --model runs/model --dataset mtd --root mtd --out runs/pairs

Only images to train on are opened. Writes pairs.json and a sheet per depth. Two questions:

regions (what `synth generate --pair` makes). kept: share of the pixels outside the mask that are
those of the normal image. rmse: grey levels between pair and normal image inside. auroc: do
masks lie where an unrelated detector, which never sees the normal image, finds the anomaly? Pixel
AUROC of the distance to the nearest patch of other normal images. seam: mean step across the mask's
border over the same pixels' in the normal image; 1 is no seam. The row "pasted" is for comparison:
the same region filled from another SDAS image of the same strength, at full opacity.

whole (the alternative that was given up: the chain changes everything, the mask is found). own:
share of pairs at s = 0 whose nearest training image is their own. found_pasted: a patch of another
normal image, pasted before the chain, is it found again by the difference to the normal image?
found_false: share of fresh pairs at s = 0 that the found masks cover (nominal 0.01).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from detect.evaluation.metrics import auroc
from synth.base.backbones import Backbone, BackboneConfig, build_backbone
from synth.base.files import write_json
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.normals import load_normals
from synth.diffusion.model import DiffusionModel, load_model
from synth.diffusion.pair import make_pairing, pair_images, timestep
from synth.diffusion.sampling import sample_images
from synth.images import write_png
from synth.pictures import Images, SheetRow, contact_sheet

Masks = NDArray[np.bool_]
"""bool [N, H, W]."""
Maps = NDArray[np.float32]
"""float32 [N, H, W]."""

BATCH_SIZE = 8
BANK_SIZE, BANK_IMAGES = 5_000, 48
FALSE_SHARE = 0.01
SHEET_IMAGES = 8


class Setting(NamedTuple):
    """The model, N normal images with their regions and files, and a judge it knows nothing of."""

    model: DiffusionModel
    normals: Images
    regions: Masks
    judge: Backbone
    bank: Tensor
    num_steps: int
    seed: int

    def pairs(
        self,
        depth: float,
        strength: float,
        starts: Images,
        regions: Masks | None,
        seed: int | None = None,
    ) -> Images:
        """A pair for each of `starts`; the same noise every time but for another `seed`."""
        parts = []
        for first in range(0, len(starts), BATCH_SIZE):
            few = slice(first, min(first + BATCH_SIZE, len(starts)))
            indices = range(few.start, few.stop)
            about = (self.seed if seed is None else seed, indices, self.num_steps)
            where = None if regions is None else regions[few]
            strengths = [strength] * len(indices)
            parts.append(
                pair_images(self.model, starts[few], depth, strengths, *about, regions=where)
            )
        return np.concatenate(parts)

    def anomaly_maps(self, images: Images) -> Maps:
        """The distance of each patch to the nearest normal one, at the images' size."""
        size, maps = images.shape[1:3], []
        for image in images:
            patches = describe(self.judge, image)  # [D, h, w]
            distance = torch.cdist(patches.flatten(1).T, self.bank).amin(dim=1)
            cells = distance.view(1, 1, *patches.shape[1:])
            maps.append(F.interpolate(cells, size=size, mode="bilinear")[0, 0].numpy())
        return np.stack(maps)


@torch.no_grad()
def describe(judge: Backbone, image: NDArray[np.uint8]) -> Tensor:
    """Layers 1 and 2 of an image enlarged twice, smoothed, each of unit scale: [D, h, w]."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    layer1, layer2, *_ = judge(F.interpolate(x, scale_factor=2, mode="bilinear"))
    up = F.interpolate(layer2, size=layer1.shape[-2:], mode="bilinear")
    return torch.cat([F.avg_pool2d(f, 3, 1, 1) / f.std() for f in (layer1, up)], dim=1)[0]


def patch_bank(judge: Backbone, images: Images, seed: int) -> Tensor:
    """Random patches of normal images, [BANK_SIZE, D]."""
    rng = np.random.default_rng(seed)
    chosen = images[rng.permutation(len(images))[:BANK_IMAGES]]
    patches = torch.cat([describe(judge, image).flatten(1).T for image in chosen])
    return patches[torch.from_numpy(rng.permutation(len(patches))[:BANK_SIZE])]


# Regions


def judged(setting: Setting, images: Images) -> dict[str, float]:
    """Figures of images with an anomaly in each region."""
    normals, regions = setting.normals, setting.regions
    maps = setting.anomaly_maps(images)
    change = images.astype(np.float64) - normals
    return {
        "kept": float((images[~regions] == normals[~regions]).all(axis=-1).mean()),
        "rmse": float(np.sqrt(np.square(change[regions]).mean())),
        "auroc": mean_auroc(regions, maps),
        "seam": border_step(images, regions) / border_step(normals, regions),
    }


def mean_auroc(masks: Masks, maps: Maps) -> float:
    """Mean over the images."""
    return float(np.mean([auroc(t.ravel(), m.ravel()) for t, m in zip(masks, maps, strict=True)]))


def border_step(images: Images, masks: Masks) -> float:
    """Mean absolute step in grey levels between neighbours on both sides of the masks' borders."""
    grey, steps = images.mean(axis=3), []
    for axis in (1, 2):
        across = np.diff(masks, axis=axis)
        steps.append(np.abs(np.diff(grey, axis=axis))[across])
    return float(np.concatenate(steps).mean())


def evaluate_regions(
    setting: Setting, depths: Sequence[float], strengths: Sequence[float], out: Path
) -> dict[str, Any]:
    """Figures by depth and strength; a sheet for each depth."""
    normals, regions = setting.normals, setting.regions
    figures: dict[str, Any] = {"normal images": judged(setting, normals)["auroc"]}
    first = [SheetRow("normal images", list(normals)), SheetRow("masks", list(regions))]
    for s in strengths:
        about = (setting.seed + 1, range(len(normals)), setting.num_steps)
        source = sample_images(setting.model, [s] * len(normals), *about)
        pasted = np.where(regions[..., None], source, normals)
        figures[f"pasted, s {s:g}"] = judged(setting, pasted)
        first.append(SheetRow(f"another SDAS image pasted, s = {s:g}", list(pasted)))
    for depth in depths:
        rows = []
        for s in strengths:
            pairs = setting.pairs(depth, s, normals, regions)
            figures[f"depth {depth:g}, s {s:g}"] = judged(setting, pairs)
            rows.append(SheetRow(f"depth {depth:g}, s = {s:g}", list(pairs)))
            maps = setting.anomaly_maps(pairs)
            rows.append(SheetRow("what the unrelated detector sees", [shade(m) for m in maps]))
        few = [row._replace(images=row.images[:SHEET_IMAGES]) for row in first + rows]
        write_png(out / f"depth_{depth:g}.png", contact_sheet(few, 144))
    return figures


def shade(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map as grey levels."""
    low, high = values.min(), values.max()
    grey = ((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


# Whole images


def evaluate_whole(
    setting: Setting, fit: Images, places: NDArray[np.int64], depth: float
) -> dict[str, Any]:
    """Do whole-image pairs keep to their normal image, and do found masks find a known change?"""
    normals, regions = setting.normals, setting.regions
    plain = setting.pairs(depth, 0.0, normals, None)
    chance = [difference(setting.judge, *pair) for pair in zip(plain, normals, strict=True)]
    scale = torch.stack(chance).mean(dim=(0, 2, 3))
    scaled = [(d / scale.view(-1, 1, 1)).mean(dim=0).numpy() for d in chance]
    threshold = float(np.quantile(np.stack(scaled), 1 - FALSE_SHARE))

    def maps(images: Images) -> Maps:
        pairs = [difference(setting.judge, *pair) for pair in zip(images, normals, strict=True)]
        return np.stack([(d / scale.view(-1, 1, 1)).mean(dim=0).numpy() for d in pairs])

    others = np.where(regions[..., None], np.roll(normals, 1, axis=0), normals)
    pasted = maps(setting.pairs(depth, 0.0, others, None))
    fresh = maps(setting.pairs(depth, 0.0, normals, None, setting.seed + 2))
    return {
        "own": float((nearest(plain, fit) == places).mean()),
        "rmse": float(np.sqrt(np.square(plain.astype(np.float64) - normals).mean())),
        "found_false": float((fresh > threshold).mean()),
        "found_pasted": {
            "auroc": mean_auroc(regions, pasted),
            "share": float((pasted > threshold)[regions].mean()),
            "outside": float((pasted > threshold)[~regions].mean()),
            "auroc_without_chain": mean_auroc(regions, maps(others)),
        },
    }


@torch.no_grad()
def difference(judge: Backbone, image: NDArray[np.uint8], other: NDArray[np.uint8]) -> Tensor:
    """Mean squared difference in each layer, at the images' size: [K, H, W]."""
    x = torch.from_numpy(np.stack([image, other])).permute(0, 3, 1, 2).float() / 255
    maps = []
    for features in judge(F.interpolate(x, scale_factor=2, mode="bilinear")):
        d = (features[0] - features[1]).square().mean(dim=0)
        maps.append(F.interpolate(d[None, None], size=image.shape[:2], mode="bilinear")[0, 0])
    return torch.stack(maps)


def nearest(queries: Images, references: Images) -> NDArray[np.int64]:
    """The nearest of `references` to each query, by pixels at a quarter of the resolution."""
    q, r = (
        torch.stack([torch.from_numpy(quarter(image)).flatten() for image in images])
        for images in (queries, references)
    )
    return torch.cdist(q, r).argmin(dim=1).numpy()


def quarter(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image at a quarter of its resolution."""
    size = (image.shape[1] // 4, image.shape[0] // 4)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def main() -> None:
    """Run from a shell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--category")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=16, help="normal images")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.2, 0.35, 0.5, 0.65, 0.8])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.2, 0.5, 1])
    parser.add_argument("--whole", type=float, nargs="*", default=[], help="depths of this part")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge-weights", default="hub", help="of resnet18; a safetensors file")
    args = parser.parse_args()

    model = load_model(args.model, torch.device("cpu"))
    category = open_category(args.dataset, args.root, args.category)
    data = load_normals(category, model.image_size, no_bars)
    about = (args.depths[0], args.seed, args.num_steps, data.foreground_rule())
    pairing = make_pairing(model, data, *about)
    places = np.arange(args.num) * len(data.fit) // args.num
    regions = np.stack([pairing.region(int(number)) for number in places])
    judge = build_backbone(
        BackboneConfig(name="resnet18", layers=(1, 2, 3), weights=args.judge_weights)
    )
    bank = patch_bank(judge, np.delete(data.fit, places, axis=0), args.seed)
    chain = (args.num_steps, args.seed)
    setting = Setting(model, data.fit[places], regions, judge, bank, *chain)
    results: dict[str, Any] = {"checkpoint": model.digest, "num": args.num, "seed": args.seed}
    results["mask_share"] = float(regions.mean())
    results["timesteps"] = {f"{d:g}": timestep(d, args.num_steps) for d in args.depths}
    results["regions"] = evaluate_regions(setting, args.depths, args.strengths, args.out)
    write_json(args.out / "pairs.json", results)
    results["whole"] = {f"{d:g}": evaluate_whole(setting, data.fit, places, d) for d in args.whole}
    write_json(args.out / "pairs.json", results)
    print(f"results: {args.out / 'pairs.json'}")


if __name__ == "__main__":
    main()
