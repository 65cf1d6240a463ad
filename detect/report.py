"""report.html: one evaluation on one page that needs no network, no script and no other file."""

import base64
import itertools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from detect.heatmap import HeatRange, Image, heat_picture, outline, overlay
from detect.report_data import Comparison, Example, ReportData
from detect.report_plots import pro_plot, roc_plot, score_plot
from detect.report_style import CSS
from detect.report_text import cautions, findings, number, percent
from synth.files import write_text

PICTURE_PX = 256  # longest side of an example picture
WEBP_QUALITY = 85

# Nothing is fetched, whatever a file name or a title holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file (UTF-8), whole or not at all."""
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Render the whole page: findings, figures, tables, example pictures, protocol."""
    sections = (
        _header(data), _findings(data), _metrics(data), _comparisons(data), _types(data),
        _curves(data), _examples(data), _protocol(data),
    )  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(data.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


# Sections: each returns HTML, empty when it has nothing to show


def _header(data: ReportData) -> str:
    defects, normals = data.caught_defects, data.caught(data.normal)
    tiles = [
        (percent(defects.share), f"defects caught, {defects.rejected} of {defects.total}"),
        (percent(normals.share), f"good images rejected, {normals.rejected} of {normals.total}"),
        (number(data.image.auroc), "image AUROC"),
    ]
    if data.pixel is not None:
        tiles.append((number(data.pixel.aupro), f"AUPRO up to FPR {data.pixel.fpr_limit:g}"))
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    where = escape(f"{data.method} on {data.dataset}, {data.category}")
    return (
        f'<header><h1>{escape(data.title)}</h1><p class="lead">{where}</p>'
        f'<div class="tiles">{shown}</div></header>'
    )


def _findings(data: ReportData) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(data))
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in cautions(data))
    return f'<ul class="findings">{items}</ul>{notes}'


def _metrics(data: ReportData) -> str:
    image, pixel = data.image, data.pixel
    rows = [
        ("Image AUROC", image.auroc, "a defective image scores above a good one; 0.5 is chance"),
        ("Image AP", image.average_precision, "average precision over images"),
    ]
    if pixel is not None:
        overlap = f"mean overlap with each defect, small or large, up to FPR {pixel.fpr_limit:g}"
        rows += [
            ("Pixel AUROC", pixel.auroc, "a defective pixel scores above a normal one"),
            ("Pixel AP", pixel.average_precision, "average precision over pixels"),
            (f"AUPRO at {pixel.fpr_limit:g}", pixel.aupro, overlap),
        ]
    cells = [(name, number(value), meaning) for name, value, meaning in rows]
    return (
        "<section><h2>Metrics</h2>"
        + _table(("Metric", "Value", "Meaning"), cells, {1})
        + "</section>"
    )


def _comparisons(data: ReportData) -> str:
    if not data.comparisons:
        return ""
    pixel = data.pixel
    own = Comparison(data.method, data.image.auroc, pixel and pixel.auroc, pixel and pixel.aupro)
    cells = [(row[0], *map(number, row[1:])) for row in (own, *data.comparisons)]
    head = ("Method", "Image AUROC", "Pixel AUROC", "AUPRO")
    return (
        '<section><h2>Compared with</h2><p class="soft">The same test images throughout.</p>'
        + _table(head, cells, {1, 2, 3}, own_row=0)
        + "</section>"
    )


def _types(data: ReportData) -> str:
    if not data.per_type:
        return ""
    cells: list[tuple[str, ...]] = []
    for row in data.per_type:
        caught, pixel = data.caught(row.defect), row.pixel
        cells.append((
            row.defect, f"{caught.rejected} of {caught.total}", number(row.image.auroc),
            number(row.image.average_precision), number(pixel and pixel.auroc),
            number(pixel and pixel.aupro),
        ))  # fmt: skip
    head = ("Defect type", "Caught", "Image AUROC", "Image AP", "Pixel AUROC", "AUPRO")
    return (
        '<section><h2>Defect types</h2><p class="soft">Each type against all good test images.</p>'
        + _table(head, cells, {1, 2, 3, 4, 5})
        + "</section>"
    )


def _curves(data: ReportData) -> str:
    threshold = data.calibration.threshold
    scores = score_plot(data.defects, data.scores, threshold, data.normal)
    caption = (
        f"Image scores. Above the threshold, {threshold:.4g}, an image is rejected; it comes from "
        f"{len(data.calibration.scores)} held-out good images at a false-reject rate of "
        f"{percent(data.calibration.false_reject_rate)}."
    )
    figures = _figure(roc_plot(data.image_roc, data.pixel_roc), "ROC; the dashed line is chance.")
    if data.pro is not None and data.pixel is not None:
        limit = data.pixel.fpr_limit
        figures += _figure(
            pro_plot(data.pro, limit), f"PRO up to a false-positive rate of {limit:g}."
        )
    return (
        f"<section><h2>Scores and curves</h2>{_figure(scores, caption, 'wide')}"
        f'<div class="figures">{figures}</div></section>'
    )


def _examples(data: ReportData) -> str:
    groups = (
        ("Lowest-scoring defects", "Missed where marked “passed”.", data.misses),
        ("Highest-scoring good images", "False alarms where marked “rejected”.", data.false_alarms),
        ("Best detections", "The defects with the highest scores.", data.detections),
    )
    shown = "".join(
        f'<h3>{title}</h3><p class="soft">{note}</p>'
        f'<div class="examples">{"".join(_example(data, example) for example in examples)}</div>'
        for title, note, examples in groups
        if examples
    )
    return f"<section><h2>Examples</h2>{_scale(data.heat)}{shown}</section>" if shown else ""


def _protocol(data: ReportData) -> str:
    return (
        "<section><h2>Protocol</h2>"
        + _table(("Fact", "Value"), [(name, fact) for name, fact in data.protocol.items()], set())
        + "</section>"
    )


# Pieces


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int], own_row: int = -1
) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    owns = (' class="own"' if i == own_row else "" for i in itertools.count())
    body = "".join(
        f"<tr{own}>{line(cells, 'td')}</tr>" for own, cells in zip(owns, rows, strict=False)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(svg: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _scale(heat: HeatRange) -> str:
    steps = heat_picture(np.linspace(0, 1, 9)[None], 0, 1)[0]
    colours = ", ".join(f"rgb({r} {g} {b})" for r, g, b in steps.tolist())
    return (
        "<p>Each example: the image, the heat over it with the marked defect outlined, and the "
        "anomaly map. One colour scale serves every picture on this page:</p>"
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
    verdict = ("reject", "rejected") if rejected else ("pass", "passed")
    return (
        f'<figure class="example"><div class="row">{shown}</div><figcaption>'
        f'<span class="name">{escape(example.name)}</span><span>{escape(example.defect)}</span>'
        f"<span>score {example.score:.4g}</span>"
        f'<span class="verdict {verdict[0]}">{verdict[1]}</span></figcaption></figure>'
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
