"""The page: its views, and the server that shows it on this machine alone."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from detect.app.data_tab import data_tab
from detect.app.look_tab import look_tab
from detect.app.strength_tab import strength_tab
from detect.app.wiring import CSS, THEME
from synth.base.errors import UserError

HOST = "127.0.0.1"
DAY = 86_400


def serve(runs: Path, port: int, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Serve the page until `stop` is set; `tell` is told its address.

    port: 0 takes any that is free. Uploads and pictures lie in a folder that is removed at the end.
    Raises UserError for a port that is taken.
    """
    with tempfile.TemporaryDirectory(prefix="siaforge-app-") as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        for name in ("no_proxy", "NO_PROXY"):  # gradio calls itself
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
        page = build(runs, Path(root))
        page.queue(default_concurrency_limit=8)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port or free_port(),
                share=False,
                theme=THEME,
                css=CSS,
                footer_links=[],
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                inline=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
            )
        except OSError as error:
            raise UserError(
                f"--port: {port} is taken; give another one, or 0 for any that is free"
            ) from error
        tell(address)
        stop.wait()
        page.close(verbose=False)


def build(runs: Path, root: Path) -> gr.Blocks:
    """All views."""
    with gr.Blocks(
        title="detect app", analytics_enabled=False, fill_width=True, delete_cache=(DAY, DAY)
    ) as page:
        with gr.Tab("Look"):
            look_tab(runs, root)
        with gr.Tab("Strength"):
            strength_tab(runs, root)
        with gr.Tab("Data"):
            data_tab(runs)
    return page


def free_port() -> int:
    """Any port that is free."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
