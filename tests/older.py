"""Run folders as an older version left them."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def without_run(folder: Path) -> None:
    """Make states what they were before they carried their run."""
    for path in folder.rglob("state.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata())
        del metadata["run"]
        save_file(load_file(path), path, metadata)
