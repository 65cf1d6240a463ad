"""A folder in which images keep appearing."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from detect.prediction.inputs import Content, Loaded, Unreadable, content_of
from synth.base.errors import DataWarning, UserError
from synth.images import list_images, read_image

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""For a file that does not change any more and still cannot be read."""


class Seen(NamedTuple):
    """A file's content at the last look, since when, and why it cannot be read."""

    content: Content
    since: float
    fault: str = ""


class Watch:
    """Finds the images of a folder and below that are new or replaced, and completely written.

    A file is complete when it has not changed since the last look and can be decoded; what cannot
    is tried again when it changes, and reported once, PATIENCE_SECONDS after its last change. It
    waits while the folder is missing. Memory: a name per image.
    known: files that were scored before, and what they were. clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        known: Mapping[str, Content | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.clock = Path(os.path.realpath(folder)), clock
        self.known = dict(known)
        self.seen: dict[str, Seen] = {}
        self.is_gone = False

    def look(self) -> Iterator[Loaded | Unreadable]:
        """What has become complete since the last look, by name."""
        for path in self.listed():
            name, content = str(path), content_of(path)
            if content is None or self.known.get(name) == content:
                continue
            if not self.is_settled(name, content):
                continue
            if not self.seen[name].fault:
                try:
                    image = read_image(path)
                except UserError as error:
                    if content_of(path) == content:  # else it was replaced or is gone
                        self.seen[name] = self.seen[name]._replace(fault=str(error))
                else:
                    self.known[name] = content
                    del self.seen[name]
                    yield Loaded(name, image, content)
                    continue
            _, since, fault = self.seen[name]
            if fault and self.clock() - since >= PATIENCE_SECONDS:
                self.known[name] = content
                del self.seen[name]
                yield Unreadable(name, fault, content)

    def listed(self) -> list[Path]:
        """The images there are; none, with one warning, while the folder is gone."""
        try:
            found = list_images(self.folder, recursive=True)
        except UserError:
            if not self.is_gone:
                warnings.warn(
                    f"{self.folder}: the folder is gone; waiting until it is back",
                    DataWarning,
                    stacklevel=2,
                )
            self.is_gone = True
            return []
        self.is_gone = False
        return found

    def is_settled(self, name: str, content: Content) -> bool:
        """Whether the file is as it was at the last look."""
        before = self.seen.get(name)
        if before is not None and before.content == content:
            return True
        self.seen[name] = Seen(content, self.clock())
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
