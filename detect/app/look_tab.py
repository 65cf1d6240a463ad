"""The Look view: photographs, or the folder of a prediction, at any false-reject rate."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np

from detect.app import look
from detect.app.found import find
from detect.app.look import Session
from detect.app.wiring import ONE_AT_A_TIME, QUICK, kept, lines, listed, so_far, told
from detect.checkpoint import CALIBRATION_FILE
from detect.heatmap import heat_picture
from detect.prediction.log import LOG_FILE, read_rows
from detect.prediction.predictor import load_predictor
from detect.prediction.region import as_region
from synth.base.errors import UserError
from synth.images import write_png

MAX_SHOWN = 300
"""Thumbnails in the gallery; images with lower scores are counted and downloaded all the same."""
DOWNLOAD = "() => setTimeout(() => document.querySelector('#zip').click(), 100)"


loaded = kept(
    lambda detector, category: load_predictor(detector, category=category), CALIBRATION_FILE
)
"""Load a detector with a category's threshold. Raises UserError as `load_predictor`."""


def look_tab(runs: Path, root: Path) -> None:
    """Lay out the view. root: where each person's images get a folder of their own."""
    session = gr.State(None, delete_callback=forget)
    chosen = gr.State(0)
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            detector = listed(
                runs,
                lambda found: found.detectors,
                label="Detector",
                missing="detect fit PHOTOS --out",
                chosen=True,
            )
            category = gr.Dropdown(label="Category", info="Its threshold applies.", visible=False)
            files = gr.File(label="Photographs", file_count="multiple", height=200)
            place = listed(
                runs,
                lambda found: found.predictions,
                label="Or a folder",
                info="Images are scored; what `detect predict` wrote is opened. Type any path.",
                allow_custom_value=True,
            )
            with gr.Row():
                start = gr.Button("Score", variant="primary", min_width=100)
                stop = gr.Button("Cancel", min_width=100)
            status = gr.HTML(elem_classes="lines")
        with gr.Column(scale=7, min_width=400):
            rate = gr.Slider(
                0.1,
                50,
                5,
                step=0.1,
                label="False-reject rate (%)",
                info="The share of normal images that may be called anomalous.",
            )
            summary = gr.HTML(elem_classes="lines")
            gallery = gr.Gallery(
                show_label=False,
                columns=3,
                height=600,
                object_fit="contain",
                allow_preview=False,
                buttons=[],
            )
            pack = gr.Button("Download scores, masks and overlays")
            packed = gr.DownloadButton(elem_id="zip", visible="hidden")
        with gr.Column(scale=9, min_width=400):
            large = gr.ImageSlider(
                label="Photograph and heat map",
                buttons=["fullscreen"],
                slider_position=3,
                max_height=720,
            )
            opacity = gr.Slider(0, 1, 1, step=0.05, label="Opacity of the heat map")
            gr.HTML(legend())
            with gr.Accordion("Ignore a region of all images", open=False):
                painted = gr.ImageEditor(
                    label="Paint what is to be ignored",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=40, colors=["#22d3ee"], color_mode="fixed"),
                    buttons=[],
                )
                mask = gr.File(label="Or a mask image: what is not black is ignored", height=140)
                ignore = gr.Button("Apply")

    begun = start.click(
        told(begin(runs, root)),
        [detector, category, files, place, session],
        [session, status, rate, chosen],
        **ONE_AT_A_TIME,
    )
    stopped = stop.click(None, cancels=[begun])
    gr.on(None, told(categories), detector, category, **QUICK)
    picked = gallery.select(choose, None, chosen)
    begun.success(canvas, session, painted, **QUICK)
    left = ignore.click(told(leave_out), [session, painted, mask], [session, chosen])
    at, everything = [session, rate, chosen, opacity], [summary, gallery, large]
    for event in (begun.success, stopped.then, left.success, rate.input):
        event(told(show), at, everything, **QUICK)
    for event in (opacity.input, picked.then):
        event(told(show_large), at, large, **QUICK)
    made = pack.click(told(make_zip), [session, rate], packed, show_progress_on=summary)
    made.success(None, js=DOWNLOAD)


# Events


def begin(runs: Path, root: Path) -> Any:
    """The handler that scores or opens what was chosen, in a new folder below `root`."""

    def run(
        detector: str | None,
        category: str | None,
        files: Sequence[str] | None,
        place: str | None,
        before: Session | None,
    ) -> Iterator[tuple[Session | None, str, Any, int]]:
        folder = Path(tempfile.mkdtemp(dir=root))
        total, sessions = source(runs, detector, category or None, files or (), place, folder)
        forget(before)
        yield None, so_far(0, total, "images"), gr.skip(), 0
        for session in sessions:
            done = len(session.shots) + len(session.faults)
            yield session, so_far(done, total, "images", session.faults), rate_of(session), 0

    return run


