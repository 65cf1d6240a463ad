"""Locks that end with their process: a killed one leaves nothing locked.

They hold between machines too where their shared file system passes flock on, as NFS does.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from synth.base.errors import UserError
from synth.base.files import write_fault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What file systems without locks answer."""


LOCK_FILE = ".lock"


class Lock(NamedTuple):
    """A file that this process holds; `file` is None where the file system has no locks."""

    path: Path
    file: IO[str] | None

    def release(self) -> None:
        """Remove the lock file, then let go: whoever waits for it sees that it is gone."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()


def take_lock(path: Path, *, wait: bool = False) -> Lock | None:
    """Hold the lock file `path`; None when someone else does (wait: until nobody does).

    Where the system has no locks everyone is given one, so that it promises nothing. Raises
    UserError when the file cannot be made.
    """
    while fcntl is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise UserError(write_fault(path, error)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            file.close()
            if error.errno not in UNSUPPORTED:
                raise UserError(write_fault(path, error)) from error
            path.unlink(missing_ok=True)
            break
        except BaseException:  # Ctrl-C while waiting
            file.close()
            raise
        if is_at(file, path):
            return Lock(path, file)
        file.close()  # its holder removed it meanwhile
    return Lock(path, None)


@contextmanager
def sole_user(folder: Path, lock_path: Path | None = None) -> Iterator[None]:
    """Keep other commands out of `folder` for a while. Raises UserError where one is at work in it.

    lock_path: the lock file, by default in the folder; elsewhere for a folder that is renamed.
    """
    lock = take_lock(lock_path or folder / LOCK_FILE)
    if lock is None:
        raise UserError(
            f"{folder}: another command is at work in it; wait until that ends, or give another "
            "folder"
        )
    if lock.file is not None and hasattr(os, "register_at_fork"):
        # A forked worker would hold the lock on for seconds after its parent was killed.
        os.register_at_fork(after_in_child=lock.file.close)
    try:
        yield
    finally:
        lock.release()


def is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
