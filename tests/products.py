"""A tiny product on disk: grey noise that is normal, bright squares that are defects."""

from pathlib import Path

import numpy as np

from detect.data.sources import AnomalySource, Part, open_source
from synth.base.progress import no_bars
from synth.images import write_png
from synth.sia.reader import Item, SiaHeader, write_sia

SIZE = (32, 32)


def load_source(*parts: Part, size=SIZE, grey=False) -> AnomalySource:
    """Open and load an anomaly source."""
    return open_source(parts).load(size, grey, no_bars)


draw_noise = load_source(Part("noise"))


def normal_image(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A grey image with a little noise of its own, uint8 [H, W, 3]."""
    rng = np.random.default_rng(number)
    grey = rng.integers(100, 140, size, dtype=np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def write_product(root: Path, num_train: int = 10, num_test: int = 4) -> Path:
    """train/good, test/good, test/spot and ground_truth/spot; as MVTec AD."""
    for n in range(num_train):
        write_png(root / f"train/good/{n:03d}.png", normal_image(n))
    for n in range(num_test):
        write_png(root / f"test/good/{n:03d}.png", normal_image(1000 + n))
        image, mask = normal_image(2000 + n), np.zeros(SIZE, np.bool_)
        mask[8 + n : 16 + n, 8:16] = True
        image[mask] = 250
        write_png(root / f"test/spot/{n:03d}.png", image)
        write_png(root / f"ground_truth/spot/{n:03d}_mask.png", mask)
    return root


def write_sources(folder: Path, category: str = "widget", num: int = 6) -> Path:
    """An SIA folder of uniformly coloured anomaly images."""

    def items(indices):
        for i in indices:
            colour = np.random.default_rng(i).integers(0, 256, 3, dtype=np.uint8)
            image = np.broadcast_to(colour, (*SIZE, 3)).copy()
            yield Item(i, image, None, {"seed": 0, "strength": 0.1, "num_steps": 20})

    config = {"method": "sdas", "strength": [0.1, 0.2], "num_steps": 20, "seed": 0}
    write_sia(folder, SiaHeader("source", "folder", category, config), num, items)
    return folder
