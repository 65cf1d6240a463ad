"""File systems that fill up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(disk: Path, kib: int) -> Iterator[Path]:
    """An empty file system of so many KiB at `disk`."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, timeout=60).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield disk
    finally:
        lazily = ["umount", "-l", str(disk)]  # even where a file is open
        subprocess.run(lazily, check=True, timeout=60)
