"""The packages of the `export` extra, imported when they are needed."""

import sys
from importlib import import_module
from types import ModuleType

from synth.base.errors import UserError


def runtime(name: str) -> ModuleType:
    """Import a package of the `export` extra. Raises UserError where it is missing.

    OpenVINO reports its use to its makers on import; without its telemetry package it cannot.
    """
    if name == "openvino" and "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"export: the package {name} is missing; run `pip install siaforge[export]`"
        ) from None
