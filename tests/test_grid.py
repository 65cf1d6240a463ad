import csv
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from detectors import CONFIG
from products import write_product, write_sources
from scipy.stats import ttest_rel

from detect.data.source_words import parse_named
from detect.data.sources import Part
from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.report_data import COLUMNS
from detect.evaluation.text import duration
from detect.grid import plan as grid_plan
from detect.grid import run as grid_run
from detect.grid.result import (
    Cost,
    Result,
    read_result,
    safe_name,
    training_folder,
    write_result,
)
from detect.grid.run import AddedMemory
from detect.grid.table import ALPHA, Table, holm, p_value
from detect.images import ImagePool
from detect.methods import patch_nn
from detect.methods.patch_nn import PatchNNConfig
from detect.methods.realnet.config import PRESETS
from detect.report.grid import Section, differences, findings, notes
from detect.report.plots import draw_grid
from synth.base.errors import UserError

QUICK = ("--num-steps", 1, "--batch-size", 2, "--precision", "fp32")


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patched:
        small = replace(CONFIG, num_afs_batches=1, batch_size=2)
        patched.setitem(PRESETS, "tiny", small)
        backbone = replace(CONFIG.backbone, layers=(2, 3))
        bank = PatchNNConfig(image_size=CONFIG.image_size, backbone=backbone)
        patched.setitem(patch_nn.PRESETS, "tiny", bank)
        yield patched


class Quiet:
    """Stands in for capsys in fixtures of a module."""

    def readouterr(self):
        return "", ""


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_product(root / "gadget", num_train=6, num_test=2)
    write_product(root / "widget", num_train=6, num_test=2)
    for name in ("gadget", "widget"):
        write_sources(root.with_name("sia") / "folder" / name, category=name, num=3)
    return root


@pytest.fixture(scope="module")
def out(patch, products, tmp_path_factory) -> Path:
    """A finished benchmark: 2 methods, 2 categories, 2 seeds; do not write to it."""
    folder = tmp_path_factory.mktemp("benchmark")
    ended = Command(patch, Quiet())(*words(products, folder))
    assert ended.code == 0
    return folder


