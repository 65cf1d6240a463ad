"""The Data view: an SIA folder as a gallery, or what is wrong with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from detect.app import data
from detect.app.data import Span
from detect.app.wiring import ONE_AT_A_TIME, QUICK, lines, listed, told
from synth.pictures import cell
from synth.sia.reader import SiaFolder, open_sia

MAX_SHOWN = 200
"""Images in the gallery; more are counted."""
SHOWN_PX = 360


def data_tab(runs: Path) -> None:
    """Lay out the view."""
    numbers = gr.State(())
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            folder = listed(
                runs,
                lambda found: found.sia,
                label="SIA folder",
                info="A folder of anomaly images, as `synth generate` and `synth blend` write it.",
                missing="synth generate --model MODEL --out",
            )
            categories = gr.Dropdown(label="Category", multiselect=True, visible=False)
            bounds = [
                gr.Slider(label=f"{name.capitalize()} {end}", visible=False)
                for name in data.MEASURES
                for end in ("from", "to")
            ]
            status = gr.HTML(elem_classes="lines")
        with gr.Column(scale=9, min_width=400):
            gallery = gr.Gallery(
                show_label=False, columns=5, height=680, object_fit="contain", format="png",
                allow_preview=False, buttons=[],
            )  # fmt: skip
        with gr.Column(scale=5, min_width=300):
            large = gr.Image(label="Image", height=SHOWN_PX, buttons=["fullscreen"])
            row = gr.JSON(label="Row in metadata.jsonl")

    filters = [folder, categories, *bounds]
    shown = [gallery, numbers, status]
    folder.change(told(open_folder), folder, [categories, *bounds, *shown], **ONE_AT_A_TIME)
    for each in (categories, *bounds):
        each.input(told(choose), filters, shown, **QUICK)
    gallery.select(told(show_row), [folder, numbers], [large, row], show_progress="hidden")


# Events


def open_folder(folder: str | None) -> tuple[Any, ...]:
    """Check a folder and show all of it; where it is broken, only what is wrong."""
    hidden = [gr.Slider(visible=False)] * 4
    if not folder:
        return gr.Dropdown(visible=False), *hidden, None, (), ""
    faults = data.faults(Path(folder))
    if faults:
        told_of = lines(faults, f"{len(faults)} faults")
        return gr.Dropdown(visible=False), *hidden, None, (), told_of
    sia = open_sia(Path(folder))
    known = sorted({str(row["category"]) for row in sia.rows if "category" in row})
    bounds = [slider for name in data.MEASURES for slider in sliders(sia, name)]
    everything = gallery_of(sia, data.matching(sia, ()))
    return gr.Dropdown(known, value=[], visible=len(known) > 1), *bounds, *everything


def sliders(sia: SiaFolder, name: str) -> list[gr.Slider]:
    """Both ends of what is shown of a number, at first all; hidden where all rows have the same."""
    span = data.span(sia.rows, name)
    if span is None:
        return [gr.Slider(0, 1, 0, visible=False), gr.Slider(0, 1, 1, visible=False)]
    return [gr.Slider(*span, value, step=0.01, visible=True) for value in span]


def choose(folder: str, categories: Sequence[str], *bounds: float) -> tuple[Any, ...]:
    """The gallery of what the filters leave."""
    sia = open_sia(Path(folder))
    spans = {
        name: Span(*bounds[2 * number : 2 * number + 2])
        for number, name in enumerate(data.MEASURES)
        if data.span(sia.rows, name) is not None
    }
    return gallery_of(sia, data.matching(sia, categories, **spans))


def gallery_of(sia: SiaFolder, numbers: Sequence[int]) -> tuple[Any, ...]:
    """The gallery, the numbers of its rows, and how many there are."""
    few = tuple(numbers[:: -(-len(numbers) // MAX_SHOWN) or 1])
    pictures = [(data.picture(sia, number), data.caption(sia.rows[number])) for number in few]
    more = [f"{len(few)} of them are shown, evenly chosen"] if len(few) < len(numbers) else []
    about = f"{sia.kind} images of {sia.dataset}/{sia.category}, by rising strength"
    return pictures, few, lines([about, *more], f"{len(numbers)} of {len(sia.rows)} images")


def show_row(folder: str, numbers: Sequence[int], event: gr.SelectData) -> tuple[Any, Any]:
    """The image that was clicked, and its row."""
    sia, number = open_sia(Path(folder)), numbers[event.index]
    return cell(data.picture(sia, number), SHOWN_PX, 0), json.dumps(sia.rows[number])
