"""A folder in which images keep appearing."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from detect.prediction.inputs import Loaded
from synth.errors import UserError
from synth.images import list_images, read_image

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""For a file that does not change any more and still cannot be read."""


class Unreadable(NamedTuple):
    """A file that is complete, as far as can be told, and cannot be read."""

    file: str
    reason: str


class Seen(NamedTuple):
    """A file's content by its size and time of change, since when, and why it cannot be read."""

    content: tuple[int, int]
    since: float
    fault: str = ""


class Watch:
    """Finds the images of a folder and below that are new and completely written.

    A file is complete when it has not changed since the last look and can be decoded; what cannot
    is tried again when it changes, and told of once, PATIENCE_SECONDS after its last change. A file
    is taken once: one that is replaced under its name is not new. Memory: a name per image.
    taken, told: the files that were taken or told of by an earlier run. clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        taken: Iterable[str] = (),
        told: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.clock = folder, clock
        self.taken, self.told = set(taken), set(told)
        self.seen: dict[str, Seen] = {}

    def look(self) -> Iterator[Loaded | Unreadable]:
        """What has become complete since the last look, by name."""
        for path in list_images(self.folder, recursive=True):
            name = str(path)
            if name in self.taken or not self.is_settled(path):
                continue
            if not self.seen[name].fault:
                try:
                    image = read_image(path)
                except UserError as error:
                    self.seen[name] = self.seen[name]._replace(fault=str(error))
                else:
                    del self.seen[name]
                    self.taken.add(name)
                    yield Loaded(name, image)
                    continue
            waited = self.clock() - self.seen[name].since
            if waited >= PATIENCE_SECONDS and name not in self.told:
                self.told.add(name)
                yield Unreadable(name, self.seen[name].fault)

    def is_settled(self, path: Path) -> bool:
        """Whether the file is as it was at the last look."""
        try:
            about = path.stat()
        except OSError:  # gone again
            return False
        content = (about.st_size, about.st_mtime_ns)
        before = self.seen.get(str(path))
        if before is not None and before.content == content:
            return True
        self.seen[str(path)] = Seen(content, self.clock())
        return False


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that what is begun is ended first; a second Ctrl-C is hard."""
    stop = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