@pytest.fixture
def run(patch, monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def words(products, folder):
    sia = ("--sources", products.with_name("sia"))
    methods = ("--methods", "realnet", "patch-nn", "--seeds", 0, 1)
    return ("detect", "benchmark", "--root", products, *methods, *sia, *QUICK, "--out", folder)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def untrained(*args, **kwargs):
    raise AssertionError("a finished training is not repeated")


# The way through


def test_every_training_has_a_folder_of_the_normal_layout(out):
    cells = sorted(path.parent.relative_to(out) for path in out.rglob("results.json"))
    names = [f"{m}/{c}/seed-{s}" for m in ("patch-nn", "realnet") for c in ("gadget", "widget")
             for s in (0, 1)]  # fmt: skip
    assert [str(cell) for cell in cells] == names
    for cell in cells:
        for name in ("config.json", "model.safetensors", "calibration.json"):
            assert (out / cell / name).exists()
        config = json.loads((out / cell / "config.json").read_text())
        assert config["category"] == cell.parts[1]
        assert config["detector"]["seed"] == int(cell.parts[2][-1])
    source = json.loads((out / "realnet/gadget/seed-0/config.json").read_text())["source"]
    assert (source["kind"], source["num_images"]) == ("sia", 3)


@pytest.mark.parametrize("method", ["realnet", "patch-nn"])
def test_figures_are_those_of_detect_evaluate(run, products, out, tmp_path, method):
    model = out / method / "widget/seed-1"
    words = ("detect", "evaluate", "--root", products, "--category", "widget", "--model", model)
    ended = run(*words, "--out", tmp_path)
    assert ended.code == 0, ended
    wanted = json.loads((tmp_path / "results.json").read_text())
    cell = json.loads((model / "results.json").read_text())
    assert cell["image"] == {name: wanted["image"][name] for name in cell["image"]}
    assert cell["pixel"] == {name: wanted["pixel"][name] for name in cell["pixel"]}


def test_table_has_means_and_spreads_over_seeds(out):
    rows = rows_of(out / "benchmark.csv")
    assert len(rows) == 8
    by_seed = [
        np.mean([float(r["AUPRO"]) for r in rows if (r["entry"], r["seed"]) == ("patch-nn", seed)])
        for seed in "01"
    ]
    shown = f"{np.mean(by_seed):.3f} ± {np.std(by_seed, ddof=1):.3f}"
    page = (out / "benchmark.md").read_text()
    (line,) = [
        x for x in page.split("## Differences")[0].splitlines() if x.startswith("| patch-nn |")
    ]
    assert shown in line
    assert len(line.split("|")) == 2 + 1 + len(COLUMNS)
    section = page.split("## AUPRO by category")[1].split("##")[0]
    assert section.count(" ± 0.") == 6
    assert shown in section.splitlines()[-2]
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_measured(out):
    for row in rows_of(out / "benchmark.csv"):
        assert float(row["training_seconds"]) > 0
        assert float(row["latency_ms"]) > 0
        assert float(row["training_bytes"]) > 0


def test_page_is_well_formed_and_fetches_nothing(out):
    class Checker(HTMLParser):
        open_tags, hrefs = [], []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br", "img", "path", "use", "rect"):
                self.open_tags.append(tag)
            self.hrefs += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

        def handle_endtag(self, tag):
            if tag in self.open_tags:
                while self.open_tags.pop() != tag:
                    pass

    checker = Checker()
    text = (out / "benchmark.html").read_text()
    checker.feed(text)
    assert (checker.open_tags, checker.hrefs) == ([], [])
    assert "<svg" in text
    assert "realnet" in text


def test_finished_cells_are_not_repeated(run, products, out, monkeypatch):
    monkeypatch.setattr(grid_run, "run_trial", untrained)
    before = {p: p.read_bytes() for p in out.glob("benchmark.*")}
    ended = run(*words(products, out))
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1] == f"benchmark: {out / 'benchmark.html'}"
    assert ended.out.startswith("Highest mean image AUROC: ")
    after = {p: p.read_bytes() for p in out.glob("benchmark.*")}
    assert after == before


def test_killed_between_and_within_cells_it_goes_on(run, products, out, tmp_path, monkeypatch):
    some = ("--categories", "widget", "--methods", "realnet", "--seeds", 0, 1)
    kept = grid_run.write_result

    def killed(folder, asked, result):
        if result.seed == 1:
            raise KeyboardInterrupt  # trained, not yet recorded
        kept(folder, asked, result)

    monkeypatch.setattr(grid_run, "write_result", killed)
    assert run(*words(products, tmp_path), *some).code == 130
    assert not list(tmp_path.glob("benchmark.*"))
    monkeypatch.setattr(grid_run, "write_result", kept)
    assert run(*words(products, tmp_path), *some).code == 0
    for seed in (0, 1):
        one, other = (
            json.loads((root / f"realnet/widget/seed-{seed}/results.json").read_text())
            for root in (out, tmp_path)
        )
        assert (one["image"], one["pixel"]) == (other["image"], other["pixel"])
        # seed 1 was trained before it was killed: how long that took is not known
        assert (other["cost"]["training_seconds"] is None) == (seed == 1)
    rows = [x for x in (tmp_path / "benchmark.md").read_text().splitlines() if "| realnet |" in x]
    assert "–" not in rows[-2]


