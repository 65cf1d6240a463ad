"""Images are read as a person sees them, and every broken file is one clear line."""

import errno
import io
import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rights import ordinary_rights

from synth import images
from synth.base.errors import DataWarning, ImageWarning, UserError
from synth.images import (
    check_images,
    list_images,
    read_graded_mask,
    read_image,
    read_mask,
    require_images,
    resize,
    write_atomically,
    write_png,
)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


# Reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".PNG"])
def test_lossless_formats_agree_with_opencv(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), rgb[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_formats_come_close(tmp_path: Path, name: str) -> None:
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    image = np.stack([ramp, ramp.T, ramp // 2], axis=2)
    path = save(tmp_path / name, Image.fromarray(image), quality=98)
    assert np.abs(read_image(path).astype(int) - image).mean() < 3


def test_grey_has_three_equal_channels(tmp_path: Path, rgb: np.ndarray) -> None:
    image = read_image(save(tmp_path / "a.png", Image.fromarray(rgb[:, :, 0])))
    np.testing.assert_array_equal(image, np.repeat(rgb[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_by_257(tmp_path: Path, suffix: str) -> None:
    levels = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), levels)
    image = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image[:, :, 1], np.rint(levels / 257))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("bits", "is_told"), [(12, True), (14, True), (15, False), (16, False)])
def test_values_of_fewer_bits_than_their_file_are_told(
    tmp_path: Path, suffix: str, bits: int, is_told: bool
) -> None:
    levels = np.linspace(0, (1 << bits) - 1, 16 * 16).astype(np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), levels)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image[:, :, 0], np.rint(levels / 257))
    assert [w.category for w in told] == [ImageWarning] * is_told
    for warning in told:
        assert f"a{suffix}: its 16-bit values end at {levels.max()} of 65535" in str(warning)


def test_16_bit_colour_is_within_one_level(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), levels[:, :, ::-1])
    assert np.abs(read_image(tmp_path / "a.png") - levels / 257).max() <= 1


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 12, 4), np.uint8)
    rgba[:, 4:8, 3], rgba[:, 8:, 3] = 51, 255  # clear, a fifth, opaque black
    image = read_image(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert image[0, [0, 5, 9], 0].tolist() == [255, 204, 0]


def test_palette_with_a_clear_entry(tmp_path: Path) -> None:
    indices = np.zeros((8, 8), np.uint8)
    indices[:, 4:] = 1
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([9, 9, 9, 200, 100, 50])
    image = read_image(save(tmp_path / "a.png", palette, transparency=0))
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[0, 7].tolist() == [200, 100, 50]


def test_cmyk_without_ink_is_white(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0))))
    assert image[0, 0].tolist() == [255, 0, 0]
    assert (read_image(save(tmp_path / "b.jpg", Image.new("CMYK", (8, 8)))) == 255).all()


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(tmp_path: Path, rgb: np.ndarray, orientation: int, turn) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(rgb), exif=exif)
    np.testing.assert_array_equal(read_image(path), turn(rgb))


# Broken files


