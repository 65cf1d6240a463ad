"""Folders that remember what made them."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from synth.base.errors import UserError
from synth.base.files import (
    FULL_DISK,
    PARTIAL_SUFFIX,
    config_differences,
    json_text,
    read_json,
    write_fault,
    write_json,
)
from synth.base.locks import take_lock


def claim_folder(
    folder: Path,
    config: Mapping[str, Any],
    name: str = "config.json",
    work: Path | None = None,
    upgraded: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> bool:
    """Mark `folder` as made with `config`; True when it already was, so that the work goes on.

    upgraded: reads the recorded configuration as this version would have written it: fields that it
    lacks have their defaults. work: the first thing that is made in the folder; while it does not
    exist, another configuration takes the folder over, since nothing would be lost. Otherwise, when
    the folder was made with another configuration, raises UserError that lists the differences.
    """
    path = folder / name
    wanted = json.loads(json.dumps(config))
    if create_json(path, wanted):
        return False
    recorded = json.loads(json.dumps(upgraded(read_json(path))))
    differences = config_differences(recorded, wanted)
    if differences and work is not None and not work.exists():
        write_json(path, wanted)
        return False
    if differences:
        raise UserError(
            f"{folder}: made with another configuration ({'; '.join(differences)}); "
            "give the same options to continue it, or another --out"
        )
    return True


def create_json(path: Path, value: object) -> bool:
    """Write `value` as JSON unless `path` exists; of several processes only one makes it, whole."""
    if path.exists():
        return False
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    text = json_text(value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            return create_without_links(path, partial, text)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(write_fault(path, error)) from error
    return True


def create_without_links(path: Path, partial: Path, text: str) -> bool:
    """As `create_json` where the file system has no hard links; `partial` is written already.

    Where it has no locks either, a process that dies within these lines leaves half a file.
    """
    lock = take_lock(path.with_name(f".{path.name}.lock"), wait=True)
    assert lock is not None
    try:
        if lock.held is None:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        elif path.exists():
            return False
        else:
            os.replace(partial, path)
    except FileExistsError:
        return False
    finally:
        lock.release()
    return True
