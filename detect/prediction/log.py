"""scores.jsonl and scores.csv: a row per image, written as it comes, kept when killed."""

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from detect.prediction.inputs import Content
from synth.base.errors import UserError
from synth.base.files import (
    atomic_path,
    read_json_lines,
    reading,
    require_component,
    write_fault,
)

Row = Mapping[str, Any]
"""A line of scores.jsonl: COLUMNS (those of FRAME for videos only), `reason` where unreadable;
`number`, by which pictures are named; `size` and `mtime_ns` of the file that was scored."""

LOG_FILE, TABLE_FILE = "scores.jsonl", "scores.csv"
FRAME = ("frame", "time_s")
COLUMNS = ("file", *FRAME, "score", "threshold", "p_value", "verdict", "overlay", "mask")
FORMATS = {"time_s": ".3f", "score": ".6g", "threshold": ".6g", "p_value": ".4g"}
"""Of numbers in scores.csv; scores.jsonl has them in full."""
PICTURES = ("overlay", "mask")
"""Columns that name a file in the folder, or in a folder of it."""
NEEDED = ("file", "verdict", "number", "size", "mtime_ns")
KINDS: dict[str, Any] = {
    **dict.fromkeys(("file", "verdict"), str),
    "number": int,
    **dict.fromkeys(("size", "mtime_ns", "frame"), int | None),
    **dict.fromkeys(("time_s", "score", "threshold", "p_value"), int | float | None),
    **dict.fromkeys((*PICTURES, "reason"), str | None),
}
"""JSON types of a row's fields."""
UNREADABLE = "unreadable"
"""The verdict on a file that is no image."""


class Known(NamedTuple):
    """What the last row of a file says: what it was made of, and which frame of a video."""

    content: Content | None
    frame: int | None
    is_scored: bool


class ScoreLog:
    """Appends to both files of a folder, going on after the rows that an earlier run wrote.

    scores.jsonl is the record: half a last line is dropped, and scores.csv is made anew from it.
    Opening the log reads what is there; nothing is written before its `with` block. Raises
    UserError for a damaged record and a full disk.
    """

    def __init__(self, folder: Path, *, with_frames: bool) -> None:
        self.folder, self.with_frames = folder, with_frames
        self.path, self.table_path = folder / LOG_FILE, folder / TABLE_FILE
        drop_half_line(self.path)
        self._recount()

    def __enter__(self) -> "ScoreLog":
        has_frames = self.with_frames or any(k.frame is not None for k in self.known.values())
        self.columns = [name for name in COLUMNS if has_frames or name not in FRAME]
        with atomic_path(self.table_path) as partial, open_text(partial, "w") as file:
            table = csv.writer(file)
            table.writerow(self.columns)
            table.writerows(csv_cells(row, self.columns) for row in read_rows(self.path))
        self._log, self._table = open_text(self.path, "a"), open_text(self.table_path, "a")
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        for file in (self._log, self._table):
            try:
                file.close()
            except OSError as error:
                if kind is None:  # else `append` has raised for it
                    raise UserError(write_fault(self.path, error)) from error

    def append(self, row: Row) -> None:
        """Write a row to both files, at once."""
        try:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
            csv.writer(self._table).writerow(csv_cells(row, self.columns))
            self._table.flush()
        except OSError as error:
            raise UserError(write_fault(self.path, error)) from error
        self._count(row)

    def forget(self, files: Collection[str]) -> None:
        """Remove all rows of these files, and their pictures; both tables are written anew.

        Killed on the way it leaves the rows, whose files are asked for again and forgotten then.
        """
        if not any(file in self.known for file in files):
            return
        self.__exit__()
        with atomic_path(self.path) as partial, open_text(partial, "w") as file:
            for row in read_rows(self.path):
                if row["file"] not in files:
                    file.write(json.dumps(row) + "\n")
                    continue
                for name in filter(None, map(row.get, PICTURES)):
                    (self.folder / name).unlink(missing_ok=True)
        self._recount()
        self.__enter__()

    def is_stale(self, file: str, content: Content | None) -> bool:
        """Whether its rows do not hold: it has changed, or could not be read; gone is no change."""
        known = self.known.get(file)
        if known is None:
            return False
        return not known.is_scored or content not in (None, known.content)

    def _recount(self) -> None:
        self.num_rows = self.num_scored = self.num_anomalous = self.next_number = 0
        self.known: dict[str, Known] = {}
        for row in read_rows(self.path):
            self._count(row)

    def _count(self, row: Row) -> None:
        self.num_rows += 1
        self.next_number = row["number"] + 1
        is_scored = row["verdict"] != UNREADABLE
        self.num_scored += is_scored
        self.num_anomalous += row["verdict"] == "anomalous"
        content = None if row["size"] is None else Content(row["size"], row["mtime_ns"])
        self.known[row["file"]] = Known(content, row.get("frame"), is_scored)


def csv_cells(row: Row, columns: Sequence[str]) -> list[str]:
    """A row's cells; empty where it has no value."""
    cells = ((row.get(name), FORMATS.get(name, "")) for name in columns)
    return ["" if value is None else format(value, form) for value, form in cells]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a scores.jsonl, one in memory at a time; none where there is no such file."""
    if not path.exists():
        return
    cure = "delete the folder or give another --out"
    for number, row in enumerate(read_json_lines(path, cure), start=1):
        with reading(path, cure):
            require_row(row, f"line {number}: ")
        yield row


def require_row(row: Mapping[str, Any], place: str) -> None:
    """Raise ValueError or LookupError for what is no row of ours."""
    for name, kinds in KINDS.items():
        if name in NEEDED and name not in row:
            raise LookupError(f"{place}no {name}")
        if not isinstance(row.get(name), kinds):
            raise ValueError(f"{place}{name} is {row[name]!r}")
    for name in PICTURES:
        parts = str(row.get(name) or name).split("/")
        if len(parts) > 2 or not all(require_component(f"{place}{name}", part) for part in parts):
            raise ValueError(f"{place}{name} is {row[name]!r}")


def drop_half_line(path: Path) -> None:
    """Cut off what a killed process began to write after the last whole line."""
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            whole = 0
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
            file.truncate(whole)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"{path}: cannot go on with it ({reason}); remove it or give another --out"
        ) from error


def open_text(path: Path, mode: str) -> IO[str]:
    """Open a file whose rows may name files that are no UTF-8; their bytes stay."""
    try:
        return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(write_fault(path, error)) from error