def png_bytes(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def break_file(tmp_path: Path, kind: str) -> Path:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"{kind}.png"
    if kind == "truncated":
        path.write_bytes(png_bytes(noise)[:5000])
    elif kind == "truncated_jpeg":
        path = save(tmp_path / "t.jpg", Image.fromarray(noise))
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "tiny":
        save(path, Image.new("RGB", (1, 1)))
    elif kind == "float":
        path = save(tmp_path / "f.tif", Image.new("F", (9, 9)))
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged or cut short"),
        ("truncated_jpeg", "damaged or cut short"),
        ("empty", "empty"),
        ("text", "not an image; allowed"),
        ("tiny", "1x1 px"),
        ("float", "8-bit or 16-bit"),
        ("folder", "cannot be read"),
        ("missing", "no such file"),
    ],
)
def test_each_broken_file_is_one_line(tmp_path: Path, kind: str, words: str) -> None:
    path = break_file(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        read_image(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("side", [10_001, 20_000])  # above our limit, above Pillow's own
def test_a_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = save(tmp_path / "bomb.png", Image.new("1", (side, side)))
    with pytest.raises(UserError, match="over 100,000,000 pixels; cut it into several files"):
        read_image(path)


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, rgb: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        good = save(tmp_path / f"good{suffix}", Image.fromarray(rgb)).read_bytes()
        for _ in range(40):
            data = bytearray(good)
            for position in rng.integers(0, len(data), 4):
                data[position] = rng.integers(256)
            path = tmp_path / f"bad{suffix}"
            path.write_bytes(data[: rng.integers(1, len(data) + 1)])
            assert len(check_images([path])) <= 1  # a reason or an image, nothing else


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path, rgb: np.ndarray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(rgb))
    before = list(warnings.filters)
    check_images([path] * 20)
    assert warnings.filters == before


# Masks


def test_mask_counts_every_non_zero_level(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 128, 255]] * 8, np.uint8).repeat(2, axis=1)
    mask = read_mask(save(tmp_path / "m.png", Image.fromarray(levels)), (8, 8))
    np.testing.assert_array_equal(mask, levels > 0)
    assert mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("levels", "graded"), [([0, 255], False), ([0, 1], False), ([0], False), ([0, 254, 255], True)]
)
def test_mask_of_several_levels_is_told(tmp_path: Path, levels: list[int], graded: bool) -> None:
    grey = np.resize(np.array(levels, np.uint8), (8, 9))
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("RGB")):
        mask, found = read_graded_mask(save(tmp_path / "m.png", image), (8, 9))
        assert found is graded
        np.testing.assert_array_equal(mask, grey > 0)


def test_mask_of_16_bit_labels_is_not_scaled_away(tmp_path: Path) -> None:
    labels = np.eye(9, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "m.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", None), labels > 0)


def test_mask_of_transparent_pixels_is_normal(tmp_path: Path) -> None:
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, :3, 3] = 0
    mask = read_mask(save(tmp_path / "m.png", Image.fromarray(rgba)), None)
    np.testing.assert_array_equal(mask, rgba[:, :, 3] > 0)


def test_mask_of_another_size_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.new("L", (20, 10)))
    with pytest.raises(UserError, match=r"20x10 px, its image is 30x40 px"):
        read_mask(path, (40, 30))


def test_masks_of_a_folder_are_united(tmp_path: Path) -> None:
    """MVTec LOCO AD: several masks an image, each with the number of its kind of defect."""
    rng = np.random.default_rng(0)
    levels = [(rng.random((9, 8)) < 0.2) * np.uint8(level) for level in (255, 234, 1)]
    for n, grey in enumerate(levels):
        save(tmp_path / f"{n:03d}.png", Image.fromarray(grey))
    mask, graded = read_graded_mask(tmp_path, (9, 8))
    for y, x in np.ndindex(9, 8):
        assert mask[y, x] == (max(grey[y, x] for grey in levels) > 0)
    assert graded is False
    np.testing.assert_array_equal(read_mask(tmp_path, (9, 8)), mask)
    save(tmp_path / "001.png", Image.new("L", (8, 8)))
    with pytest.raises(UserError, match=r"001\.png: the mask is 8x8 px, its image is 8x9 px"):
        read_mask(tmp_path, (9, 8))


def test_jpeg_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save it as PNG"):
        read_mask(save(tmp_path / "m.jpg", Image.new("L", (9, 9))), None)


# Resizing


def test_shrinking_averages_whole_blocks(rgb: np.ndarray) -> None:
    blocks = rgb.reshape(10, 2, 15, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(rgb, (10, 15)) - blocks).max() <= 0.5


def test_growing_stays_between_the_neighbours() -> None:
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 200
    grown = resize(edge, (16, 16))
    assert grown.max() == 200
    assert (np.diff(grown[0, :, 0].astype(int)) >= 0).all()


