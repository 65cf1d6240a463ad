"""Arrays parked on disk while they are needed: memory stays free, nothing is left behind."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from synth.base.errors import UserError
from synth.base.files import write_fault

T = TypeVar("T", bound=np.generic)


class Scratch:
    """A file without a name: it vanishes with the process, however that ends.

    folder: where its space is taken; None keeps it in memory, for what is known to be small.
    Use it in a `with` block. Both methods raise UserError for a full disk.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        with self._told():
            self._file = io.BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # on a full disk, of which an error has told
            self._file.close()

    def append(self, array: npt.NDArray[np.generic]) -> int:
        """Write an array at the end and return its place."""
        with self._told():
            place = self._file.seek(0, io.SEEK_END)
            self._file.write(np.ascontiguousarray(array).tobytes())
        return place

    def read(self, place: int, count: int, dtype: type[T]) -> npt.NDArray[T]:
        """Read `count` items of `dtype` from a place, as a flat read-only array."""
        if not count:
            return np.empty(0, dtype)
        with self._told():
            self._file.seek(place)
            data = self._file.read(count * np.dtype(dtype).itemsize)
        return np.frombuffer(data, dtype)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = self.folder or Path("memory")
            raise UserError(write_fault(place / "temporary file", error)) from error
