"""The default dataset: three texture photographs with painted defects, made on this machine.

scikit-image's wheel carries photographs of brick, grass and gravel (512 px, grey). Crops of them
are the normal images; plainly drawn defects are the anomalies. It needs no download, so it serves
for a first run and for tests. It is NOT evidence about real products: three photographs, one view
each, crops that overlap among themselves, and defects that one program drew.

Crops to train on lie in a photograph's middle columns (128 to 320), all others right of them: no
pixel of a held-out or a test crop is trained on. Held-out and test crops are drawn alike, because a
threshold's promise is for images that come as the held-out ones do; they overlap among themselves,
as all crops do. Half the crops are mirrored, because the brick joints lean one way on the left and
the other way on the right. Each crop has its own small gain and offset, as lamps and exposure
drift in production. The painters share nothing with the synthesis code, or a detector trained on
synthesised anomalies would be tested on its own kind.

Written as an MVTec tree: train/good (240), test/good (60), test/<defect> (5 x 20), and masks.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
from numpy.typing import ArrayLike, NDArray

from synth.base.cache import cache_folder
from synth.base.errors import UserError
from synth.images import write_atomically, write_png

VERSION = "siaforge textures 3\n"  # new number where any byte of the tree changes
MARKER = "textures_version.txt"
CROP_PX = 128
FIT_COLUMNS = (128, 320)
OTHER_COLUMNS = (320, 512)  # held-out and test crops
NUM_TRAIN, NUM_TEST_GOOD, NUM_PER_DEFECT = 240, 60, 20
NUM_FIT = 216  # of NUM_TRAIN, those that are not held out
SEED = 2024

Grey = NDArray[np.float32]  # [H, W], levels 0..255 or weights 0..1
Point = NDArray[np.float64]  # (x, y) in pixels
Generator = np.random.Generator

PHOTOGRAPHS: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "brick": skimage.data.brick,
    "grass": skimage.data.grass,
    "gravel": skimage.data.gravel,
}


class Paint(NamedTuple):
    """What a painter lays on a crop: levels [H, W] in 0..255 and weights [H, W] in 0..1."""

    level: Grey
    weight: Grey


class Defect(NamedTuple):
    """A clean crop, the same crop with its defect (uint8 [H, W]), and the mask (bool [H, W])."""

    clean: NDArray[np.uint8]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


# Writing the tree


def default_root() -> Path:
    """Where the textures are written: `cache_folder()`/textures."""
    return cache_folder() / "textures"


def write_textures(root: Path, category: str) -> Path:
    """Write `category` below `root` unless this version is there already; return its folder.

    The tree appears whole or not at all; the same version gives the same pixels everywhere. A tree
    of another version is replaced. Raises UserError for an unknown category, for a folder of that
    name without our version marker, and where the disk is full.
    """
    if category not in PHOTOGRAPHS:
        raise UserError(f"category: no texture {category!r}; allowed: {', '.join(PHOTOGRAPHS)}")
    target = root / category
    if _is_current(target):
        return target
    if target.exists() and not (target / MARKER).is_file():
        raise UserError(f"{target}: is there and not a texture dataset; choose another root")
    temporary = root / f".{category}.{uuid.uuid4().hex}"
    try:
        _write_tree(temporary, category)
        _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _is_current(target: Path) -> bool:
    marker = target / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == VERSION


def _move_into_place(made: Path, target: Path) -> None:
    if _is_current(target):  # another process was faster, with the same tree
        return
    old = made.with_name(f"{made.name}.old")
    try:
        if target.exists():
            target.rename(old)
        made.rename(target)
    except OSError:
        if not _is_current(target):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_tree(folder: Path, category: str) -> None:
    for index in range(NUM_TRAIN):
        write_png(folder / f"train/good/{index:03d}.png", train_crop(category, index))
    for index in range(NUM_TEST_GOOD):
        write_png(folder / f"test/good/{index:03d}.png", test_crop(category, index))
    for name in PAINTERS:
        for index in range(NUM_PER_DEFECT):
            defect = defect_crop(category, name, index)
            write_png(folder / f"test/{name}/{index:03d}.png", defect.image)
            write_png(folder / f"ground_truth/{name}/{index:03d}_mask.png", defect.mask)
    write_atomically(folder / MARKER, VERSION.encode())


# Crops


def train_crop(category: str, index: int) -> NDArray[np.uint8]:
    """Cut normal training crop `index`: uint8 [128, 128]; from NUM_FIT on, crops to hold out."""
    columns = FIT_COLUMNS if index < NUM_FIT else OTHER_COLUMNS
    return _crop(category, columns, _generator(category, 0, index))


def test_crop(category: str, index: int) -> NDArray[np.uint8]:
    """Cut normal test crop `index`: uint8 [128, 128]."""
    return _crop(category, OTHER_COLUMNS, _generator(category, 1, index))


def defect_crop(category: str, name: str, index: int) -> Defect:
    """Cut test crop `index` and paint a defect of type `name` on it (a key of PAINTERS).

    The mask is where the painter's weight is not zero: outside it the crop is untouched to the bit;
    inside it single pixels may happen to keep their level.
    """
    rng = _generator(category, 2 + list(PAINTERS).index(name), index)
    clean = _crop(category, OTHER_COLUMNS, rng)
    paint = PAINTERS[name](clean.astype(np.float32), rng)
    mixed = clean * (1 - paint.weight) + np.clip(paint.level, 0, 255) * paint.weight
    return Defect(clean, np.rint(mixed).astype(np.uint8), paint.weight > 0)


def _generator(category: str, group: int, index: int) -> Generator:
    return np.random.default_rng([SEED, list(PHOTOGRAPHS).index(category), group, index])


def _crop(category: str, columns: tuple[int, int], rng: Generator) -> NDArray[np.uint8]:
    region = PHOTOGRAPHS[category]()[:, columns[0] : columns[1]]
    top = rng.integers(region.shape[0] - CROP_PX + 1)
    left = rng.integers(region.shape[1] - CROP_PX + 1)
    crop = region[top : top + CROP_PX, left : left + CROP_PX].astype(np.float32)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    lit = crop * rng.uniform(0.93, 1.07) + rng.uniform(-6, 6)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


# Painters


def scratch(crop: Grey, rng: Generator) -> Paint:
    """Paint one to three thin strokes of varying width, brighter or darker than the ground."""
    weight = np.zeros_like(crop)
    heading = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        weight = np.maximum(weight, _stroke(crop.shape, heading + rng.normal(0, 0.2), rng))
    contrast = rng.uniform(60, 120) * _visible_sign(crop[weight > 0], rng)
    return Paint(crop + contrast, weight)


def stain(crop: Grey, rng: Generator) -> Paint:
    """Paint a soft-edged blotch of several lobes: a dark stain or a light film."""
    radius = rng.uniform(7, 18)
    centre = _centre(crop.shape, radius, rng)
    lobes = np.zeros_like(crop)
    for _ in range(rng.integers(3, 7)):
        offset = rng.normal(0, 0.5 * radius, 2)
        lobes = np.maximum(lobes, _blob(crop.shape, centre + offset, 0.7 * radius, rng))
    weight = _cut(_blur(lobes, rng.uniform(1.5, 3)))
    if rng.random() < 0.6:
        return Paint(crop * rng.uniform(0.35, 0.6), weight)
    veil = rng.uniform(0.35, 0.6)
    return Paint(crop * (1 - veil) + rng.uniform(215, 245) * veil, weight)


def hole(crop: Grey, rng: Generator) -> Paint:
    """Paint a dark pit whose rim is lit on one side and shaded on the other."""
    radius = rng.uniform(3.5, 10)
    centre = _centre(crop.shape, radius, rng)
    pit = _blob(crop.shape, centre, radius, rng)
    rim_px = int(rng.integers(2, 4))
    rim = _grey(cv2.dilate(pit, np.ones((2 * rim_px + 1, 2 * rim_px + 1), np.uint8)))
    rows, columns = np.indices(crop.shape, np.float32)
    angle = np.arctan2(rows - centre[1], columns - centre[0])
    lit = crop + rng.uniform(40, 70) * np.cos(angle - rng.uniform(0, 2 * np.pi))
    floor = rng.uniform(5, 35) + 0.12 * crop
    inside = _blur(pit, 0.8)
    level = lit * (1 - inside) + floor * inside
    return Paint(_grey(level), _cut(_blur(rim, 0.7)))


def displaced(crop: Grey, rng: Generator) -> Paint:
    """Paint a piece broken off, turned and shifted, tilted to the light, in a dark gap."""
    radius = rng.uniform(11, 22)
    centre = _centre(crop.shape, radius, rng)
    piece = _polygon(crop.shape, centre, radius, int(rng.integers(4, 7)), rng)
    turn = rng.uniform(30, 150) * rng.choice([-1, 1])
    motion = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), turn, 1.0)
    motion[:, 2] += rng.uniform(-25, 25, 2)
    size = (crop.shape[1], crop.shape[0])
    moved = cv2.warpAffine(crop, motion, size, borderMode=cv2.BORDER_REFLECT)
    tilt = rng.uniform(0.6, 0.8) if rng.random() < 0.5 else rng.uniform(1.2, 1.45)
    inner = _blur(_grey(cv2.erode(piece, np.ones((5, 5), np.uint8))), 0.7)
    gap = rng.uniform(0.2, 0.4)
    return Paint(_grey(tilt * moved * (gap + (1 - gap) * inner)), piece)


def flattened(crop: Grey, rng: Generator) -> Paint:
    """Paint an area worn smooth: texture blurred away, a little lighter or darker."""
    radius = rng.uniform(9, 20)
    area = _blob(crop.shape, _centre(crop.shape, radius, rng), radius, rng)
    smooth = _blur(crop, rng.uniform(4, 8)) + rng.uniform(10, 22) * rng.choice([-1, 1])
    return Paint(smooth + rng.uniform(0, 0.15) * (crop - smooth), _cut(_blur(area, 1.2)))


PAINTERS: dict[str, Callable[[Grey, Generator], Paint]] = {
    "scratch": scratch,
    "stain": stain,
    "hole": hole,
    "displaced": displaced,
    "flattened": flattened,
}


# Shapes


def _stroke(shape: tuple[int, ...], heading: float, rng: Generator) -> Grey:
    """Draw a wandering polyline [H, W] in 0..1, 1 to 3 px wide."""
    canvas = np.zeros(shape, np.uint8)
    point = rng.uniform(0.2, 0.8, 2) * (shape[1], shape[0])
    step = rng.uniform(5, 10)
    for width in np.clip(2 + np.cumsum(rng.normal(0, 0.5, rng.integers(5, 11))), 1, 3):
        heading += rng.normal(0, 0.2)
        end = point + step * np.array([np.cos(heading), np.sin(heading)])
        cv2.line(canvas, _pixel(point), _pixel(end), 255, round(width), cv2.LINE_AA)
        point = end
    return _cut(_grey(canvas / 255))


def _blob(shape: tuple[int, ...], centre: Point, radius: float, rng: Generator) -> Grey:
    """Fill a round outline with bumps [H, W] in {0, 1}."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = np.arange(2, 6)
    phases = rng.uniform(0, 2 * np.pi, waves.size)
    bumps = np.cos(np.outer(angles, waves) + phases) @ (rng.uniform(0, 0.35, waves.size) / waves)
    return _filled(shape, centre, radius * (1 + bumps), angles)


