"""Files that Pillow opens without a word: read as a viewer shows them, or refused by name.

Kinds: TIFF_KINDS (depth, byte order, planes, tiles, photometric, alpha, spare samples, palette,
sign, fractions, turned); BMP of 16 and 32 bits; several pictures in a file; masks; lists; names;
folders named after what they hold. PNG, JPEG and WebP, palettes, inks and damage: test_images.py.
"""

import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from commands import Command
from PIL import Image
from products import write_product

from detect.commands.shared import with_listed
from detect.evaluation.testset import open_test_set
from detect.prediction.inputs import files_at
from synth.base.errors import ImageWarning, UserError
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.images import list_images, read_image, read_mask, write_png

GREY = np.linspace(0, 65535, 20 * 24).reshape(20, 24).astype(np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def levels(values: np.ndarray) -> np.ndarray:
    """16 bits as 8."""
    return np.rint(values / 257).astype(np.uint8)


def seen(path: Path) -> np.ndarray | None:
    """The pixels, or None where they are refused."""
    try:
        return read_image(path)
    except UserError:
        return None


# Pixels


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero_is_seen_inverted(tmp_path, byteorder, compression):
    path = tmp_path / "a.tif"
    for values in (GREY, levels(GREY)):
        options = {"byteorder": byteorder, "compression": compression}
        tifffile.imwrite(path, values, photometric="miniswhite", **options)
        found = read_image(path)
        want = levels(65535 - GREY)
        np.testing.assert_allclose(found[..., 0].astype(int), want.astype(int), atol=1)


SHAPES = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
RGB = np.asarray(cv2.resize(SHAPES, (24, 20)), np.uint8)
GREY8 = RGB[..., 0]
ALPHA = np.full_like(GREY8, 255)
ALPHA[:, :12] = 128
SHARE = ALPHA[..., None] / 255


def deep(values: np.ndarray) -> np.ndarray:
    """8 bits as 16."""
    return values.astype(np.uint16) * 257


def tripled(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


ON_WHITE = np.rint(RGB * SHARE + 255 * (1 - SHARE))
PREMULTIPLIED = np.rint(RGB * SHARE).astype(np.uint8)
RAMP = np.stack([np.arange(256), 255 - np.arange(256), np.zeros(256)]).astype(np.uint16) * 257
IS_BRIGHT = GREY8 > 128
SEPARATE = {"planarconfig": "separate"}
TIFF_KINDS: dict[
    str, tuple[Any, dict[str, Any], Any]
] = {  # pixels as stored, how, what a viewer shows (None: refused)
    "colour": (RGB, {}, RGB),
    "colour, big-endian": (RGB, {"byteorder": ">"}, RGB),
    "colour, 16 bits": (deep(RGB), {}, RGB),
    "colour, 16 bits, big-endian": (deep(RGB), {"byteorder": ">"}, RGB),
    "colour in planes": (RGB.transpose(2, 0, 1), SEPARATE, RGB),
    "colour in tiles": (RGB, {"tile": (16, 16)}, RGB),
    "colour, 64-bit offsets": (RGB, {"bigtiff": True}, RGB),
    "turned": (RGB, {"extratags": [(274, 3, 1, 6, False)]}, np.rot90(RGB, -1)),
    "grey, 16 bits, differences": (
        deep(GREY8),
        {"compression": "zlib", "predictor": True},
        tripled(GREY8),
    ),
    "alpha": (np.dstack([RGB, ALPHA]), {"extrasamples": ["unassalpha"]}, ON_WHITE),
    "alpha, 16 bits": (deep(np.dstack([RGB, ALPHA])), {"extrasamples": ["unassalpha"]}, ON_WHITE),
    "premultiplied": (
        np.dstack([PREMULTIPLIED, ALPHA]),
        {"extrasamples": ["assocalpha"]},
        ON_WHITE,
    ),
    "a fourth sample": (np.dstack([RGB, ALPHA]), {"extrasamples": ["unspecified"]}, RGB),
    "five samples": (np.dstack([RGB, ALPHA, ALPHA]), {"extrasamples": ["unspecified"] * 2}, RGB),
    "inks": (
        255 - np.dstack([RGB, np.full_like(GREY8, 255)]),
        {"photometric": "separated"},
        RGB,
    ),
    "palette": (
        GREY8,
        {"photometric": "palette", "colormap": RAMP},
        np.dstack([GREY8, 255 - GREY8, 0 * GREY8]),
    ),
    "one bit": (IS_BRIGHT, {}, tripled(255 * IS_BRIGHT)),
    "one bit, white is zero": (~IS_BRIGHT, {"photometric": "miniswhite"}, tripled(255 * IS_BRIGHT)),
    "colour in planes, 16 bits": (deep(RGB.transpose(2, 0, 1)), SEPARATE, None),
    "fractions": (np.float32(GREY8 / 255), {}, None),
    "fractions, 64 bits": (GREY8 / 255, {}, None),
    "fractions in colour": (np.float32(RGB / 255), {}, None),
    "32 bits": (GREY8.astype(np.uint32) << 24, {}, None),
    "32 bits in colour": (RGB.astype(np.uint32) << 24, {}, None),
    "complex numbers": (GREY8.astype(np.complex64), {}, None),
    "CIELAB": (RGB, {"photometric": "cielab"}, None),
    "two bands in planes": (
        np.stack([GREY8, ALPHA]),
        {"photometric": "minisblack", **SEPARATE},
        None,
    ),
    "five bands": (np.dstack([GREY8] * 5), {"planarconfig": "contig"}, None),
}


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_a_tiff_is_read_as_a_viewer_shows_it_or_refused(tmp_path, kind):
    values, options, want = TIFF_KINDS[kind]
    photometric = "rgb" if values.shape[-1] in (3, 4) or values.shape[0] == 3 else "minisblack"
    if "extrasamples" in options:
        photometric = "rgb"
    tifffile.imwrite(tmp_path / "a.tif", values, **({"photometric": photometric} | options))
    got = seen(tmp_path / "a.tif")
    assert (got is None) == (want is None)
    if got is not None:
        np.testing.assert_allclose(got.astype(int), want.astype(int), atol=1)


def bitmap(bits: int, rows: bytes, height: int, masks: bytes = b"") -> bytes:
    """A BMP of 24 pixels a row."""
    header = struct.pack("<IiiHHIIiiII", 40, 24, height, 1, bits, 3 if masks else 0, *[0] * 5)
    start = 14 + len(header) + len(masks)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + masks + rows


def test_bitmaps_of_16_and_32_bits(tmp_path):
    spare = np.dstack([RGB[..., ::-1], 0 * GREY8])  # the fourth byte means nothing
    red, green, blue = (RGB.astype(np.uint16) >> [3, 2, 3]).transpose(2, 0, 1)
    packed = (red << 11 | green << 5 | blue)[::-1].astype("<u2").tobytes()
    files = {
        "spare": (bitmap(32, spare[::-1].tobytes(), 20), 0),
        "top down": (bitmap(32, spare.tobytes(), -20), 0),
        "565": (bitmap(16, packed, 20, struct.pack("<III", 0xF800, 0x7E0, 0x1F)), 8),
    }
    for name, (data, tolerance) in files.items():
        path = tmp_path / f"{name}.bmp"
        path.write_bytes(data)
        got = seen(path)
        assert got is not None, name
        np.testing.assert_allclose(got.astype(int), RGB.astype(int), atol=tolerance, err_msg=name)


def test_a_mask_whose_white_is_zero_is_seen_inverted(tmp_path):
    values = np.full((20, 24), 65535, np.uint16)
    values[3:9, 4:8] = 0  # shown white
    tifffile.imwrite(tmp_path / "mask.tif", values, photometric="miniswhite")
    mask = read_mask(tmp_path / "mask.tif", (20, 24))
    assert mask.sum() == 6 * 4
    assert mask[3:9, 4:8].all()


def test_colours_in_planes_are_read_or_refused(tmp_path):
    apart = np.moveaxis(COLOUR, 2, 0)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "16.tif", apart, **options)
    with pytest.raises(UserError, match="16-bit colours in planes of their own"):
        read_image(tmp_path / "16.tif")
    tifffile.imwrite(tmp_path / "8.tif", levels(apart), **options)
    np.testing.assert_array_equal(read_image(tmp_path / "8.tif"), levels(COLOUR))
    tifffile.imwrite(tmp_path / "together.tif", COLOUR, photometric="rgb")
    found = read_image(tmp_path / "together.tif").astype(int)
    np.testing.assert_allclose(found, levels(COLOUR).astype(int), atol=1)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_signed_pixels_are_refused_as_such(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", (GREY // 1024).astype(dtype), photometric="minisblack")
    with pytest.raises(UserError, match=r"a\.tif: pixels are signed numbers"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_are_told_of_in_every_mode(tmp_path, name, channels):
    values = (COLOUR if channels == 3 else GREY) // 16
    cv2.imwrite(str(tmp_path / name), values)
    with pytest.warns(ImageWarning, match=r"end at (38|40).. of 65535"):
        assert read_image(tmp_path / name).max() <= 16


def test_what_is_wholly_transparent_is_refused(tmp_path):
    pixels = np.full((20, 24, 4), 99, np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="wholly transparent"):
        read_image(tmp_path / "a.png")
    pixels[4, 4, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").min() == 99


# Several pictures


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_a_file_of_several_pictures_is_refused_with_their_number(tmp_path, name):
    frames = [Image.fromarray(np.full((20, 24, 3), n * 60, np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="holds 3 pictures, of which one only would be seen"):
        read_image(tmp_path / name)


def test_a_preview_in_the_file_is_no_picture_of_its_own(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(levels(GREY), photometric="minisblack")
        file.write(levels(GREY)[::2, ::2], photometric="minisblack", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], levels(GREY))


# Masks, lists, names


def test_masks_that_cover_most_of_an_image_and_turned_images_are_told_of(tmp_path):
    root = write_product(tmp_path / "widget", num_train=4)
    test = open_test_set(open_category("folder", root), no_bars)
    assert not test.cautions()
    masks = sorted((root / "ground_truth").rglob("*.png"))
    inverted = ~read_mask(masks[0], None)
    write_png(masks[0], inverted)
    first = next(record for record in test.records if record.mask_path == masks[1])
    image = Image.open(first.path)
    exif = image.getexif()
    exif[274] = 3
    image.save(first.path, exif=exif)
    cautions = open_test_set(open_category("folder", root), no_bars).cautions()
    assert len(cautions) == 2
    assert f"1 masks cover more than half of their image, the first: {masks[0]}" in cautions[0]
    assert (
        f"1 test images with masks are turned by their EXIF orientation, the first: {first.path}"
        in cautions[1]
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_as_windows_writes_it(monkeypatch, encoding):
    class Stdin:
        class buffer:
            @staticmethod
            def read() -> bytes:
                return "ä 1.png\r\nb.png\r\n".encode(encoding)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert with_listed([Path("-")]) == [Path("ä 1.png"), Path("b.png")]


def test_brackets_in_a_name_come_before_brackets_in_a_pattern(tmp_path):
    folder = tmp_path / "run [batch 1]"
    for path in (folder / "a.png", tmp_path / "1.png", tmp_path / "2.png"):
        write_png(path, np.zeros((8, 8), np.uint8))
    assert files_at(folder / "*.png") == [folder / "a.png"]
    assert files_at(tmp_path / "[12].png") == [tmp_path / "1.png", tmp_path / "2.png"]
    with pytest.raises(UserError, match="matches no image or video, with its brackets as they are"):
        files_at(tmp_path / "[34].png")


def test_thumbnails_of_storage_devices_are_left_out(tmp_path):
    for name in ("a.png", "@eaDir/a.png", "deep/@eaDir/b.png", "__MACOSX/c.png", "deep/d.png"):
        write_png(tmp_path / name, np.zeros((8, 8), np.uint8))
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, True)]
    assert found == ["a.png", "deep/d.png"]


# Folders named after what they hold


def photos(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for number in range(count):
            place = root / name.replace("__", "/") / f"{number}.png"
            write_png(place, np.full((8, 8), number, np.uint8))
    return root


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"OK": 4, "NG": 2}, r"NG \(2\) seem to be no normal images, OK \(4\) to be normal ones"),
        ({"train__OK": 4, "train__NG": 2}, r"NG \(2\) seem to be no normal images"),
        ({"train__Good": 4, "train__nok": 2}, r"nok \(2\) seem to be no normal images, Good"),
        (
            {"normal_dir": 4, "abnormal_dir": 2, "mask_dir": 2},
            r"abnormal_dir \(2\), mask_dir \(2\) seem to be no normal images, normal_dir \(4\)",
        ),
        ({"a__Defects": 1, "b": 3}, r"a/Defects \(1\) seem to be no normal images;"),
        ({"Normal": 4, "day 2": 2}, r"day 2 \(2\) seem to be no normal images, Normal \(4\)"),
        ({"images": 4, "Ground Truth": 4}, r"Ground Truth \(4\) seem to be no normal images;"),
    ],
)
def test_siblings_that_are_classes_are_refused_with_their_counts(tmp_path, counts, line):
    with pytest.raises(UserError, match=line):
        open_category("folder", photos(tmp_path, **counts))


@pytest.mark.parametrize(
    "counts", [{"OK": 4}, {"day 1": 3, "day 2": 1}, {"a__ok": 2, "b__OK": 2}, {"train": 4}]
)
def test_folders_that_say_nothing_or_good_of_all_are_taken(tmp_path, counts):
    assert len(open_category("folder", photos(tmp_path, **counts)).train) == 4


@pytest.mark.parametrize("name", ["OK", "Normal", "GOOD", "pass"])
def test_good_by_another_name_is_no_defect(tmp_path, name):
    root = photos(tmp_path, train__good=4, test__good=1, test__hole=2, **{f"test__{name}": 3})
    category = open_category("folder", root)
    assert sum(not record.is_anomalous for record in category.test) == 4
    assert {record.defect for record in category.test if record.is_anomalous} == {"hole"}


def test_where_nothing_can_be_written_the_photographs_name_two_ways_out(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(UserError) as refused:
        open_category("textures", None, "brick", no_bars)
    assert "cannot be written there; give --root FOLDER, or set XDG_CACHE_HOME" in str(
        refused.value
    )


def test_a_defect_type_of_bytes_that_are_no_utf8_is_evaluated_and_named(
    monkeypatch, capsys, tmp_path
):
    run = Command(monkeypatch, capsys)
    root = write_product(tmp_path / "widget")
    for part in ("test", "ground_truth"):
        (root / part / "spot").rename(os.fsdecode(os.fsencode(root / part) + b"/kr\xe4tzer"))
    train = ("detect", "train", "--root", root, "--source", "noise", "--backbone", "resnet10t")
    train += ("--method", "realnet")
    small = ("--backbone-weights", "random", "--size", 32, 32, "--batch-size", 2, "--num-steps", 1)
    assert run(*train, *small, "--out", tmp_path / "model").code == 0
    ended = run(
        "detect", "evaluate", "--root", root, "--model", tmp_path / "model", "--out", tmp_path / "r"
    )
    assert ended.code == 0, ended
    assert "kr\\udce4tzer" in (tmp_path / "r/report.html").read_text()
    with (tmp_path / "r/scores.csv").open("rb") as file:
        assert b"/kr\xe4tzer/" in file.read()
