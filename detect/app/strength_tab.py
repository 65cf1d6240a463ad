"""The Strength view: what a diffusion model makes of one seed as the strength rises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr

from detect.app import strength
from detect.app.strength import STRENGTHS, Drawn
from detect.app.wiring import ONE_AT_A_TIME, QUICK, kept, listed, so_far, told
from synth.base.device import default_device
from synth.base.errors import UserError
from synth.base.files import read_json
from synth.diffusion.model import CONFIG_FILE, WEIGHTS_FILE, load_model
from synth.images import read_image
from synth.pictures import cell
from synth.quality.reference import reference_path

SHOWN_PX = 480


loaded = kept(lambda model: load_model(model, default_device()), WEIGHTS_FILE)
"""Load a model. Raises UserError as `load_model`."""


def strength_tab(runs: Path, root: Path) -> None:
    """Lay out the view. root: where images are drawn to, once for all who look at them."""
    drawn = gr.State(None)
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            model = listed(
                runs,
                lambda found: found.models,
                label="Diffusion model",
                missing="synth train --root PHOTOS --out",
                chosen=True,
            )
            category = gr.Dropdown(label="Category", visible=False)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                start = gr.Button("Draw", variant="primary", min_width=100)
                stop = gr.Button("Cancel", min_width=100)
            another = gr.Button("Another seed")
            photograph = gr.File(label="A photograph to blend into", height=140)
            status = gr.HTML(elem_classes="lines")
        with gr.Column(scale=7, min_width=400):
            s = gr.Slider(
                0, 1, 0, step=0.05, label="Strength s",
                info="0 is a plain sample; higher is more anomalous. The nearest is shown.",
            )  # fmt: skip
            large = gr.Image(label="Anomaly image", height=SHOWN_PX, buttons=["fullscreen"])
            strip = gr.Gallery(
                show_label=False, columns=len(STRENGTHS), height=130, object_fit="contain",
                allow_preview=False, buttons=[], elem_classes="strip",
            )  # fmt: skip
        with gr.Column(scale=9, min_width=400):
            mixed = gr.ImageSlider(
                label="Photograph with the mask, and the blend", buttons=["fullscreen"],
                slider_position=3, max_height=480,
            )  # fmt: skip
            opacity = gr.Slider(0, 1, 0.75, step=0.05, label="Opacity of the blend")
            curve = gr.Image(show_label=False, height=260, buttons=["fullscreen"])

    asked, result = [model, category, seed], [drawn, status]
    work = told(drawing(root))
    begun = start.click(work, asked, result, **ONE_AT_A_TIME)
    once_more = another.click(lambda seed: seed + 1, seed, seed).then(
        work, asked, result, **ONE_AT_A_TIME
    )
    stopped = stop.click(None, cancels=[begun, once_more])
    sample, mixture = [drawn, s], [drawn, s, photograph, opacity]
    for event in (begun.success, once_more.success, stopped.then):
        event(told(show_large), sample, large, show_progress="hidden")
        event(told(show), [drawn, model], [strip, curve], show_progress="hidden")
        event(told(mix), mixture, mixed, show_progress="hidden")
    s.input(told(show_large), sample, large, **QUICK)
    for event in (s.input, opacity.input, photograph.upload, photograph.clear):
        event(told(mix), mixture, mixed, **QUICK)
    gr.on(None, told(categories), model, category, **QUICK)


# Events


def drawing(root: Path) -> Any:
    """The handler that draws a seed at all strengths, into a folder below `root`."""

    def run(
        model: str | None,
        category: str | None,
        seed: float,
    ) -> Iterator[tuple[Drawn, str]]:
        if not model:
            raise UserError("no diffusion model below --runs; `synth train` makes one")
        network = loaded(Path(model))
        for drawn in strength.draw(
            network, category or network.categories[0], int(seed), root / "samples"
        ):
            done = len(drawn.files)
            yield drawn, so_far(done, len(STRENGTHS), f"strengths of seed {drawn.seed}")

    return run


def categories(model: str | None) -> gr.Dropdown:
    """The categories to choose from; hidden where the model knows only one."""
    known = (read_json(Path(model) / CONFIG_FILE).get("categories") if model else None) or []
    return gr.Dropdown(known, value=next(iter(known), None), visible=bool(known))


def show(drawn: Drawn | None, model: str) -> tuple[Any, Any]:
    """The images of all strengths side by side, and how far they are from normal ones."""
    if drawn is None:
        return None, None
    strip = [(str(file), f"{s:g}") for s, file in zip(STRENGTHS, drawn.files, strict=False)]
    return strip, response(drawn, Path(model))


def show_large(drawn: Drawn | None, s: float) -> Any:
    """The image that is nearest to a strength, its pixels as squares."""
    if drawn is None:
        return None
    number = drawn.at(s)
    enlarged = cell(read_image(drawn.files[number]), SHOWN_PX, 0)
    return gr.Image(enlarged, label=f"seed {drawn.seed}, s {STRENGTHS[number]:g}")


def response(drawn: Drawn, model: Path) -> str | None:
    """The curve of distance against strength, where the model's folder says what is normal."""
    if not reference_path(model, drawn.category if drawn.model.conditional else None).exists():
        return None
    path = drawn.files[0].with_name(f"{uuid4().hex}.png")
    strength.write_curve(path, strength.distances(model, drawn))
    return str(path)


def mix(drawn: Drawn | None, s: float, photograph: str | None, opacity: float) -> Any:
    """The photograph with its mask, and the image of the seed blended into it."""
    if drawn is None or photograph is None:
        return None
    return strength.blended(drawn, s, Path(photograph), opacity)
