import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from detect.calibration import calibrate
from detect.evaluation import metrics
from detect.evaluation.metrics import (
    Curves,
    Figures,
    ImageMetrics,
    Interval,
    PixelMetrics,
    TypeMetrics,
)
from detect.evaluation.ranking import Curve
from detect.evaluation.report_data import Comparison, Example, ReportData, pick_examples
from detect.evaluation.seeds import Training, summarise
from detect.evaluation.text import number, percent, upward
from detect.heatmap import HeatRange, overlay
from detect.report.evaluation import PICTURE_PX, render_report, write_report
from detect.report.plots import score_plot
from detect.report.text import cautions, findings, hardest_type

VOID = {"meta", "img", "br", "path", "use", "rect", "stop"}
NASTY = '<script>alert("x")</script> & $a_b$'


def example(name, defect, score, size=(24, 32)):
    rng = np.random.default_rng(len(name))
    mask = np.zeros(size, bool)
    mask[4:9, 4:9] = defect != "good"
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Example(
        name=name, defect=defect, score=score, image=image, anomaly_map=rng.random(size), mask=mask
    )


def small_report(**changes):
    defects = ("good",) * 4 + ("cut",) * 3 + ("hole",) * 3
    scores = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 5.0, 9.0, 8.0, 9.0, 9.5])
    data = ReportData(
        title="A title",
        dataset="MVTec AD",
        category="bottle",
        method="RealNet",
        defects=defects,
        scores=scores,
        calibration=calibrate(np.arange(0.0, 5.0, 0.25), 0.05),  # threshold 4.75
        figures=measured(defects, scores, None),
        curves=Curves(ROC, ROC, Curve(0.3 * ROC.fpr, ROC.height)),
        rounding=0.000123,
        heat=HeatRange(0.0, 1.0),
        per_type=tuple(
            TypeMetrics(defect, 3, measured(defects, scores, defect)) for defect in ("cut", "hole")
        ),
        misses=(example("cut/000.png", "cut", 4.0),),
        false_alarms=(example("good/003.png", "good", 6.0),),
        protocol={"Seed": "7", "Backbone": "wide_resnet50_2"},
    )
    return replace(data, **changes)


ROC = Curve(np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.8, 1.0]))
PIXEL = PixelMetrics(0.91, 0.52, 0.53, 0.84, 0.61)


def measured(defects, scores, defect):
    kept = np.array([name in ("good", defect) or defect is None for name in defects])
    labels = np.array([name != "good" for name in defects])[kept]
    image = metrics.image_metrics(labels, scores[kept])
    return Figures(
        image, PIXEL, {"auroc": Interval(0.705, 0.955)}, {"aupro": Interval(0.811, 0.877)}
    )


