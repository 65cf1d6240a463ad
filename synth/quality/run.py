"""A look at a diffusion model or an SIA folder: pictures, figures and a page that shows them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synth.base.backbones import DEFAULT_BACKBONE, BackboneConfig
from synth.base.files import write_json, write_text
from synth.base.progress import Bars
from synth.data.catalog import Category
from synth.data.normals import load_normals
from synth.diffusion.model import DiffusionModel
from synth.images import read_image, write_png
from synth.pictures import SheetRow, contact_sheet
from synth.quality.check import (
    SampleCheck,
    check_samples,
    copy_distance,
    grain,
    percent,
    pixel_noise,
)
from synth.quality.foreground_sheet import foreground_sheet
from synth.quality.groups import Examined, Group, closest, measure, measure_by_strength
from synth.quality.inspect_data import (
    Inspected,
    Sampling,
    add_folder,
    add_samples,
    keep_reference,
    open_normals,
)
from synth.quality.page import Picture, write_page
from synth.quality.plot import write_distance_plot
from synth.quality.reference import quality_scores
from synth.quality.sheets import (
    IN_A_ROW,
    NUM_STEPS,
    caption,
    copy_rows,
    folder_rows,
    strength_label,
)
from synth.quality.text import folder_findings, notes, strength_findings
from synth.sia.reader import SiaFolder

FOREGROUND_SIZE = (256, 256)
PAGE_FILE, FIGURES_FILE, SCORES_FILE = "inspect.html", "quality.json", "quality.csv"
SHEET_FILE, CURVE_FILE = "sheet.png", "distance.png"
COPIES_FILE, FOREGROUND_FILE = "near_copies.png", "foreground.png"


class Part(NamedTuple):
    """What a look found: sentences, figures, remarks on these, pictures.

    frames: one sample at rising strength.
    """

    findings: Sequence[str] = ()
    groups: Sequence[Group] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    frames: Sequence[Picture] = ()


def write_parts(category: Category, parts: Sequence[Part], out: Path) -> Path:
    """Put all that was found on one page in `out`; its path."""
    page = out / PAGE_FILE
    write_page(
        page,
        f"{category.name} ({category.dataset})",
        [text for part in parts for text in part.findings],
        [group for part in parts for group in part.groups],
        [text for part in parts for text in part.notes],
        [picture for part in parts for picture in part.pictures],
        [frame for part in parts for frame in part.frames],
    )
    return page


# The foreground


def look_at_foreground(category: Category, out: Path, bars: Bars) -> Part:
    """A sheet of training images with their foreground. Raises UserError for unreadable images."""
    found = foreground_sheet(load_normals(category, FOREGROUND_SIZE, bars))
    path = out / FOREGROUND_FILE
    write_png(path, found.sheet)
    low, middle, high = (percent(float(np.quantile(found.shares, q))) for q in (0, 0.5, 1))
    covers = "" if low == high else f"; it covers {low} to {high} of an image (median {middle})"
    finding = f"foreground: {found.rule}{covers}"
    how = "Anomalies are blended in where the image is not darkened. Below: the share of the image."
    return Part([finding], pictures=[Picture("Foreground", how, path)])


# A model and a folder


def look_at_images(
    category: Category,
    out: Path,
    bars: Bars,
    warn: Callable[[str], None],
    tell: Callable[[str], None],
    *,
    model: tuple[Path, DiffusionModel] | None,
    folder: SiaFolder | None,
    sampling: Sampling,
    backbone: BackboneConfig = DEFAULT_BACKBONE,
) -> Part:
    """Compare a model's samples, a folder's images, or both with a category's normal images.

    All are compared at the model's image size, else at the folder's. A model that was trained on
    these images gets its reference; `warn` is told where it was not, and `tell` how many samples
    are to be drawn. Raises UserError for unreadable images, and for a category that a conditional
    model does not know.
    """
    if model is not None:
        size = model[1].image_size
    else:
        assert folder is not None, "one of the two"
        height, width = folder.read_image(0).shape[:2]
        size = (height, width)
    data = open_normals(category, size, bars, backbone)
    if model is not None:
        path, diffusion = model
        data = add_samples(data, diffusion, sampling, out, bars, tell)
        keep_reference(data, diffusion, path, warn)
    if folder is not None:
        data = add_folder(data, folder, bars)
    return judge(data, out)


def judge(data: Inspected, out: Path) -> Part:
    """Measure what was looked at, and write figures, scores and pictures to `out`."""
    reference = data.reference
    f_held = reference.describe(data.normals.held)
    normal = pixel_noise(data.normals.held)
    floor = measure(reference, "held-out normal images", None, f_held, grain(normal, normal))
    samples = [
        group for part in data.samples for group in measure_by_strength(reference, part, normal)
    ]
    whole, bins = [], []
    if data.images is not None and data.folder is not None:
        folder_grain = grain(data.images.noise, normal)
        name = "folder, all images"
        whole = [measure(reference, name, None, data.images.features, folder_grain)]
        bins = measure_by_strength(reference, data.images, normal)
        write_scores(out / SCORES_FILE, data.images, data.folder)
    check = check_plain_samples(data)
    groups = [floor, *samples, *whole, *(bins if len(bins) > 1 else [])]
    write_json(out / FIGURES_FILE, figures(data, groups, check))
    findings = [] if check is None else [check.sentence]
    findings += strength_findings(samples, floor)
    findings += folder_findings(whole, floor, data.folder)
    curve = out / CURVE_FILE
    pictures = write_sheets(data, out)
    if samples or bins:
        write_distance_plot(curve, floor, samples, bins, data.images)
        what = "Bars and band: one standard error. Dots: single images of the folder."
        pictures.insert(1, Picture("Distance to normal against strength", what, curve))
    return Part(findings, groups, notes(data, groups), pictures, rising(data))


def check_plain_samples(data: Inspected) -> SampleCheck | None:
    """The verdict on the samples at strength 0, None where there are none."""
    for part in data.samples:
        if part.strengths[0] == 0:
            images = np.stack([part.read(n) for n in range(len(part.quality))])
            return check_samples(data.reference, images, data.normals.held)
    return None


def write_scores(path: Path, images: Examined, folder: SiaFolder) -> None:
    """Write a folder's scores, one line per image."""
    lines = ["index,strength,quality"]
    for row, s, quality in zip(folder.rows, images.strengths, images.quality, strict=True):
        lines.append(f"{row['index']},{'' if np.isnan(s) else f'{s:g}'},{quality:.4f}")
    write_text(path, "\n".join(lines) + "\n")


