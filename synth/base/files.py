"""Files that are either whole or absent."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from synth.base.errors import UserError
from synth.base.memory import is_out_of_memory

Json = dict[str, Any]

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
PARTIAL_SUFFIX = ".partial"
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What odd values in a file raise, anywhere; JSON that is nested too deep is a RuntimeError."""
LONGEST_REASON = 200
LONGEST_COMPONENT = 255
NUMBERS = re.compile(r"\[\n\s+([^][{}\"]+?)\n\s+\]")
NOT_IN_COMPONENTS = frozenset("/\\\0")


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


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Write `value` as `json_text` has it, whole or not at all (see `atomic_path`)."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Indented JSON; a list of numbers stays on one line."""
    text = json.dumps(value, indent=2)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def read_json(path: Path, cure: str = "delete its folder and make it anew") -> Json:
    """The JSON object in `path`. Raises UserError when it is missing, unreadable or no object.

    cure: the way out that is named when it is damaged.
    """
    with reading(path, cure):
        return json_object(path.read_bytes())


def read_json_lines(path: Path, cure: str) -> Iterator[Json]:
    """The JSON objects in the lines of `path`, one in memory at a time. Raises as `read_json`."""
    with reading(path, cure), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json_object(line)
            except DAMAGE as error:
                raise ValueError(f"line {number}: {error}") from None
            yield value


def json_object(text: bytes) -> Json:
    """The JSON object in UTF-8 `text`. Raises ValueError or RecursionError for anything else."""
    value = json.loads(text.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


@contextlib.contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Turn any error about the content of a file of ours into a UserError that names the file.

    cure: the way out that is named when it is damaged.
    """
    try:
        yield
    except UserError as error:
        named = str(error).startswith(str(path.parent))
        raise error if named else UserError(f"{path}: damaged ({error}); {cure}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; is this the folder that you meant?") from None
    except OSError as error:
        raise UserError(read_fault(path, error)) from None
    except DAMAGE as error:
        if is_out_of_memory(error):
            raise
        reason = f"field {error}" if isinstance(error, KeyError) else str(error)
        told = printable(reason)[:LONGEST_REASON] or type(error).__name__
        raise UserError(f"{path}: damaged ({told}); {cure}") from error


def require_component(name: str, value: object) -> str:
    """Return `value`, which is to name a file or folder, as text.

    Raises UserError for anything but one component of a path: a name from a file must not lead
    elsewhere.
    """
    if (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and not NOT_IN_COMPONENTS & set(value)
        and len(os.fsencode(value)) <= LONGEST_COMPONENT
    ):
        return value
    shown = repr(value)[:LONGEST_REASON]
    raise UserError(
        f"{name} is {shown}, must be the name of one folder: no / or \\, not '..', at most "
        f"{LONGEST_COMPONENT} bytes"
    )


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
            there, here = (
                textwrap.shorten(json.dumps(value), LONGEST_REASON // 2, placeholder=" ...")
                for value in (before, after)
            )
            found.append(f"{prefix}{key}: {there} there, {here} here")
    return found