class Checker(HTMLParser):
    """Collects tags and text and insists that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def test_the_page_is_well_formed_and_fetches_nothing(tmp_path):
    write_report(tmp_path / "report.html", small_report())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    checker = parse(page)
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert checker.tags.count("svg") == 3
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert checker.sources
    assert all(source.startswith("data:image/webp") for source in checker.sources)
    for text in ("A title", "MVTec AD", "bottle", "cut/000.png", "wide_resnet50_2", "hole"):
        assert text in checker.text


def test_ids_in_the_page_are_unique():
    ids = re.findall(r' id="([^"]*)"', render_report(small_report()))
    assert len(ids) == len(set(ids))


def test_names_are_escaped_everywhere():
    data = small_report()
    nasty = replace(
        data,
        title=NASTY,
        dataset=NASTY,
        category=NASTY,
        method=NASTY,
        defects=tuple(NASTY if defect == "hole" else defect for defect in data.defects),
        per_type=tuple(
            row._replace(defect=NASTY) if row.defect == "hole" else row for row in data.per_type
        ),
        comparisons=(Comparison(NASTY, ImageMetrics(0.5, 0.5, 0.5)),),
        notes=(NASTY,),
        misses=(example(NASTY, NASTY, 4.0),),
        protocol={NASTY: NASTY},
    )
    checker = parse(render_report(nasty))
    assert "script" not in checker.tags
    assert checker.text.count(NASTY) >= 9


def decode(source):
    data = np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def test_pictures_decode_to_what_they_show():
    data = small_report(misses=(example("x", "cut", 4.0, (300, 600)),), false_alarms=())
    sources = parse(render_report(data)).sources
    pictures = [decode(source) for source in sources]
    assert len(pictures) == 3
    assert all(picture.shape == (PICTURE_PX // 2, PICTURE_PX, 3) for picture in pictures)
    shown = example("x", "cut", 4.0, (300, 600))
    expected = [shown.image, overlay(shown.image, shown.anomaly_map, 0, 1)]
    for picture, image in zip(pictures, expected, strict=False):
        assert picture.mean((0, 1)) == pytest.approx(image.mean((0, 1)), abs=6)


def test_examples_say_what_became_of_them():
    checker = parse(render_report(small_report(false_alarms=())))
    assert "missed" in checker.text.split("score 4")[1]
    checker = parse(render_report(small_report(misses=())))
    assert "false alarm" in checker.text.split("score 6")[1]
    caught = small_report(misses=(), detections=(example("x", "cut", 9.0),))
    assert "caught" in parse(render_report(caught)).text.split("score 9")[1]


def test_a_report_without_masks_has_no_pixel_figures():
    data = small_report(misses=(), false_alarms=(), curves=Curves(ROC))
    data = replace(
        data,
        figures=data.figures._replace(pixel=None, pixel_intervals={}),
        per_type=tuple(
            row._replace(figures=row.figures._replace(pixel=None, pixel_intervals={}))
            for row in data.per_type
        ),
    )
    checker = parse(render_report(data))
    assert checker.tags.count("svg") == 2
    assert "Examples" not in checker.text
    assert "Pixel AP" not in checker.text
    assert "bins" not in checker.text


def test_every_metric_stands_with_its_interval():
    text = parse(render_report(small_report())).text
    for name, value in [
        ("Image F1-max", "0.923"),
        ("Pixel F1-max", "0.530"),
        ("Pixel AP", "0.520"),
    ]:
        assert f"{name}{value}–" in text  # no interval
    assert "Image AUROC0.9170.705 to 0.955" in text
    assert "AUPRO at 0.30.8400.811 to 0.877" in text
    assert "AUPRO at 0.050.610" in text
    assert "1,000 resamples" in text
    assert "moves no pixel metric above by more than 0.0002." in text
    assert text.count("0.811 to 0.877") == 4  # at the top, all defects, cut, hole
    assert "0.05" in text.split("Defect types")[1]


def test_several_trainings_show_mean_and_spread():
    rows = [
        Training(f"seed{n}", n, ImageMetrics(value, 0.9, 0.8), PIXEL)
        for n, value in enumerate((0.8, 0.9, 1.0))
    ]
    configs = [{"detector": {"seed": n}} for n in range(3)]
    data = small_report(seeds=summarise(rows, configs))
    assert "Over 3 trainings (mean ± sample standard deviation)" in findings(data)[0]
    assert "image AUROC 0.900 ± 0.100" in findings(data)[0]
    text = parse(render_report(data)).text
    assert "seed20.8" not in text
    assert "mean± sample standard deviation0.900± 0.100" in text
    assert "differ in detector.seed" in text
    assert "Trainings" not in parse(render_report(small_report())).text


def test_notes_on_the_data_are_warnings():
    data = small_report(notes=("3 masks are odd",))
    assert "3 masks are odd." in cautions(data)
    assert "3 masks are odd." in render_report(data)


def test_the_same_report_twice_is_the_same_text():
    assert render_report(small_report()) == render_report(small_report())


def test_counts_at_the_threshold_by_hand():
    data = small_report()
    assert data.caught("good") == (1, 4)
    assert data.caught("cut") == (2, 3)
    assert data.caught_defects == (5, 6)
    assert hardest_type(data).defect == "cut"
    words = findings(data)
    assert "5 of 6 defective images are caught (83.3 %)" in words[0]
    assert "1 of 4 good images are rejected (25 %)" in words[0]
    assert "hardest defect type is cut: 2 of 3 caught" in words[3]


def versus(other_auroc, gain, own_auroc=0.9):
    data = small_report(
        figures=Figures(ImageMetrics(own_auroc, 0.9, 0.9), PIXEL, {}, {}),
        per_type=(),
        comparisons=(Comparison("B", ImageMetrics(other_auroc, 0.9, 0.9), PIXEL, gain),),
    )
    return findings(data)[-1]


def test_verdicts_on_baselines_are_honest():
    assert "adds little over “B”" in versus(0.895, Interval(0.001, 0.009))
    assert "adds little over “B”" in versus(0.905, Interval(-0.009, -0.001))
    assert "is better than “B”" in versus(0.8, Interval(0.05, 0.15))
    assert "is worse than “B”" in versus(0.95, Interval(-0.08, -0.02))
    unsure = versus(0.85, Interval(-0.02, 0.12))
    assert "is not significantly different from “B”" in unsure
    assert "+0.050 (95 % interval of the difference: -0.020 to +0.120)" in unsure
    assert "AUPRO: 0.840 against 0.840" in unsure


def test_small_bounds_are_rounded_up():
    assert [upward(value) for value in (0.0, 0.000123, 0.0002, 0.03, 0.95)] == [
        "0",
        "0.0002",
        "0.0002",
        "0.03",
        "1.0",
    ]


def test_warnings_only_where_due():
    assert cautions(small_report(scores=np.arange(10.0) / 10)) == []
    few = small_report(calibration=calibrate([5.0], 0.05))
    assert [note for note in cautions(few) if "19" in note]
    shifted = small_report(scores=np.full(10, 20.0))
    assert "4 of 4 good test images are rejected" in cautions(shifted)[0]
    assert "Calibrate again" in render_report(shifted)


def test_figures_are_never_rounded_up_to_perfect():
    assert number(0.99996) == ">0.999"
    assert number(0.9994) == "0.999"
    assert number(1.0) == "1.000"
    assert number(0.0) == "0.000"
    assert number(None) == "–"
    assert percent(0.9999) == ">99.9 %"
    assert percent(1.0) == "100 %"
    assert percent(0.05) == "5 %"
    assert percent(0.125) == "12.5 %"


def test_picks_are_the_extremes():
    labels = np.array([False, True, False, True, True, True])
    scores = np.array([0.9, 0.2, 0.1, 0.8, 0.1, 0.95])
    picks = pick_examples(labels, scores, count=2)
    assert picks.misses == (4, 1)
    assert picks.false_alarms == (0, 2)
    assert picks.detections == (5, 3)
    assert pick_examples(labels, scores, count=3).detections == (5,)


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, 1e9], [-5.0, 2.0]])
def test_score_plot_survives_odd_ranges(scores):
    assert score_plot(("good", "cut"), np.array(scores), 1.0, "good").startswith("<svg")
