"""`synth inspect` from the command line, on tiny products and untrained models."""

import csv
import json
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from browser import guarded, started_browser
from commands import Command
from products import SIZE, normal_image, write_product, write_sources
from tiny import UNET, write_model

import synth.quality.reference
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.normals import load_normals
from synth.images import read_image, write_png
from synth.quality.reference import load_reference, make_reference, quality_scores
from synth.quality.sheets import SCRUBBED
from synth.sia.reader import Item, SiaHeader, open_sia, write_sia

PICTURES = ("sheet.png", "near_copies.png", "distance.png")
UNET_32 = replace(UNET, image_size=SIZE)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Figures are compared with their definition, for which random weights do."""
    untrained = replace(synth.quality.reference.DEFAULT_BACKBONE, weights="random")
    monkeypatch.setattr(synth.quality.reference, "DEFAULT_BACKBONE", untrained)
    monkeypatch.setattr("synth.base.backbones.DEFAULT_BACKBONE", untrained)
    monkeypatch.setattr("synth.quality.inspect_data.DEFAULT_BACKBONE", untrained)
    monkeypatch.setattr("synth.quality.sheets.NUM_STEPS", 2)


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    """A product whose test images cannot be read."""
    root = write_product(tmp_path_factory.mktemp("data") / "widget")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"not to be opened")
    return root


@pytest.fixture(scope="module")
def normals(product):
    return load_normals(open_category("folder", product), SIZE, no_bars)


@pytest.fixture(scope="module")
def model(tmp_path_factory, normals) -> Path:
    """An untrained model that says it was trained on the product."""
    about = {"category": "widget", "dataset": "folder", "data": normals.to_json()}
    return write_model(tmp_path_factory.mktemp("model"), UNET_32, **about)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sia"))


def inspect(product, out, *words):
    return ("synth", "inspect", "--root", product, "--out", out, *words)


def groups(out: Path) -> dict[tuple[str, float | None], dict]:
    found = json.loads((out / "quality.json").read_text())["groups"]
    return {(group["name"], group["strength"]): group for group in found}


# The way through


def test_a_model_is_measured_at_every_strength_and_drawn_once(run, product, model, tmp_path):
    words = inspect(product, tmp_path, "--model", model, "--num", 3, "--strengths", 0.2, 0)
    ended = run(*words)
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1] == f"to look at: {tmp_path / 'inspect.html'}"
    assert "samples at strength 0 lie farther off than 95 % of normal images" in ended.out
    assert ended.out.startswith(
        "samples to draw: 11 (3 at each of --strengths, 1 at others for the slider); a smaller"
    )
    found = groups(tmp_path)
    assert [s for _, s in found] == [None, 0, 0.2]
    assert found["held-out normal images", None]["num_images"] == 2
    assert found["samples at s = 0.2", 0.2]["num_images"] == 3
    for name in PICTURES:
        assert read_image(tmp_path / name).shape[2] == 3
    drawn = sorted((tmp_path / "samples").rglob("*.png"))
    assert len(drawn) == 11
    before = {path: path.stat().st_mtime_ns for path in drawn}
    lost = drawn[3].read_bytes()
    drawn[3].unlink()
    assert run(*words).out.startswith("samples to draw: 1 (3 at each of")
    assert drawn[3].read_bytes() == lost
    assert all(p.stat().st_mtime_ns == before[p] for p in drawn if p != drawn[3])


def test_it_leaves_the_model_the_reference_that_it_lacked(run, product, model, normals, tmp_path):
    path = model / "reference.safetensors"
    path.unlink(missing_ok=True)
    ended = run(*inspect(product, tmp_path, "--model", model, "--num", 1, "--strengths", 0))
    assert ended.code == 0, ended
    expected = quality_scores(make_reference(normals.fit, normals.held), normals.held)
    np.testing.assert_array_equal(quality_scores(load_reference(model), normals.held), expected)


def test_a_model_of_other_images_is_compared_but_gets_no_reference(run, product, tmp_path):
    model = write_model(tmp_path / "model", UNET_32)
    out = tmp_path / "out"
    ended = run(*inspect(product, out, "--model", model, "--num", 1, "--strengths", 0.1))
    assert ended.code == 0, ended
    assert "was trained on other images than these" in ended.err
    assert not (model / "reference.safetensors").exists()
    assert json.loads((out / "quality.json").read_text())["check"] is None  # no sample at s = 0


def test_every_image_of_a_folder_has_a_score(run, product, normals, sources, tmp_path):
    ended = run(*inspect(product, tmp_path, "--folder", sources))
    assert ended.code == 0, ended
    assert "the folder's 6 images lie at a mean distance of" in ended.out
    reference = make_reference(normals.fit, normals.held)
    folder = open_sia(sources)
    expected = quality_scores(reference, [folder.read_image(n) for n in range(6)])
    with (tmp_path / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["index"]), float(r["strength"])) for r in rows] == [(n, 0.1) for n in range(6)]
    assert [float(row["quality"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    assert "0 % are near-copies of a training image" in ended.out
    assert len(groups(tmp_path)) == 2  # one strength is no group beside all images
    group = groups(tmp_path)["folder, all images", None]
    assert group["quality"]["value"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_the_page_holds_all_pictures_and_needs_nothing_else(run, product, sources, tmp_path):
    ended = run(*inspect(product, tmp_path, "--folder", sources, "--foreground"))
    assert ended.code == 0, ended
    page = (tmp_path / "inspect.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "://" not in page
    for line in ended.out.splitlines()[:-1]:
        assert line in page.replace("&#x27;", "'")


@pytest.fixture
def seed_page(run, product, model, tmp_path) -> Path:
    """The page of a model, one sample at each strength."""
    words = ("--model", model, "--num", 1, "--strengths", 0, 0.15)
    assert run(*inspect(product, tmp_path, *words)).code == 0
    return tmp_path / "inspect.html"


def frames_of(page: Path) -> list[str]:
    """Addresses of sample 0 by rising strength, as the page has to show them."""
    files = page.parent.glob("samples/*/s*/000000.png")
    rising = sorted(files, key=lambda path: float(path.parent.name[1:]))
    return [f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}" for path in rising]


def test_a_seed_at_rising_strength_is_a_row_without_scripts(seed_page, model, normals):
    text = seed_page.read_text()
    row = re.findall(r'<img src="([^"]+)" alt="s ([\d.]+)">', text)
    assert [float(s) for _, s in row] == sorted({*SCRUBBED, 0.15})
    assert [address for address, _ in row] == frames_of(seed_page)
    (script,) = re.findall(r"<script>(.*)</script>", text, re.DOTALL)
    assert b64encode(sha256(script.encode()).digest()).decode() in text
    assert not re.search(r"https?:|//|@import|\bimport\b", script)


@pytest.mark.browser
def test_the_slider_shows_the_seed_at_its_strength(seed_page):
    elsewhere, frames = [], frames_of(seed_page)
    with started_browser() as browser:
        page = guarded(browser.new_page(), seed_page.as_uri(), elsewhere)
        large, slider = page.locator(".large img"), page.get_by_label("Strength s")
        assert large.get_attribute("src") == frames[0]
        slider.press("End")
        assert large.get_attribute("src") == frames[-1] != frames[0]
        assert page.locator(".large").inner_text().startswith("s 1, distance ")
        page.locator(".strip figure").nth(2).click()
        assert large.get_attribute("src") == frames[2]
        assert slider.input_value() == "2"
        plain = guarded(browser.new_page(java_script_enabled=False), page.url, elsewhere)
        assert plain.locator(".strip img:visible").count() == len(frames)
        assert not plain.locator(".large").is_visible()
        assert not plain.locator("input").is_visible()
    assert elsewhere == []


def test_a_folder_without_strengths_has_scores_but_no_curve(run, product, tmp_path):
    def items(indices):
        for n in indices:
            yield Item(n, normal_image(50 + n), None, {"seed": 0})

    folder = tmp_path / "plain"
    write_sia(folder, SiaHeader("source", "folder", "widget", {}), 3, items)
    out = tmp_path / "out"
    assert run(*inspect(product, out, "--folder", folder)).code == 0
    assert not (out / "distance.png").exists()
    assert (out / "quality.csv").read_text().splitlines()[1].startswith("0,,")


@pytest.mark.parametrize(("method", "num_rows"), [("blend", 3), ("sdas-pair", 4)])
def test_masks_and_the_normal_images_of_pairs_are_shown(run, product, tmp_path, method, num_rows):
    """Held-out images, [the pairs' normal images,] the folder's images, masks."""

    def items(indices):
        for n in indices:
            mask = np.zeros(SIZE, np.bool_)
            mask[4:9, 4:9] = True
            row = {"seed": 0, "strength": 0.1 * n, "normal_file": "good/003.png"}
            yield Item(n, normal_image(60 + n), mask, row)

    folder = tmp_path / "pairs"
    write_sia(folder, SiaHeader("blended", "folder", "widget", {"method": method}), 2, items)
    out = tmp_path / "out"
    ended = run(*inspect(product, out, "--folder", folder))
    assert ended.code == 0, ended
    assert re.search(r"\d+ % show hardly any defect", ended.out)
    sheet = read_image(out / "sheet.png")
    captions = 2 * 22  # below the held-out images and the folder's
    assert sheet.shape[0] == num_rows * (30 + 128 + 6) + captions
    if method == "sdas-pair":
        first_pair = sheet[30 + 134 + 22 + 30 :][:128, 6 : 6 + 128]
        np.testing.assert_array_equal(first_pair[::4, ::4], normal_image(3))


def test_one_category_of_a_conditional_model(run, product, normals, tmp_path):
    unet = replace(UNET_32, num_categories=2)
    about = {"category": None, "categories": ["bolt", "widget"], "dataset": "folder"}
    about["data"] = {"bolt": {}, "widget": normals.to_json()}
    model = write_model(tmp_path / "model", unet, **about)
    words = ("--model", model, "--num", 2, "--strengths", 0)
    ended = run(*inspect(product, tmp_path / "out", *words))
    assert ended.code == 0, ended
    assert ended.err.count("warning") == 0
    assert load_reference(model, "widget").image_size == SIZE
    line = run.refused(*inspect(product, tmp_path / "out", "--category", "nut", *words))
    assert "the model knows no 'nut'; it knows bolt, widget" in line


def test_the_foreground_alone_needs_no_model(run, product, tmp_path):
    ended = run(*inspect(product, tmp_path, "--foreground"))
    assert ended.code == 0, ended
    assert ended.out.startswith("foreground: ")
    assert {path.name for path in tmp_path.iterdir()} == {"inspect.html", "foreground.png"}


# Mistakes


def test_options_out_of_range(run, product, model, tmp_path):
    out = tmp_path / "out"
    assert "give --model, --folder or --foreground" in run.refused(*inspect(product, out))
    words = ("--model", model)
    assert "--num: got 0" in run.refused(*inspect(product, out, *words, "--num", 0))
    line = run.refused(*inspect(product, out, *words, "--strengths", 0.1, -0.2))
    assert "--strengths: got 0.1, -0.2, must be 0 or more" in line
    assert "--seed: got -1" in run.refused(*inspect(product, out, *words, "--seed", -1))
    assert not out.exists()


def test_a_folder_of_another_category_is_said(run, product, tmp_path):
    other = write_sources(tmp_path / "sia", category="bolt", num=4)
    ended = run(*inspect(product, tmp_path / "out", "--folder", other))
    assert ended.code == 0, ended
    assert "is of category bolt, the normal images of widget" in ended.err


def test_a_broken_image_of_a_folder_is_named(run, product, tmp_path):
    folder = write_sources(tmp_path / "sia", num=4)
    (folder / "images/000/000002.png").write_bytes(b"broken")
    line = run.refused(*inspect(product, tmp_path / "out", "--folder", folder))
    assert "000002.png: not an image" in line


def test_a_damaged_sample_is_named(run, product, model, tmp_path):
    words = inspect(product, tmp_path, "--model", model, "--num", 1, "--strengths", 0)
    assert run(*words).code == 0
    sample = next((tmp_path / "samples").rglob("*.png"))
    write_png(sample, np.zeros((4, 4, 3), np.uint8))
    assert f"{sample}: 4x4 px" in run.refused(*words)
