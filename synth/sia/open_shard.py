"""A shard of an SIA folder while a process works on it."""

import time
from pathlib import Path

from synth.base.files import PARTIAL_SUFFIX, write_json
from synth.base.locks import Lock
from synth.sia.format import (
    IMAGES_PER_FOLDER,
    SHARD_SIZE,
    Row,
    read_shard,
    shard_indices,
    shard_path,
)


class OpenShard:
    """A shard that this process holds: the rows it has, the images that are to come."""

    def __init__(self, folder: Path, shard: int, num_images: int, lock: Lock) -> None:
        self.folder, self.shard, self.lock = folder, shard, lock
        self.rows = read_shard(folder, shard).present(folder)
        self.to_come = set(shard_indices(shard, num_images)) - {row["index"] for row in self.rows}
        self.saved_at = time.monotonic()
        if lock.held is not None:  # nobody else writes here
            self.remove_partials()

    def add(self, row: Row) -> None:
        """Note an image that is written."""
        self.rows.append(row)
        self.to_come.discard(row["index"])

    def save(self, status: str) -> None:
        """Write the record: the rows by index."""
        rows = sorted(self.rows, key=lambda row: row["index"])
        record = {"shard": self.shard, "status": status, "rows": rows}
        write_json(self.folder / shard_path(self.shard), record)
        self.saved_at = time.monotonic()

    def remove_partials(self) -> None:
        """Remove what a killed process left."""
        number = self.shard * SHARD_SIZE // IMAGES_PER_FOLDER
        for path in self.folder.glob(f"*/{number:03d}/.*{PARTIAL_SUFFIX}"):
            index = path.name.split(".")[1]
            if index.isdecimal() and int(index) in self.to_come:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f"shards/.{self.shard:03d}.json.*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)


def lock_path(folder: Path, shard: int) -> Path:
    """The file whose lock a process holds while it works on a shard; gone when nobody does."""
    return folder / f"shards/.{shard:03d}.lock"
