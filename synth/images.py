"""Reading, checking, resizing and writing image files.

Pillow decodes: it knows orientation, palettes, alpha and CMYK, and it refuses truncated files,
which OpenCV fills with grey. For ordinary files it takes 1.2 times OpenCV's time (1024 px, one
core: 44 against 35 ms for a PNG, 5.8 against 4.9 ms for a JPEG); the pixels are the same.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from synth.base.errors import DataWarning, ImageWarning, UserError
from synth.base.files import atomic_path, read_fault

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".gif", ".raw", ".dng", ".cr2", ".nef")
"""Of images that are not read; a warning names such files."""
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
JPEG_FORMATS = frozenset({"JPEG", "MPO"})  # MPO: a phone's JPEG with a second picture inside
MAX_PIXELS = 100_000_000  # 300 MB as RGB; refused before decoding
MIN_SIDE_PX = 8  # below this nothing can be seen, and every backbone's stride is larger
JUNK_FOLDERS = frozenset({"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN"})
"""In which storage devices and systems keep thumbnails and what was deleted."""
DARK = 1 << 14  # values of 16 bits that end below come out as a quarter of white at most
MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"})

Progress = Callable[[int, int], None]  # (done, total)


class BrokenImage(NamedTuple):
    """A file that cannot be read, and the one-line reason (which names the file)."""

    path: Path
    reason: str


# Reading


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as a person sees it: uint8 [H, W, 3], RGB.

    Rotated by its EXIF orientation; alpha laid on white, as on paper; palette, grey and CMYK
    converted. 16-bit grey is scaled by 1/257 and rounded; of 16-bit colour the high byte is kept
    (within one level of the same). Raises UserError, naming the file, where it is missing, empty,
    damaged, not an image, of several pictures, wholly transparent, of pixels that Pillow does not
    show as they are meant (`_check_header`), below MIN_SIDE_PX on a side, or above MAX_PIXELS
    (refused before decoding). Gives an ImageWarning for 16 bits that end below DARK.
    """
    with _no_warnings(), _decoded(path) as (image, has_16_bits):
        if image.has_transparency_data and not np.asarray(image.convert("RGBA"))[..., 3].any():
            raise UserError(
                f"{path}: wholly transparent, so that nothing is seen; save it without transparency"
            )
        rgb = _rgb(image)
    if has_16_bits:
        grey = image.mode.startswith("I;16")
        _warn_of_darkness(path, int(np.asarray(image).max()) if grey else 257 * int(rgb.max()))
    return rgb


def from_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an opened Pillow image as `read_image` gives those of a file, and its errors.

    The image itself stays as it was, but for being loaded.
    """
    with _no_warnings():
        _check_header("image", image)
        try:
            return _rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise UserError(f"image: cannot be decoded ({error}); open another file") from error


def read_mask(path: Path, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """Read a mask file as bool [H, W]: non-zero is defect, transparent is normal.

    `shape` is the image's (height, width), or None to accept any. 16-bit values are not scaled
    first, so a label 1 counts. The masks of a folder are united. Raises UserError as `read_image`,
    for another size than `shape`, and for a JPEG, whose compression leaves non-zero specks around
    every defect.
    """
    return read_graded_mask(path, shape)[0]


def read_graded_mask(path: Path, shape: tuple[int, int] | None) -> tuple[NDArray[np.bool_], bool]:
    """Read a mask as `read_mask`, and whether its defects have several levels (soft edges)."""
    if not path.is_dir():
        return _read_mask_file(path, shape)
    masks, graded = zip(*(_read_mask_file(file, shape) for file in list_images(path)), strict=True)
    return np.logical_or.reduce(masks), any(graded)


def _read_mask_file(path: Path, shape: tuple[int, int] | None) -> tuple[NDArray[np.bool_], bool]:
    with _no_warnings(), _decoded(path) as (image, _):
        if image.format in JPEG_FORMATS:
            raise UserError(f"{path}: a mask in JPEG is not exact; save it as PNG")
        levels, mask = _levels(image)
    if shape is not None and mask.shape != tuple(shape):
        raise UserError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} px, its image is "
            f"{shape[1]}x{shape[0]} px (width x height); they must be equal: export the mask again"
        )
    return mask, bool(mask.any() and np.ptp(levels[mask], axis=0).any())


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] or [H, W] to `size` = (height, width); the aspect ratio is not kept.

    An axis that shrinks is averaged over areas, so fine defects fade rather than alias or vanish.
    An axis that grows is bilinear: cubic overshoots at edges, and a halo can look like a defect.
    """
    H, W = image.shape[:2]
    height, width = size
    if min(height, width) < 1:
        raise UserError(f"size: got {height}x{width} (height x width); both must be 1 or more")
    smaller = (min(width, W), min(height, H))
    shrunk = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


