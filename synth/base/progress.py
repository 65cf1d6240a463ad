"""How long work tells of its progress; the command layer turns it into bars."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Update(Protocol):
    """Told of each unit of work that is done."""

    def __call__(self, done: int, total: int, terms: Mapping[str, float] | None = None, /) -> None:
        """Show `done` units of `total`, and terms such as losses."""


class Bars(Protocol):
    """Opens a bar for one stretch of work."""

    def __call__(
        self, title: str, unit: str, *, continues: bool = False
    ) -> AbstractContextManager[Update]:
        """Open a bar that counts a `unit`, named in the singular.

        continues: the count may start above 1, since earlier work goes on.
        """
        ...


@contextmanager
def no_bars(title: str, unit: str, *, continues: bool = False) -> Iterator[Update]:
    """Show nothing: for programs and tests."""

    def update(done: int, total: int, terms: Mapping[str, float] | None = None, /) -> None: ...

    yield update