def source(
    runs: Path,
    detector: str | None,
    category: str | None,
    files: Sequence[str],
    place: str | None,
    folder: Path,
) -> tuple[int, Iterator[Session]]:
    """How many images are to be looked at, and the sessions that grow by them.

    category: whose threshold applies; None is that of all together. Raises UserError for nothing to
    look at.
    """
    if files and place:
        raise UserError("got photographs and a folder; remove one of them")
    if files:
        images = [(Path(file).name, Path(file)) for file in files]
    elif not place:
        raise UserError("nothing to look at; drop photographs, or choose a folder")
    elif (Path(place) / LOG_FILE).exists():
        total = sum(1 for _ in read_rows(Path(place) / LOG_FILE))
        return total, look.open_prediction(Path(place), find(runs).detectors, folder)
    else:
        images = look.images_in(Path(place))
    if not detector:
        raise UserError(f"no detector below {runs}; `detect fit` makes one")
    return len(images), look.score(loaded(Path(detector), category), images, folder)


def categories(detector: str | None) -> gr.Dropdown:
    """The categories to choose from; hidden where there is one threshold only."""
    own = look.categories(Path(detector)) if detector else []
    return gr.Dropdown([("all together", ""), *own], value="", visible=bool(own))


def rate_of(session: Session) -> Any:
    """The slider at the rate that the images come with; fixed where no other can be had."""
    known = session.calibration
    return gr.Slider(
        value=5 if known is None else 100 * known.false_reject_rate, interactive=known is not None
    )


def show(session: Session | None, rate: float, chosen: int, opacity: float) -> tuple[Any, ...]:
    """Summary, gallery and large picture at a rate in per cent."""
    if session is None or not session.shots:
        return "", None, None
    at = session.at(round(rate / 100, 6))
    shown = [(str(shot.thumbnail), look.caption(at, shot)) for shot in at.shots[:MAX_SHOWN]]
    more = len(at.shots) - len(shown)
    hidden = [f"The gallery has the {MAX_SHOWN} highest scores; {more} more are lower"]
    summary = lines([*look.promises(at), *(hidden if more else [])], look.counts(at))
    return summary, shown, show_large(session, rate, chosen, opacity)


def show_large(session: Session | None, rate: float, chosen: int, opacity: float) -> Any:
    """The large picture: photograph, and the same under its heat map."""
    if session is None or not session.shots:
        return None
    at = session.at(round(rate / 100, 6))
    shot = at.shots[min(chosen, len(at.shots) - 1)]
    # A browser asks again for new names only.
    paths = [session.folder / f"{uuid4().hex}.png" for _ in range(2)]
    for path, picture in zip(paths, look.pictures(at, shot, opacity), strict=True):
        write_png(path, picture)
    return gr.ImageSlider(value=(str(paths[0]), str(paths[1])), label=look.caption(at, shot))


def choose(event: gr.SelectData) -> int:
    """The number of the image that was clicked."""
    return event.index


def canvas(session: Session | None) -> Any:
    """The image to paint on: that of the highest score."""
    if session is None or not session.shots:
        return None
    return look.enlarged(session.shots[0])


def leave_out(
    session: Session | None, painted: dict[str, Any] | None, mask: str | None
) -> tuple[Session | None, int]:
    """The images without what is painted, or without the white of a mask file."""
    if session is None:
        return None, 0
    region = None if mask is None else as_region(Path(mask))
    for layer in (painted or {}).get("layers", ()):  # uint8 [H, W, 4]
        if region is None and layer[..., 3].any():
            region = layer[..., 3] > 0
    return session.ignoring(region), 0


def make_zip(
    session: Session | None,
    rate: float,
    bar: gr.Progress = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
) -> str:
    """Write the zip; its path."""
    if session is None or not session.shots:
        raise UserError("nothing to download yet; score images first")
    path = session.folder / "scores.zip"

    def progress(done: int, total: int) -> None:
        bar((done, total), unit="images")

    look.write_zip(session.at(round(rate / 100, 6)), path, progress)
    return str(path)


def forget(session: Session | None) -> None:
    """Remove a person's files."""
    if session is not None:
        shutil.rmtree(session.folder, ignore_errors=True)


# Pieces


def legend() -> str:
    """The colour scale, which is the same for all images."""
    steps = heat_picture(np.linspace(0, 1, 9)[None], 0, 1)[0]
    colours = ", ".join(f"rgb({r} {g} {b})" for r, g, b in steps.tolist())
    return (
        f'<div class="scale"><i style="background:linear-gradient(90deg, {colours})"></i>'
        "<span>clear: median of normal images</span><span>threshold</span>"
        "<span>far above it</span></div>"
    )
