"""Normal images in memory: copies stay on one side, and too many are refused in time."""

import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

from synth.base.errors import DataWarning, UserError
from synth.base.progress import no_bars
from synth.data.catalog import held_out, open_category
from synth.data.foreground import MAX_FIT_IMAGES
from synth.data.normals import load_normals, require_memory, spread
from synth.images import write_png

SIZE = (16, 16)


@pytest.mark.parametrize("count", [1, 5, 16, 17, 31, 47, 400])
def test_a_few_images_are_taken_from_the_whole_range(count: int) -> None:
    few = spread(count)
    assert len(few) == len(set(few)) == min(count, MAX_FIT_IMAGES)
    gaps = [b - a for a, b in zip(few, [*few[1:], count], strict=True)]
    assert few[0] == 0
    assert max(gaps) - min(gaps) <= 1


def folder(root: Path, pictures: list[int]) -> Path:
    """Image n shows picture pictures[n]."""
    for n, picture in enumerate(pictures):
        levels = np.random.default_rng(picture).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        write_png(root / f"{n:03d}.png", levels)
    return root


def names(records) -> list[str]:
    return [record.path.name for record in records]


def test_without_copies_the_split_is_the_catalogs(tmp_path: Path) -> None:
    category = open_category("folder", folder(tmp_path, list(range(30))))
    normals = load_normals(category, SIZE, no_bars)
    fit, held = held_out(category)
    assert names(normals.fit_records) == names(fit)
    assert names(normals.held_records) == names(held)


def test_copies_are_held_out_together_or_not_at_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [int(picture) for picture in rng.permutation([*range(20)] * 3)]
    category = open_category("folder", folder(tmp_path, pictures))
    with pytest.warns(DataWarning, match=r"40 of 60 .* are copies of others, the first: "):
        normals = load_normals(category, SIZE, no_bars)
    fit = {image.tobytes() for image in normals.fit}
    held = {image.tobytes() for image in normals.held}
    assert not fit & held
    assert (len(fit), len(held)) == (18, 2)  # of 20 different pictures
    assert len(normals.fit) + len(normals.held) == 60
    for records, images in (
        (normals.fit_records, normals.fit),
        (normals.held_records, normals.held),
    ):
        for record, image in zip(records, images, strict=True):
            own = pictures[int(record.path.stem)]
            expected = np.random.default_rng(own).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            np.testing.assert_array_equal(image, expected)


def test_one_picture_many_times_is_one_image(tmp_path: Path) -> None:
    category = open_category("folder", folder(tmp_path, [7] * 5))
    with pytest.raises(UserError, match="all 5 training images show the same picture as "):
        load_normals(category, SIZE, no_bars)


def test_one_image_is_too_few(tmp_path: Path) -> None:
    category = open_category("folder", folder(tmp_path, [7]))
    with pytest.raises(UserError, match="got 1 training image; 2 or more are needed"):
        load_normals(category, SIZE, no_bars)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    category = open_category("folder", folder(tmp_path, [1, 2, 3]))
    with pytest.raises(UserError, match=r"3 images of 2000000 x 2000000 px take 33527\.6 GiB"):
        load_normals(category, (2_000_000, 2_000_000), no_bars)
    free = psutil.virtual_memory()._replace(available=3 * 16 * 16 * 3)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with warnings.catch_warnings():
        require_memory(3, SIZE)
    with pytest.raises(UserError, match="4 images of 16 x 16 px"):
        require_memory(4, SIZE)
