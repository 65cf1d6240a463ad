"""Files that are either whole or absent."""

import contextlib
import errno
import glob
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from synth.base.errors import UserError

Json = dict[str, Any]

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error.

    Missing folders are made. The file gets the rights that any new one gets, whoever writes it:
    safetensors hides what it writes from all others. Raises UserError when the disk is full or the
    file system refuses; nothing half-written stays behind, `path` keeps its old content.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            if partial.stat().st_mode != mode:
                partial.chmod(mode)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise UserError(write_fault(path, error)) from error


def write_fault(path: Path, error: OSError | SafetensorError) -> str:
    """Why `path` could not be written, and the way out, in one line."""
    # safetensors reports the system's errors as text: "... (os error 28)"
    stated = re.search(r"os error (\d+)", str(error))
    number = int(stated[1]) if stated else error.errno if isinstance(error, OSError) else None
    if number in FULL_DISK:
        return (
            f"{path}: not written, the disk is full; free some space and run the same command "
            "again, what is already written is kept"
        )
    reason = os.strerror(number) if number else str(error)
    return f"{path}: not written ({reason}); choose a folder that can be written to"


def read_fault(path: Path, error: OSError) -> str:
    """Why `path`, which is there, could not be read, and the way out, in one line."""
    return f"{path}: cannot be read ({error.strerror or error}); check the file and its rights"


def remove_partials(path: Path) -> None:
    """Remove what a killed process left of `path`; only where no other process writes it."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def printable(name: str) -> str:
    """Any name of a file in one line, with escapes for bytes that are not UTF-8."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode("utf-8").splitlines())


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all (see `atomic_path`)."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, cure: str = "delete its folder and make it anew") -> Json:
    """The JSON object in `path`. Raises UserError when it is missing, unreadable or no object.

    cure: the way out that is named when it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; is this the folder that you meant?") from None
    except OSError as error:
        raise UserError(read_fault(path, error)) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); {cure}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}; {cure}")
    return value


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """`field: old there, new here` for every leaf in which two JSON objects differ."""
    found: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += config_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {json.dumps(before)} there, {json.dumps(after)} here")
    return found