def test_sources_are_compared_with_the_first(run, products, tmp_path):
    sia = products.with_name("sia") / "folder/widget"
    words = ("detect", "benchmark", "--root", products, "--categories", "widget", *QUICK)
    words += ("--out", tmp_path, "--seeds", 3, 4)
    ended = run(*words, "--sources", f"sdas={sia}", "noise", f"mixed=0.5*{sia}+1*cutpaste")
    assert ended.code == 0, ended
    rows = rows_of(tmp_path / "benchmark.csv")
    assert [(r["entry"], r["seed"]) for r in rows] == [
        (name, seed) for name in ("sdas", "noise", "mixed") for seed in "34"
    ]
    aupro = np.array([float(r["AUPRO"]) for r in rows]).reshape(3, 2)
    gains = aupro[1] - aupro[0]
    page = (tmp_path / "benchmark.md").read_text()
    section = page.split("## Differences to sdas")[1]
    (line,) = [x for x in section.splitlines() if x.startswith("| noise |")][:1]
    assert f"{gains.mean():+.3f} ± {gains.std(ddof=1):.3f}" in line
    assert "Differences in AUPRO to sdas, " in ended.out
    mixed = json.loads((tmp_path / "mixed/widget/seed-3/config.json").read_text())["source"]
    assert [round(part["share"], 3) for part in mixed["parts"]] == [0.333, 0.667]
    config = json.loads((tmp_path / "noise/widget/seed-4/config.json").read_text())
    assert config["source"]["kind"] == "noise"
    # Another setting in the same folder is refused before any training.
    line = run.refused(*words, "--learning-rate", 0.5, "--sources", f"sdas={sia}", "noise")
    assert "made with other settings (options.learning_rate: null there, 0.5 here)" in line


def test_images_of_a_source_are_loaded_once_and_given_back(run, products, tmp_path, monkeypatch):
    sources, loads = [], []
    kept = grid_plan.open_source
    monkeypatch.setattr(
        grid_plan, "open_source", lambda *a: sources.append(kept(*a)) or sources[-1]
    )
    pool = ImagePool.__init__
    monkeypatch.setattr(ImagePool, "__init__", lambda *a, **k: loads.append(k) or pool(*a, **k))
    some = ("--categories", "widget", "--methods", "realnet")
    assert run(*words(products, tmp_path), *some).code == 0
    assert len(loads) == 2  # anomaly images and test images, for two seeds
    assert sources
    assert all(not source.loaded for source in sources)


@pytest.mark.slow
def test_killed_hard_it_goes_on_to_the_same_figures(products, tmp_path):
    some = ("--size", 32, 32, "--backbone", "resnet10t", "--backbone-weights", "random")
    some += ("--categories", "widget", "--methods", "realnet", "--num-steps", 40)
    results = {}
    for name, seconds in (("killed", 12), ("whole", 600)):
        command = [str(word) for word in (*words(products, tmp_path / name), *some)]
        command = [sys.executable, "-m", *command]
        while True:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                assert process.wait(timeout=seconds) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=60)
                seconds *= 2
        rows = rows_of(tmp_path / name / "benchmark.csv")
        results[name] = [{k: v for k, v in row.items() if k in COLUMNS} for row in rows]
    assert results["killed"] == results["whole"]


# Dry runs