# Listing and checking


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """List the image files of a folder, by suffix (SUFFIXES, any case), sorted by path.

    Hidden files and folders, and files with other suffixes, are no images; gives a DataWarning for
    OTHER_SUFFIXES. Links to folders are followed, each folder once; a link to nothing is listed.
    Nothing is opened. Raises UserError where `folder` is no folder, or one in it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path")
    files = sorted(_walk(folder, recursive), key=Path.as_posix)
    found = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = [path for path in files if path.suffix.lower() in OTHER_SUFFIXES]
    if others:
        total = len(found) + len(others)
        warnings.warn(
            f"{folder}: {len(others)} of {total} images are left out, the first: {others[0]}; only "
            f"{', '.join(SUFFIXES)} are read: convert the others",
            DataWarning,
            stacklevel=2,
        )
    return found


def check_images(paths: Sequence[Path], progress: Progress | None = None) -> list[BrokenImage]:
    """Decode every file and return those that cannot be read, in the order given.

    Decoding is whole, since a header (0.02 ms) does not show a truncated body: about 1 ms for 256
    px and 40 ms for a PNG of 1024 px; threads gained nothing. `progress(done, total)` is called
    after each file.
    """
    broken: list[BrokenImage] = []
    for done, path in enumerate(paths, start=1):
        try:
            read_image(path)
        except UserError as error:
            broken.append(BrokenImage(path, str(error)))
        if progress is not None:
            progress(done, len(paths))
    return broken


def require_images(paths: Sequence[Path], progress: Progress | None = None) -> None:
    """Raise one UserError with the count and the first file where `check_images` finds any."""
    broken = check_images(paths, progress)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read, the first: {broken[0].reason}"
        )


# Writing


def write_png(path: Path, image: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    """Write a PNG: uint8 [H, W, 3] RGB, uint8 [H, W] grey, or a bool [H, W] mask as {0, 255}.

    The file appears whole or not at all; missing folders are made. Raises as `write_atomically`.
    """
    assert image.dtype in (np.uint8, np.bool_), image.dtype
    levels = image.astype(np.uint8) * np.uint8(255 if image.dtype == np.bool_ else 1)
    bgr = levels if levels.ndim == 2 else cv2.cvtColor(levels, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".png", bgr)
    assert encoded
    write_atomically(path, data.tobytes())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; missing folders are made. Raises as `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


# Decoding


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of what is an error here (size) or harmless (odd metadata)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _decoded(path: Path) -> Iterator[tuple[Image.Image, bool]]:
    """Yield the upright image in its own mode, and whether the file has 16 bits a sample.

    Every fault of the file becomes a UserError.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_header(path, image)
            _check_pages(path, image)
            has_16_bits = ";16" in str(image.tile)
            inverted = _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
    except UserError:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        raise UserError(_read_fault(path, error)) from error
    if inverted and image.mode.startswith("I;16"):  # Pillow inverts 8 bits alone
        image = Image.fromarray(np.uint16(65535) - np.asarray(image).astype(np.uint16))
    yield image, has_16_bits  # the file is closed, the pixels stay


def is_turned(path: Path) -> bool:
    """Whether an image file's EXIF says that it is shown turned or mirrored."""
    with _no_warnings(), Image.open(path, formats=FORMATS) as image:
        return image.getexif().get(ORIENTATION, 1) not in (0, 1)