def test_one_axis_shrinks_while_the_other_grows(rgb: np.ndarray) -> None:
    mixed = resize(rgb, (40, 15))
    expected = resize(resize(rgb, (20, 15)), (40, 15))
    np.testing.assert_array_equal(mixed, expected)
    assert mixed.shape == (40, 15, 3)


def test_same_size_is_the_same_image(rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(resize(rgb, rgb.shape[:2]), rgb)


def test_size_zero_is_refused(rgb: np.ndarray) -> None:
    with pytest.raises(UserError, match="1 or more"):
        resize(rgb, (0, 4))


# Listing and checking


def test_listing_is_sorted_and_knows_its_suffixes(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "sub/c.bmp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.jpg", "b.PNG"]
    assert len(list_images(tmp_path, recursive=True)) == 3


def test_linked_folders_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "root")
    assert list_images(tmp_path / "root", recursive=True) == [tmp_path / "root/link/a.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / "a/b.png").touch()
    (tmp_path / "a/deep").chmod(0)
    with ordinary_rights():
        assert list_images(tmp_path / "a") == [tmp_path / "a/b.png"]
        for folder, recursive in ((tmp_path / "a", True), (tmp_path / "a/deep", False)):
            with pytest.raises(UserError, match=r"a/deep: the folder cannot be read \(Permission"):
                list_images(folder, recursive)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    paths = list_images(tmp_path)
    with pytest.raises(UserError, match=r"a\.png: a link to .*gone\.png, which is not there"):
        require_images(paths)


def test_images_of_other_formats_are_counted(tmp_path: Path) -> None:
    for name in ("b.heic", "a/c.HEIC", "d.gif", "clip.mp4", "notes.txt", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    words = rf"3 of 4 images are left out, the first: {tmp_path}/a/c\.HEIC; only \.png, .* are read"
    with pytest.warns(DataWarning, match=words):
        assert list_images(tmp_path, recursive=True) == [tmp_path / "e.png"]
    (tmp_path / "d.gif").unlink()
    (tmp_path / "b.heic").unlink()
    assert list_images(tmp_path) == [tmp_path / "e.png"]  # without a warning


def test_listing_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "absent")


def test_check_finds_what_only_decoding_shows(tmp_path: Path, rgb: np.ndarray) -> None:
    good = save(tmp_path / "good.png", Image.fromarray(rgb))
    bad = [break_file(tmp_path, kind) for kind in ("truncated", "empty")]
    calls: list[tuple[int, int]] = []
    broken = check_images([good, *bad, good], progress=lambda *done: calls.append(done))
    assert [item.path for item in broken] == bad
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_require_names_the_first_and_the_count(tmp_path: Path, rgb: np.ndarray) -> None:
    good = save(tmp_path / "good.png", Image.fromarray(rgb))
    require_images([good])
    bad = [break_file(tmp_path, kind) for kind in ("empty", "text")]
    with pytest.raises(UserError, match=r"^2 of 3 images cannot be read, the first: .*empty\.png"):
        require_images([good, *bad])


# Writing


@pytest.mark.parametrize("kind", ["rgb", "grey", "mask"])
def test_written_png_reads_back(tmp_path: Path, rgb: np.ndarray, kind: str) -> None:
    image = {"rgb": rgb, "grey": rgb[:, :, 0], "mask": rgb[:, :, 0] > 99}[kind]
    path = tmp_path / "deep" / "a.png"
    write_png(path, image)
    expected = image * np.uint8(255) if kind == "mask" else image
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert os.listdir(path.parent) == ["a.png"]


class FullDisk(io.BytesIO):
    def write(self, data) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    real_open = Path.open

    def half_open(self: Path, mode: str = "r") -> io.BytesIO:
        with real_open(self, mode) as file:
            file.write(b"half")
        return FullDisk()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half_open)
        with pytest.raises(UserError, match="the disk is full"):
            write_png(path, rgb)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose a folder that can be written to"):
        write_atomically(tmp_path / "file" / "a.png", b"")


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() for suffix in images.SUFFIXES)