def tree(folder):
    """Every file below a folder, its bytes and its time."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_dry_run_of_a_fresh_grid_writes_nothing(run, products, tmp_path):
    ended = run(*words(products, tmp_path / "out"), "--dry-run")
    assert ended.code == 0, ended
    first, _, *rows, time_line = ended.out.splitlines()
    assert first == "Benchmark on gadget, widget: 8 trainings, 0 done, 8 left"
    assert [row.split() for row in rows] == [
        [method, category, "left", "left"]
        for category in ("gadget", "widget")
        for method in ("realnet", "patch-nn")
    ]
    assert "unknown" in time_line
    assert not (tmp_path / "out").exists()
    assert "got x" in run.refused(*words(products, tmp_path), "--dry-run", "--methods", "x")


def test_dry_run_tells_of_what_is_done_and_how_long_the_rest_takes(run, products, out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for name, seconds in (("gadget/seed-0", 30.0), ("gadget/seed-1", 50.0)):
        path = tmp_path / "realnet" / name / "results.json"
        result = json.loads(path.read_text())
        result["cost"]["training_seconds"] = seconds
        path.write_text(json.dumps(result))
    shutil.rmtree(tmp_path / "realnet/widget/seed-0")
    (tmp_path / "realnet/widget/seed-1/results.json").unlink()  # trained, not yet measured
    before = tree(tmp_path)
    ended = run(*words(products, tmp_path), "--dry-run", "--methods", "realnet")
    assert ended.code == 0, ended
    assert tree(tmp_path) == before
    first, _, gadget, widget, time_line = ended.out.splitlines()
    assert first.endswith("4 trainings, 2 done, 2 left")
    assert gadget.split()[-2:] == ["done", "done"]
    assert widget.split()[-2:] == ["left", "begun"]
    # none of the widget is measured: twice the mean of the gadget's 30 and 50 s
    assert time_line.startswith("time: about 80.0 s of training for 2 of the 2 left, ")
    more = ("--methods", "realnet", "patch-nn-coreset", "--categories", "gadget")
    ended = run(*words(products, tmp_path), "--dry-run", *more, "--seeds", 0, 1, 2)
    assert "40.0 s of training for 1 of the 4 left" in ended.out
    ended = run(*words(products, tmp_path), "--dry-run", *more[:2], *more[3:])
    assert ended.out.splitlines()[-1] == "nothing is left to train"


def test_dry_run_takes_no_times_of_another_device(run, products, out, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("results.json"):
        path.write_text(path.read_text().replace('"device": "cpu', '"device": "abacus'))
    shutil.rmtree(tmp_path / "realnet/widget/seed-0")
    ended = run(*words(products, tmp_path), "--dry-run")
    assert ended.out.splitlines()[-1].startswith("time: unknown")


# Mistakes


def test_mistakes_are_told_before_any_training(run, products, tmp_path, monkeypatch):
    monkeypatch.setattr(grid_run, "run_trial", untrained)
    benchmark = words(products, tmp_path / "out")
    for extra, message in [
        (("--methods", "realnot"), "--method: got realnot, allowed: realnet, realnet-nn, patch-nn"),
        (("--methods", "realnet:huge"), "--preset: got huge, allowed for realnet: tiny, "),
        (("--backbone-layers", 2, 1), "backbone layers: got 2 1"),
        (("--methods", "realnet", "realnet"), "one or more different ones"),
        (("--seeds", 1, 1), "--seeds: got (1, 1)"),
        (("--seeds", -1), "--seeds: got (-1,)"),
        (("--seed", 3), "--seed: got 3, not used here; give --seeds"),
        (("--categories", "widget", "nut"), "no 'nut'"),
        (("--methods", "patch-nn"), "not used by patch-nn; leave it out"),
        (("--methods", "patch-nn", "--sources"), "--batch-size: not used by patch-nn"),
        (("--sources", "noise", "noise"), "'noise' twice"),
        (("--sources", "noise", tmp_path), "found none"),
        (("--sources",), "--sources: none given, but realnet trains on anomalies"),
        (("--batch-size", 0), "--batch-size: got 0"),
    ]:
        assert message in run.refused(*benchmark, *extra)
    assert not (tmp_path / "out").exists()
    line = run.refused("detect", "compare-sources", "--root", products, "--sources", "noise")
    assert line.endswith("`compare-sources` is now `detect benchmark --sources ...`")


def test_category_with_one_label_is_refused_before_any_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(grid_run, "run_trial", untrained)
    for name in ("nut", "plain"):
        write_product(tmp_path / "data" / name, num_train=4, num_test=2)
    for folder in ("test/spot", "ground_truth"):
        shutil.rmtree(tmp_path / "data/plain" / folder)
    plain = ("detect", "benchmark", "--root", tmp_path / "data", "--methods", "patch-nn")
    line = run.refused(*plain, "--out", tmp_path / "out")
    assert "plain: the test images are 2 normal and 0 anomalous" in line
    assert not (tmp_path / "out").exists()


def copied(out, tmp_path):
    """A finished benchmark to write to, of one cell."""
    cell = "realnet/widget/seed-0"
    shutil.copytree(out / cell, tmp_path / cell)
    shutil.copy(out / "grid.json", tmp_path)
    return ("--methods", "realnet", "--categories", "widget", "--seeds", 0, "--out", tmp_path)


def test_a_preset_that_changed_with_the_package_is_noticed(run, products, out, tmp_path, patch):
    """The options are the same, and all cells are finished: grid.json alone can tell."""
    some = copied(out, tmp_path)
    about = json.loads((tmp_path / "grid.json").read_text())
    assert about["entries"]["realnet"]["num_max"] == 3
    assert set(about["entries"]) == {"realnet", "patch-nn"}
    before = (tmp_path / "grid.json").read_bytes()
    with pytest.MonkeyPatch.context() as newer:
        newer.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], num_max=2))
        line = run.refused(*words(products, tmp_path), *some)
    assert "begun as another detector (num_max: 3 there, 2 here), by siaforge " in line
    assert (tmp_path / "grid.json").read_bytes() == before
    assert run(*words(products, tmp_path), *some).code == 0
    assert json.loads((tmp_path / "grid.json").read_text())["entries"] == about["entries"]


def test_an_entry_that_was_not_begun_may_change_and_older_grids_go_on(
    run, products, out, tmp_path, monkeypatch
):
    some = copied(out, tmp_path)
    about = json.loads((tmp_path / "grid.json").read_text())
    about["entries"]["realnet"]["num_max"] = 2
    for trained in tmp_path.rglob("*.safetensors"):
        trained.unlink()
    for written in (about, {"precision": "fp32"}):
        (tmp_path / "grid.json").write_text(json.dumps(written))
        assert run(*words(products, tmp_path), *some).code == 0
        now = json.loads((tmp_path / "grid.json").read_text())["entries"]
        assert now["realnet"]["num_max"] == 3


def test_a_field_that_is_newer_than_the_grid_has_its_default_there(run, products, out, tmp_path):
    some = copied(out, tmp_path)
    about = json.loads((tmp_path / "grid.json").read_text())
    for field in ("scale_features", "separable"):
        del about["entries"]["realnet"][field]  # False both by default and here
    (tmp_path / "grid.json").write_text(json.dumps(about))
    assert run(*words(products, tmp_path), *some).code == 0
    about["entries"]["realnet"]["gone"] = 1
    (tmp_path / "grid.json").write_text(json.dumps(about))
    assert "(gone: 1 there, null here" in run.refused(*words(products, tmp_path), *some)


@pytest.mark.parametrize(
    "written",
    [{}, {"precision": 3}, {"precision": "fp32", "entries": []},
     {"precision": "fp32", "entries": {"realnet": 1}}],
)  # fmt: skip
def test_damaged_grid_is_told(run, products, tmp_path, written):
    (tmp_path / "grid.json").write_text(json.dumps(written))
    assert "grid.json: damaged" in run.refused(*words(products, tmp_path))


def test_damaged_result_is_told(tmp_path):
    result = make_result("a", 0, 0.5)
    write_result(tmp_path, {"x": 1}, result)
    assert read_result(tmp_path, {"x": 1}) == result
    with pytest.raises(UserError, match=r"made with other settings \(x: 1 there, 2 here\)"):
        read_result(tmp_path, {"x": 2})
    data = json.loads((tmp_path / "results.json").read_text())
    del data["image"]["auroc"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="damaged"):
        read_result(tmp_path, {"x": 1})
    assert read_result(tmp_path / "other", {}) is None


# Arithmetic


def make_result(entry, seed, auroc, category="nut", pixel=True):
    pixels = PixelMetrics(0.9, 0.5, 0.5, auroc, 0.2) if pixel else None
    cost = Cost(10.0, None, 2.0)
    image = ImageMetrics(auroc, 0.5, 0.5)
    return Result(
        entry=entry, category=category, seed=seed, image=image, pixel=pixels, cost=cost, device="x"
    )


@pytest.mark.parametrize("num", [2, 3, 5])
def test_p_value_is_the_paired_t_tests(num):
    for trial in range(20):
        rng = np.random.default_rng([num, trial])
        first, other = rng.normal(0.9, 0.02, (2, num))
        other += rng.choice([0, 0.05, 0.2])
        rows = [make_result("a", n, first[n]) for n in range(num)]
        table = Table((*rows, *(make_result("b", n, other[n]) for n in range(num))))
        gain = table.difference("b", "image AUROC")
        p = p_value(table.differences("b", "image AUROC"))
        assert gain.mean == pytest.approx(np.mean(other - first))
        assert gain.deviation == pytest.approx(np.std(other - first, ddof=1))
        assert p == pytest.approx(ttest_rel(other, first).pvalue)


def test_holm_is_bonferroni_on_every_set_of_tests():
    """The closed test: one tells where every set that it is in has one below ALPHA / its size."""
    verdicts = set()
    for trial in range(200):
        rng = np.random.default_rng(trial)
        p_values = (10 ** rng.uniform(-3, 0, 5)).round(3).tolist()
        sets = [s for size in range(1, 6) for s in combinations(range(5), size)]
        wanted = [
            all(min(p_values[j] for j in s) <= ALPHA / len(s) for s in sets if i in s)
            for i in range(5)
        ]
        assert holm(p_values) == wanted
        verdicts.add(tuple(sorted(wanted)))
    assert len(verdicts) == 6
    assert holm([]) == []
    assert holm([0.04]) == [True]
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # Holm's way, by hand


def random_table(rng, gain=0.0, num_entries=8, num_seeds=3):
    """Entries of the same scatter; the last one has `gain` more than the others."""
    rows, names = [], "abcdefgh"[:num_entries]
    for name in names:
        for seed in range(num_seeds):
            values = rng.normal(0.5 + gain * (name == names[-1]), 0.02, 8).tolist()
            image, pixel = ImageMetrics(*values[:3]), PixelMetrics(*values[3:])
            rows.append(replace(make_result(name, seed, 0.5), image=image, pixel=pixel))
    return Table(tuple(rows))


def test_where_nothing_differs_at_most_one_table_in_twenty_has_a_star():
    num_starred, num_single = 0, 0
    for trial in range(400):
        table = random_table(np.random.default_rng(trial))
        judged = table.judged()
        assert len(judged) == 14
        num_starred += "significant" in judged.values()
        num_single += any(p_value(table.differences(*each)) < ALPHA for each in judged)
    assert num_starred / 400 <= ALPHA
    assert num_single / 400 > 0.3  # without a correction


def test_stars_are_in_the_columns_that_were_counted_and_in_the_sentences():
    table = random_table(np.random.default_rng(0), gain=0.4, num_entries=3, num_seeds=5)
    section = differences(table)
    starred = {
        (row[0], column)
        for row in section.rows
        for column, cell in zip(section.head, row, strict=True)
        if cell.startswith("*")
    }
    assert starred == {("c", "image AUROC"), ("c", "AUPRO")}
    assert p_value(table.differences("c", "pixel AUROC")) < 1e-4  # as far, and not judged
    for sentence in findings(table)[1::2]:
        assert re.search(r"; significant: c \+0\.\d+ ± 0\.\d+; not significant: b ", sentence)
    assert "Only those in image AUROC and AUPRO are judged" in section.note
    assert "t-test over the 5 seeds" in section.note


def rows_by_seed(**values):
    return Table(
        tuple(
            make_result(name, seed, value)
            for name, each in values.items()
            for seed, value in enumerate(each)
        )
    )


@pytest.mark.parametrize("num", [2, 3, 6, 7])
def test_identical_differences_get_the_sign_flip_test(num):
    """A t-test would divide by a spread of 0, or by the 1e-17 that rounding leaves."""
    values = np.random.default_rng(num).uniform(0.1, 0.5, num)
    table = rows_by_seed(a=values, b=values + 0.1)
    gains = table.differences("b", "image AUROC")
    flips = np.array(list(product((-1, 1), repeat=num))) @ np.array(gains)
    by_hand = np.mean(abs(flips) >= abs(sum(gains)) - 1e-9)
    assert p_value(gains) == by_hand == 2 / 2**num
    wanted = "significant" if 2 / 2**num <= 0.05 / 2 else "not significant"
    assert set(table.judged().values()) == {wanted}
    assert p_value([0.0] * num) == 1


def test_differences_of_what_no_seed_changes_are_exact():
    """Of a method without chance: nothing to test, and no share of the correction."""
    table = rows_by_seed(a=[0.8] * 3, b=[0.9] * 3, c=[0.8] * 3, d=[0.6, 0.602, 0.604])
    judged = {name: table.judged()[name, "AUPRO"] for name in "bcd"}
    assert judged == {"b": "exact", "c": "exact", "d": "significant"}
    cells = {row[0]: row[1] for row in differences(table).rows}
    assert cells == {"b": "+0.100 (exact)", "c": "+0.000 (exact)", "d": "*-0.198 ± 0.002"}
    assert "significant: d -0.198 ± 0.002; exact: b +0.100, c +0.000." in findings(table)[1]


def test_one_seed_tells_nothing():
    assert p_value([0.5]) == 1
    table = Table((make_result("a", 0, 0.9), make_result("b", 0, 0.1)))
    assert notes(table)[0].startswith("One seed")
    assert "to a, 0.900; not significant: b -0.800." in findings(table)[1]


def test_categories_are_averaged_before_seeds():
    values = {("nut", 0): 0.5, ("nut", 1): 0.7, ("bolt", 0): 0.9, ("bolt", 1): 0.8}
    table = Table(tuple(make_result("a", s, v, c) for (c, s), v in values.items()))
    assert table.by_seed("a", "image AUROC") == pytest.approx([0.7, 0.75])
    assert table.over_seeds("a", "image AUROC").mean == pytest.approx(0.725)
    assert table.over_seeds("a", "image AUROC", "bolt").mean == pytest.approx(0.85)
    assert table.cost("a", "latency_ms") == 2.0
    assert table.cost("a", "training_bytes") is None


def test_highest_names_all_that_tie():
    rows = [make_result("a", 0, 0.9), make_result("b", 0, 0.9), make_result("c", 0, 0.8)]
    assert findings(Table(tuple(rows)))[0] == "Highest mean image AUROC: a and b, 0.900."


def test_columns_without_values_are_left_out():
    table = Table((make_result("a", 0, 0.9), make_result("b", 0, 0.8, pixel=False)))
    assert table.columns == ("image AUROC", "AP", "F1-max")


def test_findings_name_what_is_significant():
    rows = [make_result("sdas", n, 0.9 + 0.01 * n) for n in range(3)]
    rows += [make_result("noise", n, 0.5 + 0.01 * n + 0.001 * (n == 1)) for n in range(3)]
    rows += [make_result("dtd", n, 0.91 + 0.01 * (n % 2)) for n in range(3)]
    highest, sentence, *_ = findings(Table(tuple(rows)))
    assert highest == "Highest mean image AUROC: dtd, 0.913 ± 0.006."
    assert sentence == (
        "Differences in image AUROC to sdas, 0.910 ± 0.010; significant: noise -0.400 ± 0.001; "
        "not significant: dtd +0.003 ± 0.012."
    )


def test_the_plot_does_not_blow_up_differences_of_a_thousandth():
    near = Table(tuple(make_result("a", seed, 0.9 + seed / 1000) for seed in range(3)))
    far = Table(tuple(make_result("a", seed, 0.5 + seed / 5) for seed in range(3)))
    for table, least, most in [(near, 0.02, 0.0201), (far, 0.4, 0.5)]:
        low, high = draw_grid(table).axes[0].get_xlim()
        assert least <= high - low <= most
        values = table.by_seed("a", "image AUROC")
        assert low < min(values) <= max(values) < high


def test_markdown_cells_cannot_break_the_table():
    text = Section(title="T", head=("", "x"), rows=[["a|b", "*+0.1 ± 0.2"]]).markdown()
    assert text.splitlines()[-1] == r"| a\|b | \*+0.1 ± 0.2 |"


# Pieces


def test_named_sources():
    assert parse_named(["noise", "a=sia", "b=textures:x/y", "c:d/e=1"]) == {
        "noise": (Part("noise"),),
        "a": (Part("sia"),),
        "b": (Part("textures", Path("x/y")),),
        "c:d/e=1": (Part("sia", Path("c:d/e=1")),),
    }
    assert parse_named(["m=0.5*runs/a+b+1*noise"]) == {
        "m": (Part("sia", Path("runs/a+b"), 0.5), Part("noise", None, 1.0))
    }
    with pytest.raises(UserError, match="'0' is no weight"):
        parse_named(["m=0*noise+1*cutpaste"])


def test_folders_of_entries_never_clash(tmp_path):
    names = ["a", "a/b", "a-b", "a b", "..", ".a", "ä", "x" * 300, "x" * 301, "0.5*a+0.5*b"]
    folders = [safe_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for name in names:
        folder = training_folder(tmp_path, name, "nut", 0)
        assert folder.parent.parent.parent == tmp_path
        folder.mkdir(parents=True)


def test_added_memory_sees_what_is_given_back_and_nothing_of_what_was_before():
    blocks = [np.ones(2**20, np.uint8) for _ in range(200)]  # small ones, which malloc keeps
    held = np.ones(96 * 2**20, np.uint8)
    del blocks[:-1]
    with AddedMemory(torch.device("cpu")) as added:
        blocks += [np.ones(2**20, np.uint8) for _ in range(96)]
        time.sleep(0.1)
        del blocks[:]
    assert 88 * 2**20 < added.bytes < 104 * 2**20
    del held


def test_older_results_go_on_without_their_memory(tmp_path):
    """The peak of the whole process must not enter a mean with those of trainings."""
    result = make_result("a", 0, 0.5)
    write_result(tmp_path, {}, result)
    path = tmp_path / "results.json"
    data = json.loads(path.read_text())
    data["cost"] |= {"peak_bytes": 2**30, "num_parameters": 5, "num_trained": 3}
    del data["cost"]["training_bytes"]
    path.write_text(json.dumps(data))
    older = read_result(tmp_path, {})
    assert older is not None
    assert older.cost == result.cost._replace(training_bytes=None)
    newer = replace(result, seed=1, cost=result.cost._replace(training_bytes=5))
    assert Table((older, newer)).cost("a", "training_bytes") == 5


def test_images_that_cells_share_are_no_cost_of_the_first(run, products, tmp_path, monkeypatch):
    """The first cell of a source would pay for all of them."""
    inside, opened = [], []
    monkeypatch.setattr(AddedMemory, "__enter__", lambda self: inside.append(1) or self)
    monkeypatch.setattr(AddedMemory, "__exit__", lambda self, *_: inside.clear())
    pool = ImagePool.__init__
    monkeypatch.setattr(
        ImagePool, "__init__", lambda *a, **k: opened.append(len(inside)) or pool(*a, **k)
    )
    some = ("--categories", "widget", "--methods", "realnet", "--seeds", 0)
    assert run(*words(products, tmp_path), *some).code == 0
    assert opened == [0, 0]  # anomaly images and test images


def test_durations_read_well():
    assert [duration(s) for s in (None, 1.23, 99.9, 150, 7200)] == [
        "–",
        "1.2 s",
        "99.9 s",
        "2.5 min",
        "2.0 h",
    ]
