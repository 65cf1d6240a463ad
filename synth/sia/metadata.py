"""metadata.jsonl read a little ahead of the records that it is compared with."""

from collections.abc import Iterator
from pathlib import Path

from synth.base.files import DAMAGE, config_differences, json_object
from synth.sia.format import Row
from synth.sia.rows import index_of

LINES_AHEAD = 1000
"""How far a line may be from its place and still be found."""


class MetadataAhead:
    """The rows of metadata.jsonl that are read and not yet compared, by index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, Row] = {}
        self.lines = self._lines()
        self.num_lines, self.last_index = 0, -1

    def _lines(self) -> Iterator[bytes]:
        if self.path.is_file():
            with self.path.open("rb") as file:
                yield from file

    def read_to(self, num_images: int) -> Iterator[str]:
        """Read the lines of the images below `num_images`, and some more; the faults of lines."""
        while self.num_lines < num_images + LINES_AHEAD:
            line = next(self.lines, None)
            if line is None:
                return
            self.num_lines += 1
            yield from (f"{self.path}, line {self.num_lines}: {fault}" for fault in self.add(line))

    def add(self, line: bytes) -> Iterator[str]:
        """Keep a line's row; what is wrong with it."""
        try:
            row = json_object(line)
        except DAMAGE as error:
            yield f"damaged ({error})"
            return
        index = index_of(row)
        if index is None:
            yield "a row without an index"
            return
        if index in self.rows:
            yield f"a second row of index {index}"
            return
        if index <= self.last_index:
            yield f"index {index} comes after index {self.last_index}"
        self.last_index = index
        self.rows[index] = row

    def has(self, indices: range) -> bool:
        """Whether rows of some of these images are read and not yet taken."""
        return any(index in self.rows for index in indices)

    def first(self) -> int | None:
        """The lowest index of the rows that are read and not yet taken."""
        return min(self.rows, default=None)

    def take(self, indices: range) -> list[Row]:
        """Take the rows of these images."""
        return [self.rows.pop(index) for index in indices if index in self.rows]

    def compare(self, row: Row, record: str) -> Iterator[str]:
        """Take the row of the same index as `row`, of `record`, and say where they differ."""
        index = row["index"]
        other = self.rows.pop(index, None)
        if other is None and self.path.is_file():
            yield f"{self.path}: no row of index {index} in its place"
        elif other is not None and other != row:
            differences = "; ".join(config_differences(row, other))
            yield f"{self.path}: index {index}: not as in {record} ({differences})"

    def drop_below(self, limit: float) -> Iterator[str]:
        """Forget the rows below index `limit`, which no record has; a line for each."""
        for index in sorted(index for index in self.rows if index < limit):
            del self.rows[index]
            yield f"{self.path}: index {index}: no record in shards/ has it"
