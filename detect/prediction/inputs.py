"""What is asked to be scored: files, folders, patterns, videos; read one after the other."""

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detect.heatmap import Image
from detect.prediction.video import VIDEO_SUFFIXES, check_video, count_frames, is_video, read_frames
from synth.errors import UserError
from synth.images import SUFFIXES, Progress, list_images, read_image, require_images


class Loaded(NamedTuple):
    """An image to score: uint8 [H, W, 3] RGB, and where it is from.

    frame, time_s: of a video, its number from 0 and its time in seconds; else None.
    """

    file: str
    image: Image
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


def num_pixels(loaded: Loaded) -> int:
    """What an image takes of the memory, in pixels."""
    height, width = loaded.image.shape[:2]
    return height * width


def find_inputs(given: Sequence[Path], listed: Iterable[str] = ()) -> list[Path]:
    """Files as they are, folders as the images below them, patterns as what they match.

    listed: the lines that take the place of "-". In the order given, each file once. Raises
    UserError for nothing given, a path that does not exist, and a folder or pattern without images.
    """
    places: list[Path] = []
    for place in given:
        places += (Path(line) for line in listed if line) if str(place) == "-" else [place]
    if not places:
        raise UserError("images: none given; name image files, folders, patterns or a video")
    return list(dict.fromkeys(path for place in places for path in files_at(place)))


def files_at(place: Path) -> list[Path]:
    """A file itself, the images of a folder and below, or what a pattern with * ? [] ** matches."""
    if place.is_dir():
        found = list_images(place, recursive=True)
        if not found:
            raise UserError(f"{place}: no images in this folder or below")
        return found
    if place.exists():
        return [place]
    if not glob.has_magic(str(place)):
        raise UserError(f"{place}: no such file or folder; check the path")
    matches = map(Path, sorted(glob.glob(str(place), recursive=True)))
    known = (*SUFFIXES, *VIDEO_SUFFIXES)
    found = [path for path in matches if path.suffix.lower() in known and path.is_file()]
    if not found:
        raise UserError(f"{place}: the pattern matches no image or video; check it")
    return found


def check_inputs(paths: Sequence[Path], progress: Progress | None = None) -> None:
    """Decode every image, and the beginning of every video, before long work.

    Raises UserError with their number and the first that cannot be read.
    """
    for path in paths:
        if is_video(path):
            check_video(path)
    require_images([path for path in paths if not is_video(path)], progress)


def count_inputs(paths: Sequence[Path], every: int = 1) -> int:
    """How many images there are, by the number of frames that videos name."""
    return sum(-(-count_frames(path) // every) if is_video(path) else 1 for path in paths)


def read_inputs(
    paths: Iterable[Path], every: int = 1, done: Mapping[str, int | None] | None = None
) -> Iterator[Loaded]:
    """Read images, and every n-th frame of videos, but for what is done already.

    done: files, with the last frame that is done of a video.
    """
    done = done or {}
    for path in paths:
        if is_video(path):
            last = done.get(str(path))
            for frame, time_s, image in read_frames(path, every, 0 if last is None else last + 1):
                yield Loaded(str(path), image, frame, time_s)
        elif str(path) not in done:
            yield Loaded(str(path), read_image(path))
