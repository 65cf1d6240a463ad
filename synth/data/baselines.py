"""What anomaly images are compared with: textures, noise, CutPaste; in the same SIA format.

A synthesis is worth what it adds over these. Image i depends on (seed, i) and on the images or
files named in the folder's configuration, as in every SIA folder.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.seeding import derive_seed
from synth.blend import MAX_DRAWS
from synth.data.normals import Normals
from synth.images import list_images, read_image, resize
from synth.pictures import Image, all_grey, digest
from synth.sia.reader import Item, Kind, OnImage, SiaHeader, Written, write_sia

TEXTURES = "textures"
IMPORTED = "imported-textures"
"""Dataset of imported textures; not "textures", whose card and licence are of three photographs."""

AREA = (0.02, 0.15)
"""Share of the image that a pasted patch covers. Source: CutPaste, appendix (as the next two)."""
MAX_ASPECT = 3.3
JITTER = 0.1
"""Largest relative change of brightness, contrast and saturation, and of the hue's circle."""


class Drawn(NamedTuple):
    """An image, and the mask of what was changed, bool [H, W], or None."""

    image: Image
    mask: NDArray[np.bool_] | None


# Textures


def texture_files(folder: Path) -> list[Path]:
    """All image files below `folder`, such as DTD's images/<class>/*.jpg, sorted.

    Raises UserError where there are none.
    """
    paths = list_images(folder, recursive=True)
    if not paths:
        raise UserError(f"{folder}: no image files below it; give a folder of texture images")
    return paths


def import_textures(
    folder: Path, out: Path, size: tuple[int, int], *, on_image: OnImage | None = None
) -> Written:
    """Write all images below `folder`, squeezed to `size`, to `out`/imported-textures/<name>.

    <name> is the folder's, or that of the folder above an `images` folder. Raises UserError as
    `texture_files` and `write_sia`, and for an unreadable image.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--out: {out} is inside {folder}; choose a folder beside it")
    paths = texture_files(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]

    def make_items(indices: Iterator[int]) -> Iterator[Item]:
        for index in indices:
            image = resize(read_image(paths[index]), size)
            yield Item(index, image, None, {"texture_file": names[index]})

    listing = [f"{name} {path.stat().st_size}" for name, path in zip(names, paths, strict=True)]
    config = {
        "method": TEXTURES,
        "image_size": list(size),
        "num_files": len(paths),
        "files": hashlib.sha256(os.fsencode("\n".join(listing))).hexdigest()[:16],
    }
    place = folder.resolve()
    name = place.parent.name if place.name == "images" else place.name
    header = SiaHeader("source", IMPORTED, name, config)
    return write_sia(out / IMPORTED / name, header, len(paths), make_items, on_image=on_image)


# Baselines made of normal images


def noise(normal: Image, rng: np.random.Generator, grey: bool) -> Drawn:
    """Independent uniform noise, as grey as the product: colour alone would give it away."""
    H, W = normal.shape[:2]
    levels = rng.integers(0, 256, (H, W, 1 if grey else 3), dtype=np.uint8)
    return Drawn(np.repeat(levels, 3 // levels.shape[2], axis=2), None)


def cutpaste(normal: Image, rng: np.random.Generator, grey: bool) -> Drawn:
    """A rectangle of the image, its colours jittered, pasted elsewhere in it; and its mask.

    The published augmentation, for looking, and for whatever trains on images with masks. Nothing
    of the product's outline is known to it. Source: CutPaste (Li et al., CVPR 2021), section 2.1.
    """
    H, W = normal.shape[:2]
    pasted, mask = normal.copy(), np.zeros((H, W), np.bool_)
    for _ in range(MAX_DRAWS):
        h, w = patch_size(H, W, rng)
        (y, v), (x, u) = rng.integers(0, H - h + 1, 2), rng.integers(0, W - w + 1, 2)
        pasted[v : v + h, u : u + w] = jittered(normal[y : y + h, x : x + w], rng)
        if (pasted != normal).any():
            mask[v : v + h, u : u + w] = True
            return Drawn(pasted, mask)
    raise UserError(
        f"cutpaste: {MAX_DRAWS} patches in a row changed nothing in a normal image of one colour; "
        "choose another method"
    )


def shifted(normal: Image, rng: np.random.Generator, grey: bool) -> Drawn:
    """The whole image, its colours jittered, shifted round its edges: CutPaste for Perlin masks.

    As an anomaly source, an image with one pasted rectangle is wasted: nearly everywhere under a
    Perlin mask it is the normal image again. Of this one every part, of any outline, is a patch cut
    elsewhere, so that blending it in is CutPaste with Perlin's outlines for rectangles.
    """
    H, W = normal.shape[:2]
    number = int(rng.integers(1, H * W))  # 0 would be no shift
    return Drawn(np.roll(jittered(normal, rng), divmod(number, W), axis=(0, 1)), None)


class Baseline(NamedTuple):
    """How a baseline is drawn from a normal image, and which kind of SIA folder it makes."""

    kind: Kind
    draw: Callable[[Image, np.random.Generator, bool], Drawn]


BASELINES: dict[str, Baseline] = {
    "noise": Baseline("source", noise),
    "shifted": Baseline("source", shifted),
    "cutpaste": Baseline("blended", cutpaste),
}


def write_baseline(
    normals: Normals,
    method: str,
    out: Path,
    num_images: int,
    *,
    seed: int,
    on_image: OnImage | None = None,
) -> Written:
    """Fill `out`/<dataset>/<category> with `num_images` of a method, a key of BASELINES.

    Image i is made of normal image i mod N. Raises UserError as `write_sia`.
    """
    records, images = normals.fit_records, normals.fit
    baseline, grey = BASELINES[method], all_grey(images)

    def make_items(indices: Iterator[int]) -> Iterator[Item]:
        for index in indices:
            n = index % len(images)
            rng = np.random.default_rng(derive_seed(seed, index))
            drawn = baseline.draw(images[n], rng, grey)
            row = {"seed": seed}
            if baseline.draw is not noise:  # which shows nothing of it
                row |= {"normal_file": records[n].path.name}
            yield Item(index, drawn.image, drawn.mask, row)

    category, size = normals.category, list(normals.size)
    config = {"method": method, "seed": seed, "image_size": size, "normals": digest(images)}
    header = SiaHeader(baseline.kind, category.dataset, category.name, config)
    folder = out / category.dataset / category.name
    return write_sia(folder, header, num_images, make_items, on_image=on_image)


# Pieces of CutPaste


def patch_size(H: int, W: int, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of a patch: area share ~ U(AREA), aspect from 1/3.3 to 3.3, half of each."""
    area = rng.uniform(*AREA) * H * W
    aspect = rng.uniform(1, MAX_ASPECT)
    aspect = aspect if rng.random() < 0.5 else 1 / aspect  # width to height
    h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    return min(max(h, 1), H), min(max(w, 1), W)


def jittered(image: Image, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and hue by up to JITTER; grey stays grey."""
    brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3)
    turn = rng.uniform(-JITTER, JITTER) * 360
    levels = image.astype(np.float32) * np.float32(brightness)
    mean = levels.mean()
    levels = np.clip(mean + np.float32(contrast) * (levels - mean), 0, 255) / np.float32(255)
    hsv = cv2.cvtColor(levels, cv2.COLOR_RGB2HSV)  # hue 0..360, saturation and value 0..1
    hsv[..., 0] = (hsv[..., 0] + np.float32(turn)) % 360
    hsv[..., 1] = np.minimum(hsv[..., 1] * np.float32(saturation), 1)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8)
