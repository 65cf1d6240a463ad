"""What memory this process may still take, of machine and container; what becomes of the freed."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from synth.base.errors import UserError

A = TypeVar("A")
T = TypeVar("T")


class Controller(NamedTuple):
    """Where a version of Linux control groups has its memory figures.

    label: what its line in /proc/self/cgroup is called. cache: pages that are given back on demand.
    """

    label: str
    mount: str
    limit: str
    usage: str
    cache: str


CONTROLLERS = (
    Controller("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    Controller(
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Versions 2 and 1."""

NO_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""What torch says on a device and on a processor, and CUDA's libraries say of themselves; torch
must not be imported for its error's type."""

MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX = -3, -1, -4  # of malloc.h
STEADY = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 256 << 20, MMAP_MAX: 65536}
"""For commands: blocks of up to 32 MiB, which is malloc's limit, stay with the process, and at most
256 MiB at the end of its heap. By default malloc reaches such values late, if at all."""


def steady_malloc() -> None:
    """Set glibc's malloc to STEADY: `compact` scores an image in 19 ms rather than 25 to 35."""
    for parameter, value in STEADY.items():
        _glibc("mallopt", parameter, value)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let large blocks that are freed stay with the process for the next ones; for trainings.

    glibc returns each tensor of more than 32 MiB to the system and gets the next one as new pages,
    which the system fills with zeros one by one, in every step of a training: without that
    `detect train` takes a quarter less time on two cores. The peak of memory was 4 %
    lower to 6 % higher; where sizes change it would grow. In the end all goes back. Does nothing
    where malloc is another than glibc's.
    """
    _glibc("mallopt", MMAP_MAX, 0)
    _glibc("mallopt", TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        steady_malloc()
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return to the system what is freed by now and stayed with the process."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Call one of glibc's own functions, where there is glibc."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function(*arguments)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether too little memory is the reason; torch, on a processor, says so only in words."""
    in_words = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return in_words or isinstance(error, MemoryError)


def unless_out_of_memory(work: Callable[[A], T], batch: A) -> T | None:
    """What `work` makes of a batch; None where memory does not suffice."""
    import torch  # here: options use this module, and torch would hold up `--help`

    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here, when the error and the tensors in its frames are gone, can memory be given back.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free in the machine and in every control group that this process is in.

    A process that takes more than its group may is ended by the system, however much the machine
    has left. root: where /proc and /sys are.
    """
    return min([psutil.virtual_memory().available, *free_in_groups(root)])


def free_in_groups(root: Path) -> Iterator[int]:
    """Yield what is free in each group with a limit; nothing on systems without groups."""
    for controller in CONTROLLERS:
        for folder in group_folders(root, controller):
            limit = read_number(folder / controller.limit)
            used = read_number(folder / controller.usage)
            if limit is None or used is None:
                continue
            yield max(0, limit - used + read_cache(folder / "memory.stat", controller.cache))


def group_folders(root: Path, controller: Controller) -> Iterator[Path]:
    """Yield the process's group and those above it, whose limits hold for it too.

    In a container the path may be the host's; then only the mounted top is there.
    """
    mount = root / controller.mount
    for line in read_lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) < 3 or controller.label not in parts[1].split(","):
            continue
        inside = mount / parts[2].lstrip("/")
        yield inside
        yield from (above for above in inside.parents if above.is_relative_to(mount))


def read_cache(path: Path, name: str) -> int:
    """One figure of a memory.stat; 0 where it is not there."""
    for line in read_lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def read_number(path: Path) -> int | None:
    """The number that a file holds; None for "max" and where there is no such file."""
    lines = read_lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def read_lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def half(batch_size: int) -> int:
    """The next smaller batch. Raises UserError when there is none."""
    if batch_size == 1:
        raise UserError(
            "out of memory: not even one image fits; close other programs, use another device, or "
            "train a smaller model"
        )
    return batch_size // 2
