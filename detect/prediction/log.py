"""scores.jsonl and scores.csv: a row per image, written as it comes, kept when killed."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from synth.errors import UserError
from synth.files import atomic_path, write_fault

Row = Mapping[str, Any]
"""A line of scores.jsonl: COLUMNS (those of FRAME for videos only), `reason` where unreadable."""

LOG_FILE, TABLE_FILE = "scores.jsonl", "scores.csv"
FRAME = ("frame", "time_s")
COLUMNS = ("file", *FRAME, "score", "threshold", "p_value", "verdict", "overlay", "mask")
FORMATS = {"time_s": ".3f", "score": ".6g", "threshold": ".6g", "p_value": ".4g"}
"""Of numbers in scores.csv; scores.jsonl has them in full."""
UNREADABLE = "unreadable"
"""The verdict on a watched file that is no image."""


class ScoreLog:
    """Appends to both files of a folder, going on after the rows that an earlier run wrote.

    scores.jsonl is the record: half a last line is dropped, and scores.csv is made anew from it.
    Opening the log reads what is there; nothing is written before its `with` block. Raises
    UserError for a damaged record and a full disk.
    """

    def __init__(self, folder: Path, *, with_frames: bool) -> None:
        self.path, self.table_path = folder / LOG_FILE, folder / TABLE_FILE
        self.columns = [name for name in COLUMNS if with_frames or name not in FRAME]
        self.num_rows = self.num_scored = self.num_anomalous = 0
        self.done: dict[str, int | None] = {}
        """Files with a score, and the last frame of videos."""
        self.unreadable: set[str] = set()
        drop_half_line(self.path)
        for row in read_rows(self.path):
            self._count(row)

    def __enter__(self) -> "ScoreLog":
        with atomic_path(self.table_path) as partial, open_text(partial, "w") as file:
            table = csv.writer(file)
            table.writerow(self.columns)
            table.writerows(csv_cells(row, self.columns) for row in read_rows(self.path))
        self._log, self._table = open_text(self.path, "a"), open_text(self.table_path, "a")
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._table.close()

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

    def _count(self, row: Row) -> None:
        self.num_rows += 1
        self.num_anomalous += row["verdict"] == "anomalous"
        if row["verdict"] == UNREADABLE:
            self.unreadable.add(row["file"])
            return
        self.num_scored += 1
        self.done[row["file"]] = row.get("frame")
        self.unreadable.discard(row["file"])


def csv_cells(row: Row, columns: Sequence[str]) -> list[str]:
    """A row's cells; empty where it says nothing."""
    cells = ((row.get(name), FORMATS.get(name, "")) for name in columns)
    return ["" if value is None else format(value, form) for value, form in cells]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a scores.jsonl, one in memory at a time; none where there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield {**row, "file": row["file"], "verdict": row["verdict"]}
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}: line {number} is damaged ({error}); delete the folder or give "
                    "another --out"
                ) from error


def drop_half_line(path: Path) -> None:
    """Cut off what a killed process began to write after the last whole line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = 0
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)


def open_text(path: Path, mode: str) -> IO[str]:
    """Open a file whose rows may name files that are no UTF-8; their bytes stay."""
    try:
        return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(write_fault(path, error)) from error
