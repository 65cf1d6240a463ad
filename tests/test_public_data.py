"""On the public data sets, where they lie beside the checkout; skipped elsewhere."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.normals import load_normals

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} data beside the checkout")
    return DATA / name


def test_magnetic_tiles_have_the_published_split() -> None:
    category = open_category("mtd", folder("mtd"))
    defects = sum(record.is_anomalous for record in category.test)
    assert (len(category.train), len(category.test) - defects, defects) == (761, 191, 392)


@pytest.mark.parametrize(("dataset", "root"), [("mvtec", "mvtec"), ("folder", "mvtec/bottle")])
def test_the_foreground_of_a_bottle_is_one_disc(dataset: str, root: str) -> None:
    category = open_category(dataset, folder(root), "bottle")
    normals = load_normals(category, (128, 128), no_bars)
    rule = normals.foreground_rule()
    for image in normals.held:
        mask = rule.apply(image)
        pieces, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        _, _, width, height, area = stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax()]
        assert pieces == 2
        assert area / (width * height) == pytest.approx(np.pi / 4, abs=0.03)
        assert width > 90
        assert height > 90
