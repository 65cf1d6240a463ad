"""Locks that end with their process: a killed one leaves nothing locked.

They hold between machines too when their shared file system passes flock on, as NFS does.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, SoftFileLock, Timeout

from synth.base.errors import DataWarning, UserError
from synth.base.files import write_fault

LOCK_FILE = ".lock"


class Lock(NamedTuple):
    """A file that this process holds; `held` is None where the file system has no locks."""

    path: Path
    held: FileLock | None

    def release(self) -> None:
        """Remove the lock file, then let go: whoever waits for it sees that it is gone."""
        if self.held is not None:
            self.path.unlink(missing_ok=True)
            self.held.release()


def take_lock(path: Path, *, wait: bool = False) -> Lock | None:
    """Hold the lock file `path`; None when someone else does (wait: until nobody does).

    Where the file system has no locks everyone is given one, with a warning. Raises UserError when
    the file cannot be made.
    """
    lock = FileLock(path, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()  # what cannot be written is told apart from what cannot be locked
    except OSError as error:
        raise UserError(write_fault(path, error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the soft lock that a missing flock falls back to
            lock.acquire(blocking=wait, poll_interval=0.02)
    except Timeout:
        return None
    except OSError as error:
        path.unlink(missing_ok=True)
        warn_of_no_locks(path, error)
        return Lock(path, None)
    if isinstance(lock, SoftFileLock):  # it would outlive a killed process
        lock.release()
        warn_of_no_locks(path, OSError("no flock"))
        return Lock(path, None)
    return Lock(path, lock)


def warn_of_no_locks(path: Path, error: OSError) -> None:
    """Say that nothing keeps two commands out of one folder."""
    folder = path.parent
    warnings.warn(
        f"{folder}: its file system has no locks ({error.strerror or error}); make sure that no "
        "other command writes into it",
        DataWarning,
        stacklevel=3,
    )


@contextmanager
def sole_user(folder: Path, lock_path: Path | None = None) -> Iterator[None]:
    """Keep other commands out of `folder` for a while. Raises UserError when one is at work in it.

    lock_path: the lock file, by default in the folder; elsewhere for a folder that is renamed.
    """
    lock = take_lock(lock_path or folder / LOCK_FILE)
    if lock is None:
        raise UserError(
            f"{folder}: another command is at work in it; wait until that ends, or give another "
            "folder"
        )
    try:
        yield
    finally:
        lock.release()