def _polygon(
    shape: tuple[int, ...], centre: Point, radius: float, corners: int, rng: Generator
) -> Grey:
    """Fill a polygon with uneven corners [H, W] in {0, 1}."""
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    return _filled(shape, centre, radius * rng.uniform(0.75, 1.1, corners), angles)


def _filled(
    shape: tuple[int, ...],
    centre: Point,
    radii: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> Grey:
    outline = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(outline).astype(np.int32)], 1)
    return _grey(canvas)


def _centre(shape: tuple[int, ...], radius: float, rng: Generator) -> Point:
    """Draw the centre of a shape that stays inside the crop for the most part."""
    H, W = shape
    return rng.uniform([radius, radius], [W - radius, H - radius])


def _pixel(point: Point) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _blur(field: Grey, sigma_px: float) -> Grey:
    return _grey(cv2.GaussianBlur(field, (0, 0), sigma_px))


def _grey(field: ArrayLike) -> Grey:
    return np.asarray(field, np.float32)


def _cut(weight: Grey) -> Grey:
    """Set weights below 0.15 to zero: what cannot be seen is not labelled."""
    return np.where(weight < 0.15, np.float32(0), weight)


def _visible_sign(ground: Grey, rng: Generator) -> float:
    """Brighter (+1) on dark ground, darker (-1) on light ground, either between."""
    mean = float(ground.mean())
    if 100 < mean < 155:
        return float(rng.choice([-1, 1]))
    return 1.0 if mean <= 100 else -1.0
