"""What all views of the page share: its looks, and a user's mistake as one line in the browser."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.themes import Default

from detect.app.found import Found, find
from synth.base.errors import UserError
from synth.base.html import bullets

T = TypeVar("T")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONOSPACED = ["ui-monospace", "Consolas", "monospace"]
THEME = Default(font=FONTS, font_mono=MONOSPACED)
"""Fonts of the system: those of gradio's own themes may come from elsewhere."""
CSS = """
.toast-wrap.toast-wrap { inset: auto auto 1rem 1rem; max-width: 22rem; }
[data-testid="status-tracker"]:has(.error) { display: none !important; }
.lines h3 { margin: 0 0 0.4rem; }
.caption-label.caption-label {
  inset: auto 0 0 0; max-width: none; padding: 0.15rem 0.4rem; border-width: 1px 0 0;
  border-radius: 0; font-size: 0.78rem; line-height: 1.25; white-space: pre-line;
  opacity: 1 !important;
}
.thumbnail-lg.thumbnail-lg { aspect-ratio: 5 / 6; }
.thumbnail-lg.thumbnail-lg > img { position: absolute; inset: 0; height: calc(100% - 2.3rem); }
.lines progress { width: 100%; }
.json-holder * { overflow-wrap: anywhere; }
.strip.strip .grid-container { grid-template-columns: repeat(7, minmax(0, 1fr)); gap: 0.2rem; }
.lines ul { margin: 0; padding-left: 1.1rem; }
.lines li { margin: 0.15rem 0; overflow-wrap: anywhere; }
.scale { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 0.2rem; font-size: 0.85rem; }
.scale i { grid-column: 1 / -1; height: 0.7rem; border-radius: 0.2rem; }
.scale span:nth-of-type(2) { text-align: center; }
.scale span:nth-of-type(3) { text-align: right; }
"""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1}
"""Of events that use a network: others wait for their turn."""
QUICK: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
"""Of events that follow a slider."""


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same handler; a UserError ends it with one line in the browser, nothing is changed."""

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise refusal(error) from error

    @functools.wraps(function)
    def answers(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except UserError as error:
            raise refusal(error) from error

    return answers if inspect.isgeneratorfunction(function) else answer


def refusal(error: UserError) -> gr.Error:
    """What the browser shows of a user's mistake; uploaded files are called by their names."""
    text = re.sub(r"/\S*/[0-9a-f]{64}/", "", str(error))
    return gr.Error(escape(text), duration=10, title="", print_exception=False)


def kept(load: Callable[..., T], mark: str) -> Callable[..., T]:
    """The same loader; what it loaded last stays in memory until the file `mark` changes."""

    @functools.lru_cache(maxsize=4)
    def once(version: int, folder: Path, *rest: Any) -> T:
        return load(folder, *rest)

    def latest(folder: Path, *rest: Any) -> T:
        file = folder / mark
        return once(file.stat().st_mtime_ns if file.exists() else 0, folder, *rest)

    return latest


def lines(sentences: Iterable[str], title: str = "") -> str:
    """Plain sentences as HTML, below a title."""
    return (f"<h3>{escape(title)}</h3>" if title else "") + bullets(sentences)


def so_far(done: int, total: int, what: str, sentences: Iterable[str] = ()) -> str:
    """How far work has come, as a bar, and what it has to say."""
    bar = f'<progress value="{done}" max="{total}"></progress>' if done < total else ""
    return bar + lines([f"{done} of {total} {what}", *sentences])


def listed(
    runs: Path,
    of: Callable[[Found], list[Path]],
    *,
    label: str,
    info: str = "",
    missing: str = "",
    chosen: bool = False,
    **about: Any,
) -> gr.Dropdown:
    """A list of the folders of a kind below `runs`, searched for again when the page is loaded.

    missing: the command that makes one, up to its folder, told where there is none. chosen: whether
    the list begins with the first of them. about: as `gr.Dropdown`.
    """

    def found() -> dict[str, Any]:
        names = [(path.relative_to(runs).as_posix(), str(path)) for path in of(find(runs))]
        way_out = f"There is none yet. Run `{missing} {runs / 'NAME'}` and reload this page."
        return {"choices": names, "info": info if names or not missing else way_out}

    known = found()
    first = known["choices"][0][1] if chosen and known["choices"] else None
    here = gr.Dropdown(**known, value=first, label=label, **about)
    gr.on(None, lambda: gr.Dropdown(**found()), None, here, show_progress="hidden")
    return here
