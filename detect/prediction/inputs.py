"""What is asked to be scored: files, folders, patterns, videos; read one after the other."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detect.heatmap import Image
from detect.prediction.video import VIDEO_SUFFIXES, count_frames, is_video, read_frames
from synth.base.errors import UserError
from synth.images import SUFFIXES, list_images, read_image


class Content(NamedTuple):
    """What tells whether a file is still the one that it was."""

    size: int
    mtime_ns: int


class Loaded(NamedTuple):
    """An image to score: uint8 [H, W, 3] RGB, and where it is from.

    content: of its file, as it was before it was read. frame, time_s: of a video, its number from 0
    and its time in seconds; else None.
    """

    file: str
    image: Image
    content: Content | None = None
    frame: int | None = None
    time_s: float | None = None

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self.file if self.frame is None else f"{self.file}, frame {self.frame}"

    @property
    def stem(self) -> str:
        """What to call its pictures."""
        stem = Path(self.file).stem
        return stem if self.frame is None else f"{stem}_frame{self.frame:06d}"


class Unreadable(NamedTuple):
    """A file that cannot be read, and why; content is None for one that is gone."""

    file: str
    reason: str
    content: Content | None = None


def num_pixels(item: Loaded | Unreadable) -> int:
    """What it takes of the memory, in pixels."""
    if isinstance(item, Unreadable):
        return 0
    height, width = item.image.shape[:2]
    return height * width


def content_of(path: Path) -> Content | None:
    """A file's size and time of change now; None where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return None
    return Content(about.st_size, about.st_mtime_ns)


def find_inputs(places: Sequence[Path], out: Path) -> list[Path]:
    """Files as they are, folders as the images below them, patterns as what they match.

    out: where pictures are written; patterns pass over what lies there. In the order given, each
    file once, by its absolute path. Raises UserError for nothing given, a path that does not exist,
    a folder or pattern without images, and for what names pictures below `out` in another way.
    """
    if not places:
        raise UserError("images: none given; name image files, folders, patterns or a video")
    own = Path(os.path.realpath(out))
    found: list[Path] = []
    for place in places:
        paths = files_at(place)
        outside = [path for path in paths if not path.is_relative_to(own)]
        if len(outside) < len(paths) and (place.exists() or not outside):
            raise UserError(
                f"--out: {out} is where pictures are written, and {place} names images in it; give "
                "another --out or other images"
            )
        found += outside
    return list(dict.fromkeys(found))


def files_at(place: Path) -> list[Path]:
    """A file itself, the images of a folder and below, or what a pattern with * ? [] ** matches.

    By absolute paths.
    """
    if place.is_dir():
        found = list_images(Path(os.path.realpath(place)), recursive=True)
        if not found:
            raise UserError(f"{place}: no images in this folder or below")
        return found
    if place.exists():
        return [absolute(place)]
    if not glob.has_magic(str(place)):
        raise UserError(f"{place}: no such file or folder; check the path")
    known = (*SUFFIXES, *VIDEO_SUFFIXES)
    for pattern in (str(place).replace("[", "[[]"), str(place)):  # brackets of a name come first
        matches = map(Path, sorted(glob.glob(pattern, recursive=True)))
        found = [path for path in matches if path.suffix.lower() in known and path.is_file()]
        if found:
            return [absolute(path) for path in found]
    tried = ", with its brackets as they are or as a choice of letters" if "[" in str(place) else ""
    raise UserError(f"{place}: the pattern matches no image or video{tried}; check it")


def absolute(path: Path) -> Path:
    """The one spelling of a file's path; a link to a file keeps its own name."""
    return Path(os.path.realpath(path.parent), path.name)


def count_inputs(paths: Iterable[Path], every: int, last: Mapping[str, int]) -> int:
    """How many images are to be read, by the number of frames that videos name."""
    return sum(
        count_left(path, every, last.get(str(path), -every)) if is_video(path) else 1
        for path in paths
    )


def count_left(video: Path, every: int, last: int) -> int:
    """How many frames are to be read; none where it cannot be read."""
    try:
        return max(0, -(-count_frames(video) // every) - last // every - 1)
    except UserError:
        return 0


def read_inputs(
    paths: Iterable[Path], every: int, last: Mapping[str, int]
) -> Iterator[Loaded | Unreadable]:
    """Read images, and every n-th frame of videos.

    last: the last frame that is done of a video.
    """
    for path in paths:
        name, content = str(path), content_of(path)
        try:
            if is_video(path):
                for frame, time_s, image in read_frames(path, every, last.get(name, -1) + 1):
                    yield Loaded(name, image, content, frame, time_s)
            else:
                yield Loaded(name, read_image(path), content)
        except UserError as error:
            yield Unreadable(name, str(error), content)
