"""Files that are either whole or absent, and folders that remember what made them."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synth.errors import UserError

Json = dict[str, Any]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends without an error.

    Raises UserError when the disk is full; nothing half-written stays behind, `path` keeps its old
    content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: the disk is full; free some space and run the same command again, "
                "what is already written is kept"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all (see `atomic_path`)."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Json:
    """The JSON object in `path`. Raises UserError when it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this the folder that you meant?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete its folder and make it anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def claim_folder(folder: Path, config: Mapping[str, Any], name: str = "config.json") -> bool:
    """Mark `folder` as made with `config`; True when it already was, so that the work goes on.

    Raises UserError that lists the differences when the folder was made with another
    configuration.
    """
    path = folder / name
    wanted = json.loads(json.dumps(config))
    if not path.exists():
        write_json(path, wanted)
        return False
    differences = config_differences(read_json(path), wanted)
    if differences:
        raise UserError(
            f"{folder}: made with another configuration ({'; '.join(differences)}); "
            "give the same options to continue it, or another --out"
        )
    return True


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
