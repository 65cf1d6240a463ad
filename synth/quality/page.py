"""inspect.html: what `synth inspect` found, on one page that needs no other file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from synth.base.files import write_text
from synth.base.html import bullets, document, embedded_image, figure, paragraphs, section, table
from synth.quality.check import percent
from synth.quality.groups import Group
from synth.quality.kid import Measured

HEAD = (
    "Images", "Strength s", "Number", "Distance", "KID", "Unlike the product",
    "Near-copies", "Diversity", "Grain",
)  # fmt: skip
RISING = "Sample 0 of the seed: the same noise, only the strength s differs. 0 is a plain sample."
SCRIPT = """
const [large, ...frames] = document.querySelectorAll(".scrub figure");
const slider = document.querySelector(".scrub input");
function show() {
  const shown = frames[slider.value];
  large.firstChild.src = shown.firstChild.src;
  large.lastChild.textContent = shown.textContent.replace("\\n", ", ");
  slider.ariaValueText = large.lastChild.textContent;
  for (const frame of frames) frame.classList.toggle("shown", frame === shown);
}
slider.oninput = show;
frames.forEach((frame, n) => { frame.onclick = () => { slider.value = n; show(); }; });
large.hidden = slider.hidden = false;
show();
"""
"""Shows one frame of a scrub large; without it there is the row of frames."""


class Picture(NamedTuple):
    """A picture (PNG) with its heading and a caption."""

    title: str
    caption: str
    path: Path


def write_page(
    path: Path,
    title: str,
    findings: Sequence[str],
    groups: Sequence[Group],
    notes: Sequence[str],
    pictures: Sequence[Picture],
    frames: Sequence[Picture] = (),
) -> None:
    """Write the page. frames: one sample as its strength rises. Raises as `atomic_path`."""
    rows = [row(group) for group in groups]
    shown = (section(each.title, image(each), each.caption) for each in pictures)
    figures = table(HEAD, rows, range(1, len(HEAD))) if rows else ""
    head = f"<header><h1>{escape(title)}</h1>{bullets(findings)}</header>"
    rising = section("One seed at rising strength", scrub(frames), RISING)
    parts = [head, figures, paragraphs(notes), rising, *shown]
    write_text(path, document(title, parts, SCRIPT if frames else ""))


def scrub(frames: Sequence[Picture]) -> str:
    """A slider over pictures above a row of them; empty without pictures."""
    if not frames:
        return ""
    row = "".join(figure(image(frame), f"{frame.title}\n{frame.caption}") for frame in frames)
    return (
        f'<div class="scrub" style="--columns: {len(frames)}">'
        '<figure class="large" hidden><img alt="the sample at this strength"><figcaption>'
        "</figcaption></figure>"
        f'<input type="range" max="{len(frames) - 1}" value="0" aria-label="Strength s" hidden>'
        f'<div class="strip">{row}</div></div>'
    )


def image(picture: Picture) -> str:
    """A picture inside the page."""
    return embedded_image(picture.path.read_bytes(), "png", picture.title)


def row(group: Group) -> tuple[str, ...]:
    """The figures of a group as text, in the order of HEAD."""
    return (
        group.name,
        "" if group.strength is None else f"{group.strength:.3g}",
        str(group.num_images),
        with_error(group.quality, 2),
        with_error(group.kid, 3),
        percent(group.share_far),
        percent(group.share_copies),
        "" if group.diversity is None else f"{group.diversity:.2f}",
        f"{group.grain:.2f}",
    )


def with_error(measured: Measured | None, digits: int) -> str:
    """A value and its standard error, such as 1.52 ± 0.04; "too few" where there is none."""
    if measured is None:
        return "too few"
    error = "" if measured.error is None else f" ± {measured.error:.{digits}f}"
    return f"{measured.value:.{digits}f}{error}"
