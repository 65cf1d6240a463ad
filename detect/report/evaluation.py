"""report.html: an evaluation on one page, which needs no network, script or other file."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

import cv2
import numpy as np

from detect.evaluation.bootstrap import NUM_RESAMPLES
from detect.evaluation.metrics import (
    FPR_LIMIT,
    STRICT_FPR_LIMIT,
    ImageMetrics,
    Intervals,
    PixelMetrics,
)
from detect.evaluation.pixels import NUM_BINS
from detect.evaluation.report_data import COLUMNS, Comparison, Example, ReportData
from detect.evaluation.text import between, deviation, number, percent, upward
from detect.heatmap import HeatRange, Image, heat_picture, outline, overlay
from detect.report.plots import pro_plot, roc_plot, score_plot
from detect.report.text import cautions, findings
from synth.base.files import write_text
from synth.base.html import Cell, document, figure, finding_list, section, soft, table

PICTURE_PX = 256  # longest side of an example picture
WEBP_QUALITY = 85

IMAGE_MEANING = {
    "auroc": ("Image AUROC", "a defective image scores above a good one; 0.5 is chance"),
    "average_precision": ("Image AP", "average precision over images"),
    "f1_max": ("Image F1-max", "F1 at the best threshold in hindsight"),
}
PIXEL_MEANING = {
    "auroc": ("Pixel AUROC", "a defective pixel scores above a normal one; 0.5 is chance"),
    "average_precision": ("Pixel AP", "average precision over pixels"),
    "f1_max": ("Pixel F1-max", "F1 at the best threshold in hindsight"),
    "aupro": (
        f"AUPRO at {FPR_LIMIT:g}",
        f"mean overlap with each defect, small or large, up to FPR {FPR_LIMIT:g}",
    ),
    "aupro_005": (
        f"AUPRO at {STRICT_FPR_LIMIT:g}",
        f"the same up to FPR {STRICT_FPR_LIMIT:g}, where false positives are few",
    ),
}
"""The name and the meaning of each metric, by its field."""
VERDICTS = {
    (False, True): ("caught", "pass"),
    (False, False): ("missed", "reject"),
    (True, True): ("false alarm", "reject"),
    (True, False): ("passed", "pass"),
}
"""What to call (is good, is rejected), and the class of its colour."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file (UTF-8), whole or not at all."""
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Render the whole page: findings, figures, tables, example pictures, protocol."""
    sections = (
        _header(data), finding_list(findings(data), cautions(data)), _metrics(data), _seeds(data),
        _comparisons(data), _types(data), _curves(data), _examples(data), _protocol(data),
    )  # fmt: skip
    return document(data.title, sections)


# Sections: each returns HTML, empty when it has nothing to show


def _header(data: ReportData) -> str:
    defects, normals = data.caught_defects, data.caught(data.normal)
    tiles = [
        (percent(defects.share), f"defects caught, {defects.rejected} of {defects.total}"),
        (percent(normals.share), f"good images rejected, {normals.rejected} of {normals.total}"),
        (number(data.image.auroc), _labelled("image AUROC", data.figures.image_intervals, "auroc")),
    ]
    if data.pixel is not None:
        label = _labelled(f"AUPRO up to FPR {FPR_LIMIT:g}", data.figures.pixel_intervals, "aupro")
        tiles.append((number(data.pixel.aupro), label))
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    where = (
        f"{data.dataset}, {data.category}: {normals.total} good and {defects.total} defective test "
        "images"
    )
    return (
        f'<header><h1>{escape(data.title)}</h1><p class="lead">{escape(where)}</p>'
        f'<div class="tiles">{shown}</div></header>'
    )


def _labelled(label: str, intervals: Intervals, field: str) -> str:
    shown = between(intervals.get(field))
    return f"{label}, 95 %: {shown}" if shown else label


def _metrics(data: ReportData) -> str:
    """All metrics over all defect types, each with its interval."""
    cells = _metric_rows(IMAGE_MEANING, data.image, data.figures.image_intervals)
    if data.pixel is not None:
        cells += _metric_rows(PIXEL_MEANING, data.pixel, data.figures.pixel_intervals)
    shown = table(("Metric", "Value", "95 % interval", "Meaning"), cells, {1, 2})
    return section("Metrics", shown + soft(_interval_note(data)))


def _metric_rows(
    meanings: Mapping[str, tuple[str, str]],
    metrics: ImageMetrics | PixelMetrics,
    intervals: Intervals,
) -> list[tuple[str, ...]]:
    return [
        (name, number(getattr(metrics, field)), between(intervals.get(field)) or "–", meaning)
        for field, (name, meaning) in meanings.items()
    ]


def _interval_note(data: ReportData) -> str:
    note = (
        f"Intervals: 2.5 % to 97.5 % percentile over {NUM_RESAMPLES:,} resamples of the test "
        "images, good and defective ones drawn apart; a dash where every resample gives the same "
        "value. They show how far the figures move with the choice of test images, not with "
        "another training. F1-max is an upper bound: its threshold is chosen in hindsight."
    )
    if data.pixel is not None:
        note += (
            f" Pixel metrics are exact; their intervals use scores rounded into some {NUM_BINS} "
            f"bins, which moves no pixel metric above by more than {upward(data.rounding)}."
        )
    return note


def _seeds(data: ReportData) -> str:
    if data.seeds is None:
        return ""
    names = [row.name for row in data.seeds.trainings]
    cells = [_row(Comparison(row.name, row.image, row.pixel)) for row in data.seeds.trainings]
    spreads = [*data.seeds.image.values(), *data.seeds.pixel.values()]
    means: list[Cell] = [(number(each.mean), deviation(each).strip()) for each in spreads]
    means += ["–"] * (len(COLUMNS) - len(means))
    cells.append([("mean", "± sample standard deviation"), *means])
    note = (
        f"{len(names)} trainings that differ in {', '.join(data.seeds.differing) or 'nothing'}. "
        f"Everything else on this page describes the first one, {names[0]}."
    )
    shown = table(("Training", *COLUMNS), cells, set(range(1, 9)), own_row=len(names))
    return section("Trainings", soft(note) + shown)


def _comparisons(data: ReportData) -> str:
    if not data.comparisons:
        return ""
    own = Comparison(data.method, data.image, data.pixel)
    cells = [_row(row) for row in (own, *data.comparisons)]
    shown = table(("Method", *COLUMNS), cells, set(range(1, 9)), own_row=0)
    return section("Compared with", soft("All methods on the same test images.") + shown)


def _types(data: ReportData) -> str:
    if not data.per_type:
        return ""
    cells: list[list[Cell]] = []
    for kind in data.per_type:
        caught, figures = data.caught(kind.defect), kind.figures
        row = _row(Comparison(kind.defect, figures.image, figures.pixel))
        for place, interval in (
            (1, figures.image_intervals.get("auroc")),
            (1 + list(COLUMNS).index("AUPRO"), figures.pixel_intervals.get("aupro")),
        ):
            row[place] = (str(row[place]), between(interval))
        cells.append([row[0], f"{caught.rejected} of {caught.total}", *row[1:]])
    head = ("Defect type", "Caught", *COLUMNS)
    note = "Each type against all good test images; 95 % intervals below image AUROC and AUPRO."
    return section("Defect types", soft(note) + table(head, cells, set(range(1, len(head)))))


def _row(row: Comparison) -> list[Cell]:
    return [row.name, *(number(value(row)) for value in COLUMNS.values())]


def _curves(data: ReportData) -> str:
    threshold = data.calibration.threshold
    scores = score_plot(data.defects, data.scores, threshold, data.normal)
    caption = (
        f"Image scores. Above the threshold, {threshold:.4g}, an image is rejected; it comes from "
        f"{len(data.calibration.scores)} held-out good images at a false-reject rate of "
        f"{percent(data.calibration.false_reject_rate)}."
    )
    curves = data.curves
    figures = figure(
        roc_plot(curves.image_roc, curves.pixel_roc), "ROC; the dashed line is chance."
    )
    if curves.pro is not None:
        figures += figure(
            pro_plot(curves.pro, FPR_LIMIT), f"PRO up to a false-positive rate of {FPR_LIMIT:g}."
        )
    shown = f'{figure(scores, caption, "wide")}<div class="figures">{figures}</div>'
    return section("Scores and curves", shown)


def _examples(data: ReportData) -> str:
    groups = (
        ("Lowest-scoring defects", data.misses),
        ("Highest-scoring good images", data.false_alarms),
        ("Highest-scoring defects", data.detections),
    )
    shown = "".join(
        f"<h3>{title}</h3>"
        f'<div class="examples">{"".join(_example(data, example) for example in examples)}</div>'
        for title, examples in groups
        if examples
    )
    return section("Examples", _scale(data.heat) + shown) if shown else ""


def _protocol(data: ReportData) -> str:
    return section("Protocol", table(("Fact", "Value"), list(data.protocol.items()), set()))


# Pieces


def _scale(heat: HeatRange) -> str:
    steps = heat_picture(np.linspace(0, 1, 9)[None], 0, 1)[0]
    colours = ", ".join(f"rgb({r} {g} {b})" for r, g, b in steps.tolist())
    return (
        "<p>Each example shows the image, the heat over it with the marked defect outlined, and "
        "the anomaly map. All pictures on this page share one colour scale:</p>"
        f'<div class="scale"><span>{heat.low:.3g}</span>'
        f'<i style="background:linear-gradient(90deg, {colours})"></i>'
        f'<span>{heat.high:.3g} and above</span><span class="soft">pixel score</span></div>'
    )


def _example(data: ReportData, example: Example) -> str:
    heated = overlay(example.image, example.anomaly_map, *data.heat)
    if example.mask is not None:
        heated = outline(heated, example.mask)
    pictures = (
        (example.image, "image"),
        (heated, "heat over the image"),
        (heat_picture(example.anomaly_map, *data.heat), "anomaly map"),
    )
    shown = "".join(
        f'<img src="{_picture(picture)}" alt="{kind} of {escape(example.name)}">'
        for picture, kind in pictures
    )
    rejected = data.calibration.rejects(example.score)
    verdict, kind = VERDICTS[example.defect == data.normal, rejected]
    return (
        f'<figure class="example"><div class="row">{shown}</div><figcaption>'
        f'<span class="name">{escape(example.name)}</span><span>{escape(example.defect)}</span>'
        f"<span>score {example.score:.4g}</span>"
        f'<span class="verdict {kind}">{verdict}</span></figcaption></figure>'
    )


def _picture(image: Image) -> str:
    """Encode as a WebP data address, at most PICTURE_PX on the longest side."""
    height, width = image.shape[:2]
    factor = PICTURE_PX / max(height, width)
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    assert done
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()