def figures(data: Inspected, groups: Sequence[Group], check: SampleCheck | None) -> dict[str, Any]:
    """All that was measured, and by what, as plain JSON types."""
    category, reference = data.normals.category, data.reference
    measured_by = {
        "backbone": data.backbone.name,
        "weights": data.backbone.weights,
        "digest": reference.backbone.digest,
        "image_size": list(reference.image_size),
        "num_training_images": len(data.normals.fit),
        "num_held_out_images": len(data.normals.held),
        "near_copy_below": copy_distance(reference),
        "num_steps": NUM_STEPS,
    }
    return {
        "dataset": category.dataset,
        "category": category.name,
        "measured_by": measured_by,
        "groups": [group.to_json() for group in groups],
        "check": None if check is None else check.to_json(),
    }


# In pictures


def rising(data: Inspected) -> list[Picture]:
    """One sample at rising strength, with its distance."""
    if not data.frames:
        return []
    distances = quality_scores(data.reference, map(read_image, data.frames.values()))
    return [
        Picture(f"s {s:g}", f"distance {distance:.2f}", path)
        for (s, path), distance in zip(data.frames.items(), distances, strict=True)
    ]


def write_sheets(data: Inspected, out: Path) -> list[Picture]:
    """Write the sheet of images and the one of near-copies."""
    held = data.normals.held[:IN_A_ROW]
    distances = data.reference.held_distances[: len(held)] / data.reference.unit
    captions = [f"distance {d:.2f}" for d in distances]
    rows = [SheetRow("normal images, held out", list(held), captions)]
    for part in data.samples:
        chosen = range(min(IN_A_ROW, len(part.quality)))
        title = strength_label(float(part.strengths[0]))
        rows.append(
            SheetRow(title, [part.read(n) for n in chosen], [caption(part, n) for n in chosen])
        )
    if data.folder is not None and data.images is not None:
        rows += folder_rows(data.folder, data.images, data.normals.fit_records)
    write_png(out / SHEET_FILE, contact_sheet(rows))
    pairs = closest(data.parts, IN_A_ROW)
    write_png(out / COPIES_FILE, contact_sheet(copy_rows(pairs, data.normals.fit)))
    limit = copy_distance(data.reference)
    return [
        Picture(
            "Images", "Distance: 1 is as far from the training images as a normal image, higher "
            "is more anomalous.", out / SHEET_FILE,
        ),
        Picture(
            "Nearest to training images",
            f"The images of all above that are nearest to a training image; below {limit:.2f} they "
            "count as near-copies.", out / COPIES_FILE,
        ),
    ]  # fmt: skip
