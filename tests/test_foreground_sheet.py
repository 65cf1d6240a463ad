from pathlib import Path

import numpy as np
import pytest

from synth.data.catalog import Category, Record
from synth.data.foreground import EVERYTHING, ForegroundRule
from synth.data.normals import Normals
from synth.quality.foreground_sheet import (
    CELL_PX,
    EDGE,
    OUTLINE,
    foreground_sheet,
    outline,
    rule_in_words,
)


def normals(images: np.ndarray, dataset: str = "folder", name: str = "disc") -> Normals:
    records = [Record(Path(f"{n}.png"), "train", "good", None) for n in range(len(images))]
    category = Category(dataset, name, tuple(records))
    return Normals(category, records[1:], images[1:], records[:1], images[:1])


def discs(num: int) -> np.ndarray:
    """Bright discs of growing size on a dark ground."""
    y, x = np.mgrid[:64, :64]
    radii = np.linspace(14, 24, num)
    grey = np.stack([np.where(np.hypot(y - 32, x - 32) < r, 200, 30) for r in radii])
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=3)


def test_the_share_of_each_image_and_the_extremes() -> None:
    images = discs(20)
    found = foreground_sheet(normals(images))
    assert found.rule.endswith("; fitted to 16 of the training images")
    expected = (images[1:, :, :, 0] == 200).mean(axis=(1, 2))
    assert found.shares == pytest.approx(expected, abs=0.03)
    assert found.sheet.shape[0] == 4 * (30 + CELL_PX + 6 + 22)


def test_a_texture_needs_no_extremes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    found = foreground_sheet(normals(noise))
    assert found.rule == "the whole image; fitted to 4 of the training images"
    assert (found.shares == 1).all()
    assert found.sheet.shape[0] == 2 * (30 + CELL_PX + 6 + 22)


def test_the_table_is_named() -> None:
    found = foreground_sheet(normals(discs(4), "mvtec", "bottle"))
    assert found.rule == (
        "the dark side of the grey channel's otsu threshold, gaps closed by 6 px, specks below "
        "6 px removed (at image size 256); from RealNet's table"
    )


def test_the_outline_lies_on_the_border_and_the_outside_is_darker() -> None:
    image = np.full((CELL_PX, CELL_PX, 3), 200, np.uint8)
    mask = np.zeros((CELL_PX, CELL_PX), np.bool_)
    mask[40:80, 40:80] = True
    drawn = outline(image, mask)
    assert (drawn[60, 60] == 200).all()
    assert (drawn[10, 10] == 110).all()
    np.testing.assert_array_equal(drawn[60, 40], OUTLINE)
    np.testing.assert_array_equal(drawn[60, 41], EDGE)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (EVERYTHING, "the whole image"),
        (
            ForegroundRule(method="background", distance=12.5, fill_holes=True),
            "what is farther than 12.5 Lab units from the colour of the image's border, holes "
            "filled",
        ),
        (
            ForegroundRule(method="triangle", channel="blue"),
            "the bright side of the blue channel's triangle threshold",
        ),
    ],
)
def test_rules_in_words(rule: ForegroundRule, words: str) -> None:
    assert rule_in_words(rule) == words