ORIENTATION = 274
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT, SUBFILE = 258, 262, 284, 339, 254
"""Tags of TIFF. Source: TIFF 6.0."""
WHITE_IS_ZERO, BLACK_IS_ZERO, APART, SIGNED, REDUCED = 0, 1, 2, 2, 1
"""Values of these: grey is inverted or not; each colour is a plane of its own; a preview."""
TiffImagePlugin.OPEN_INFO.setdefault(  # the one layout of 16-bit grey that Pillow leaves out
    (TiffImagePlugin.MM, WHITE_IS_ZERO, (1,), 1, (16,), ()),
    TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, BLACK_IS_ZERO, (1,), 1, (16,), ()],
)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """TIFF's tags; none of other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _check_pages(path: Path, image: Image.Image) -> None:
    """Raise UserError for several pictures in one file; previews of one are none."""
    count = 1 if image.format in JPEG_FORMATS else getattr(image, "n_frames", 1)
    if count > 1 and image.format == "TIFF":
        pages = []
        for number in range(count):
            image.seek(number)
            pages.append(not int(_tags(image).get(SUBFILE, 0)) & REDUCED)
        image.seek(0)
        count = sum(pages)
    if count > 1:
        raise UserError(
            f"{path}: holds {count} pictures, of which one only would be seen; save each as a file "
            "of its own"
        )


def _check_header(path: Path | str, image: Image.Image) -> None:
    width, height = image.size
    size = f"{width}x{height} px (width x height)"
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: {size} is over {MAX_PIXELS:,} pixels; cut it into several files (--tile cuts "
            "what is read)"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise UserError(
            f"{path}: {size} is too small; each side must be {MIN_SIDE_PX} px or more: remove it"
        )
    tags = _tags(image)
    if SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, ())):
        raise UserError(
            f"{path}: pixels are signed numbers, whose black is not said; save unsigned 8-bit or "
            "16-bit ones"
        )
    if image.mode not in MODES and not image.mode.startswith("I;16"):
        raise UserError(
            f"{path}: pixels of type {image.mode} have no fixed range here; save as 8-bit or "
            "16-bit grey or RGB"
        )
    if tags.get(PLANES) == APART and max(np.atleast_1d(tags.get(BITS, 8))) > 8:
        raise UserError(
            f"{path}: 16-bit colours in planes of their own cannot be read; save them interleaved "
            "(TIFF's PlanarConfiguration 1)"
        )


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)  # [H, W, 3]
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _warn_of_darkness(path: Path, highest: int) -> None:
    if highest < DARK:
        warnings.warn(
            f"{path}: its 16-bit values end at {highest} of 65535, so it is read as nearly black; "
            "multiply those of a 12-bit camera by 16, of a 14-bit one by 4, in all images alike",
            ImageWarning,
            stacklevel=3,
        )


def _levels(image: Image.Image) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """Values [H, W, channels] of a mask's pixels and where they mean a defect, bool [H, W]."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)[:, :, None]
        return grey, grey[:, :, 0] != 0
    rgba = np.asarray(image.convert("RGBA"))  # [H, W, 4]
    return rgba, rgba[:, :, :3].any(axis=2) & (rgba[:, :, 3] > 0)


# Files


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        yield from (Path(parent, name) for name in files if not name.startswith("."))
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name
            for name in sorted(folders)
            if recursive
            and not name.startswith(".")
            and name not in JUNK_FOLDERS
            and os.path.realpath(os.path.join(parent, name)) not in seen
        ]


def _refuse_folder(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # removed in between
        raise UserError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); change its rights or "
            "move it away"
        ) from error


def _read_fault(path: Path, error: Exception) -> str:
    again = "copy it again or remove it"
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which is not there; mend or remove it"
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file; check the path"
    if isinstance(error, OSError) and error.errno is not None:
        return read_fault(path, error)
    if isinstance(error, Image.DecompressionBombError):
        return f"{path}: the image is over {MAX_PIXELS:,} pixels; cut it into several files"
    if path.stat().st_size == 0:
        return f"{path}: the file is empty (0 bytes); {again}"
    if isinstance(error, UnidentifiedImageError):
        return f"{path}: not an image; allowed are PNG, JPEG, BMP, TIFF and WebP: {again}"
    return f"{path}: the image is damaged or cut short; {again}"
