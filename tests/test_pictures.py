import hashlib
from pathlib import Path

import numpy as np
import pytest

from synth.base.errors import UserError
from synth.images import read_image, resize, write_png
from synth.pictures import SheetRow, all_grey, cell, contact_sheet, digest, load_images


def some_images(num: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 12, 16, 3), dtype=np.uint8)


def test_images_are_loaded_in_order_at_the_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, some_images(), strict=True):
        write_png(path, image)
    told: list[tuple[int, int]] = []
    loaded = load_images(paths[::-1], (8, 10), lambda *state: told.append(state))
    assert loaded.shape == (3, 8, 10, 3)
    for image, path in zip(loaded, paths[::-1], strict=True):
        np.testing.assert_array_equal(image, resize(read_image(path), (8, 10)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    paths[1].write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1\.png"):
        load_images(paths, (8, 10))


def test_grey_means_every_pixel() -> None:
    images = np.repeat(some_images()[..., :1], 3, axis=3)
    assert all_grey(images)
    images[2, 11, 15, 1] ^= 1
    assert not all_grey(images)


def test_a_digest_is_of_the_pixels_whatever_their_strides() -> None:
    images = some_images()
    assert digest(images) == hashlib.sha256(images.tobytes()).hexdigest()[:16]
    assert digest(np.asfortranarray(images)) == digest(images)
    assert digest(images[::-1]) != digest(images)


def test_a_sheet_shows_each_image_in_its_place() -> None:
    images = some_images(2)
    sheet = contact_sheet([SheetRow("", list(images)), SheetRow("", [images[0, ..., 0] > 99])], 12)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[30:42, 6:22], images[0])
    np.testing.assert_array_equal(sheet[30:42, 28:44], images[1])
    np.testing.assert_array_equal(sheet[78:90, 6:22, 0] == 255, images[0, ..., 0] > 99)
    assert (sheet[78:90, 28:] == 255).all()
    assert (sheet[:30] == 255).all()


def test_labels_are_drawn() -> None:
    sheet = contact_sheet([SheetRow("normal", [some_images()[0]])], 48)
    assert (sheet[:30] < 100).any()


def test_enlarged_pixels_stay_squares() -> None:
    image = some_images()[0]
    np.testing.assert_array_equal(cell(image, 36, 0), image.repeat(3, axis=0).repeat(3, axis=1))
