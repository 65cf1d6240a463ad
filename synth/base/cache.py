"""Where files lie that are written once and can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/siaforge, or ~/.cache/siaforge."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "siaforge"
