"""`detect app`."""

import os
from pathlib import Path
from typing import Annotated

import tyro

from synth.base.command import say
from synth.base.errors import UserError
from synth.base.options import require_not_negative

Runs = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
LARGEST_PORT = 65_535


def app(*, runs: Runs, port: int = 7860, dry_run: bool = False) -> None:
    """Open a page to look through: scores and heat maps, anomaly images by strength, SIA folders.

    For a browser on this machine: the page is not served to others, and works without a network.
    Ctrl-C ends it. Photographs that were dropped on it are removed then. Needs
    `pip install "siaforge[app]"`.

    Args:
        runs: Where detectors, predictions, diffusion models and SIA folders lie, at any depth.
        port: Of the address; 0 takes any that is free.
        dry_run: Say what is found below --runs, and end.

    """
    require_not_negative(port=port)
    if port > LARGEST_PORT:
        raise UserError(f"--port: got {port}, must be {LARGEST_PORT} or less")
    if not runs.is_dir():
        raise UserError(f"--runs: {runs} is no folder; give one below which detectors lie")
    from detect.app.found import find

    say(f"found below {runs}: {find(runs).summary}")
    if dry_run:
        return
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError(
            'app: the package gradio is missing; run `pip install "siaforge[app]"`'
        ) from None
    say("starting the page ...")
    from detect.app.page import serve
    from detect.prediction.watch import stop_on_interrupt

    with stop_on_interrupt() as stop:
        serve(runs, port, stop, lambda address: say(f"page: {address} (Ctrl-C ends it)"))
