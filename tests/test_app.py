"""`detect app`: its logic, and its page in a real browser without a network."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import guarded, require_browser, started_browser
from commands import Command
from detectors import NUM_HELD_OUT, write_detector
from limits import killed_after
from products import normal_image, write_sources
from tiny import write_model

from detect.app import data, look, strength
from detect.app.data import Span
from detect.app.found import find
from detect.calibration import calibrate
from detect.checkpoint import load_detector, save_detector
from detect.prediction.predictor import load_predictor
from synth.base.errors import UserError
from synth.diffusion.model import load_model
from synth.diffusion.sampling import sample_images
from synth.images import read_image, write_png
from synth.quality.sheets import NUM_STEPS
from synth.sia.reader import Item, SiaHeader, open_sia, write_sia

ROOT = Path(__file__).parent.parent
NUM_PHOTOS = 8
SETTLE_S = 5.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A detector, a diffusion model and anomaly images, laid out as `detect fit` does."""
    folder = tmp_path_factory.mktemp("runs")
    write_detector(folder / "fit/detector")
    write_model(folder / "fit/model")
    write_sources(folder / "fit/sia/folder/widget")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five normal images and some with brighter and brighter spots, of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(NUM_PHOTOS):
        image = normal_image(100 + n, (32, 32 + 8 * (n % 2)))
        image[8:20, 8:20] += np.uint8(25 * max(0, n - 4))
        write_png(folder / f"part{n}.png", image)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def scored(runs: Path, photos: Path, folder: Path) -> look.Session:
    *_, session = look.score(load_predictor(runs / "fit/detector"), look.images_in(photos), folder)
    return session


def zipped(session: look.Session) -> zipfile.ZipFile:
    path = session.folder / "scores.zip"
    look.write_zip(session, path, lambda done, total: None)
    return zipfile.ZipFile(path)


def table(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read("scores.csv").decode())))


def write_several(folder: Path) -> Path:
    """The detector with thresholds for two categories, of which one rejects every image."""
    write_detector(folder)
    trained = load_detector(folder, torch.device("cpu"))
    own = {"bolt": calibrate([0.0] * 9, 0.1), "nut": trained.calibration}
    save_detector(folder, trained.detector, 1, trained.calibration, own)
    return folder


# What lies below a folder


def test_every_kind_is_found_at_its_depth(run, runs, photos, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    words = ("detect", "predict", photos, "--model", runs / "fit/detector")
    assert run(*words, "--out", tmp_path / "runs/today").code == 0
    shutil.copytree(tmp_path / "runs/fit", tmp_path / "runs/.trash")
    found = find(tmp_path / "runs")
    assert found.detectors == [tmp_path / "runs/fit/detector"]
    assert found.models == [tmp_path / "runs/fit/model"]
    assert found.sia == [tmp_path / "runs/fit/sia/folder/widget"]
    assert found.predictions == [tmp_path / "runs/today"]


def test_a_dry_run_says_what_is_found(run, runs):
    ended = run("detect", "app", "--runs", runs, "--dry-run")
    assert ended.code == 0
    counts = "detectors: 1, predictions: 0, diffusion models: 1, SIA folders: 1"
    assert ended.out == f"found below {runs}: {counts}\n"


def test_mistakes_of_the_command_are_one_line(run, runs, tmp_path, monkeypatch):
    assert "is no folder" in run.refused("detect", "app", "--runs", tmp_path / "none")
    assert "65535" in run.refused("detect", "app", "--runs", runs, "--port", 70_000)
    monkeypatch.setitem(sys.modules, "gradio", None)
    ended = run("detect", "app", "--runs", runs)
    assert (ended.code, ended.line) == (
        2,
        'detect: app: the package gradio is missing; run `pip install "siaforge[app]"`',
    )


# Look


def test_categories_are_those_with_a_threshold_of_their_own(runs, tmp_path):
    assert look.categories(runs / "fit/detector") == []
    assert look.categories(write_several(tmp_path)) == ["bolt", "nut"]


@pytest.mark.parametrize("rate", [0.1, 0.025, 0.4])
def test_rows_and_pictures_at_any_rate_are_those_of_a_prediction_at_it(
    runs, photos, tmp_path, rate
):
    session = scored(runs, photos, tmp_path)
    session.predictor.scorer = None  # nothing can be scored from here on
    predictor = load_predictor(runs / "fit/detector", false_reject_rate=rate)
    archive = zipped(session.at(rate))
    rows = table(archive)
    assert {row["file"] for row in rows} == {path.name for path in photos.iterdir()}
    assert [float(row["score"]) for row in rows] == sorted(
        (float(row["score"]) for row in rows), reverse=True
    )
    for row in rows:
        expected = predictor.predict(photos / row["file"])
        assert row["verdict"] == expected.verdict
        assert float(row["score"]) == pytest.approx(expected.score, rel=1e-4)
        assert float(row["p_value"]) == pytest.approx(expected.p_value, rel=1e-3)
        assert float(row["threshold"]) == pytest.approx(predictor.threshold, rel=1e-4)
        mask = np.frombuffer(archive.read(row["mask"]), np.uint8)
        mask = cv2.imdecode(mask, cv2.IMREAD_UNCHANGED) > 0
        assert (mask == expected.mask).mean() > 0.99
        assert row["overlay"] in archive.namelist()


def test_counts_and_promise_follow_the_rate(runs, photos, tmp_path):
    session = scored(runs, photos, tmp_path)
    few, many = session.at(0.025), session.at(0.9)
    rejected = [sum(s.score > each.calibration.threshold for s in session.shots)
                for each in (few, many)]  # fmt: skip
    assert rejected[0] < rejected[1]
    assert look.counts(few) == f"{rejected[0]} of {NUM_PHOTOS} images are anomalous"
    assert look.counts(many) == f"{rejected[1]} of {NUM_PHOTOS} images are anomalous"
    assert f"{NUM_HELD_OUT} held-out images can promise a rate of 2.50%" in look.promises(few)[1]
    assert "needs 99 held-out normal images" in look.promises(session.at(0.01))[1]


def test_the_large_picture_is_the_photograph_under_its_heat(runs, photos, tmp_path):
    session = scored(runs, photos, tmp_path).at(0.9)
    image, heated = look.pictures(session, session.shots[0], 1.0)
    _, half = look.pictures(session, session.shots[0], 0.5)
    _, none = look.pictures(session, session.shots[0], 0.0)
    assert max(image.shape) == look.VIEW_PX
    outlined = (none != image).any(axis=2)  # the line stays where the heat is taken away
    assert outlined.any()
    assert (heated != image).any(axis=2).sum() > outlined.sum()
    middle = (heated[~outlined].astype(float) + image[~outlined]) / 2
    assert np.abs(half[~outlined] - middle).max() <= 0.5


def test_a_region_to_ignore_is_that_of_a_prediction_and_can_be_taken_back(runs, tmp_path):
    for n in range(3):
        image = normal_image(n)
        image[4:12, 20:28] = 100 + 50 * n
        write_png(tmp_path / f"photos/{n}.png", image)
    session = scored(runs, tmp_path / "photos", tmp_path)
    region = np.ones((32, 32), np.bool_)
    region[:, :10] = False
    without = session.ignoring(region)
    expected = load_predictor(runs / "fit/detector", ignore=region, false_reject_rate=0.3)
    for row in table(zipped(without.at(0.3))):
        result = expected.predict(tmp_path / "photos" / row["file"])
        assert row["verdict"] == result.verdict
        assert float(row["score"]) == pytest.approx(result.score, rel=1e-4)
    assert [shot.score for shot in without.shots] != [shot.score for shot in session.shots]
    assert without.ignoring(None) == session
    with pytest.raises(UserError, match="proportions"):
        session.ignoring(np.eye(20, 40, dtype=np.bool_))


def test_what_is_no_image_is_a_line_with_its_name_alone(runs, photos, tmp_path):
    text, huge = tmp_path / "text.png", tmp_path / "huge.png"
    text.write_text("not an image")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    huge.write_bytes(header + bytes(4) + b"\0\0\0\0IDAT")
    images = [(path.name, path) for path in (text, photos / "part0.png", huge)]
    predictor = load_predictor(runs / "fit/detector")
    *_, session = look.score(predictor, images, tmp_path)
    assert [shot.name for shot in session.shots] == ["part0.png"]
    assert len(session.faults) == 2
    for fault, name in zip(session.faults, ("text.png", "huge.png"), strict=True):
        assert fault.startswith(f"{name}: ")
        assert str(tmp_path) not in fault


def test_a_predictions_folder_is_opened_and_not_changed(run, runs, photos, tmp_path):
    place = tmp_path / "predictions"
    words = ("detect", "predict", photos, "--model", runs / "fit/detector", "--out", place)
    assert run(*words, "--false-reject-rate", 0.3).code == 0
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with (place / "scores.csv").open(newline="") as file:
        written = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    (tmp_path / "known").mkdir()
    *_, session = look.open_prediction(place, find(runs).detectors, tmp_path / "known")
    assert session.calibration.false_reject_rate == 0.3
    for row in table(zipped(session)):
        mine = written[row["file"]]
        assert [row[name] for name in ("score", "threshold", "p_value", "verdict")] == [
            mine[name] for name in ("score", "threshold", "p_value", "verdict")
        ]
    _, heated = look.pictures(session, session.shots[0], 1.0)
    row = written[session.shots[0].name]
    assert np.abs(cv2.resize(read_image(place / row["overlay"]), heated.shape[1::-1]).astype(int)
                  - heated).mean() < 1  # fmt: skip
    assert look.counts(session) != look.counts(session.at(0.9))
    photograph, now = look.pictures(session.at(0.9), session.shots[0], 1.0)
    assert (now == photograph).all()  # the outline was that of another threshold
    assert "are hidden" in look.promises(session.at(0.9))[-1]
    assert "are hidden" not in str(look.promises(session))
    (tmp_path / "unknown").mkdir()
    *_, alone = look.open_prediction(place, [], tmp_path / "unknown")
    assert look.counts(alone) == look.counts(session) == look.counts(alone.at(0.9))
    assert "cannot be moved" in look.promises(alone)[0]
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


# Strength


def test_a_seed_at_all_strengths_is_what_the_sampler_draws_and_stays(runs, tmp_path):
    model = load_model(runs / "fit/model", torch.device("cpu"))
    steps = list(strength.draw(model, "nut", 5, tmp_path))
    assert [len(drawn.files) for drawn in steps] == list(range(1, len(strength.STRENGTHS) + 1))
    for s, file in zip(strength.STRENGTHS, steps[-1].files, strict=True):
        (expected,) = sample_images(model, [s], 5, [0], NUM_STEPS)
        assert (read_image(file) == expected).all()
    ages = [file.stat().st_mtime_ns for file in steps[-1].files]
    *_, again = strength.draw(model, "nut", 5, tmp_path)
    assert [file.stat().st_mtime_ns for file in again.files] == ages
    assert [again.at(s) for s in (0, 0.04, 0.06, 0.4, 1)] == [0, 0, 1, 3, 6]


def test_a_blend_is_the_photograph_outside_the_mask_and_the_source_inside(runs, photos, tmp_path):
    model = load_model(runs / "fit/model", torch.device("cpu"))
    *_, drawn = strength.draw(model, "nut", 3, tmp_path)
    photograph = photos / "part0.png"
    image = read_image(photograph).astype(float)
    _, whole = strength.blended(drawn, 0.5, photograph, 1.0)
    _, half = strength.blended(drawn, 0.5, photograph, 0.5)
    _, none = strength.blended(drawn, 0.5, photograph, 0.0)
    assert (none == image).all()
    inside = (whole != image).any(axis=2)
    assert 0 < inside.sum() < inside.size
    assert np.abs(half - (whole + image) / 2).max() <= 0.5
    source = cv2.resize(read_image(drawn.files[4]), (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(whole[inside].astype(int) - source[inside]).mean() < 20


# Data


def test_rows_are_chosen_by_strength_and_category(tmp_path):
    def items(indices):
        for i in indices:
            row = {"seed": 0, "strength": i / 10, "num_steps": 20, "quality": 2.0 - i}
            yield Item(i, normal_image(i), None, row)

    write_sia(tmp_path, SiaHeader("source", "folder", "widget", {}), 5, items)
    folder = open_sia(tmp_path)
    assert data.span(folder.rows, "strength") == (0.0, 0.4)
    assert data.span(folder.rows, "quality") == (-2.0, 2.0)
    assert data.span(folder.rows, "opacity") is None
    assert data.matching(folder, ()) == [0, 1, 2, 3, 4]
    assert data.matching(folder, ["widget"], strength=Span(0.1, 0.3)) == [1, 2, 3]
    assert data.matching(folder, (), strength=Span(0, 1), quality=Span(0, 9)) == [0, 1, 2]
    assert data.matching(folder, ["other"]) == []


def test_a_broken_folder_says_what_validate_says(run, runs, tmp_path):
    folder = shutil.copytree(runs / "fit/sia/folder/widget", tmp_path / "widget")
    assert data.faults(folder) == []
    (folder / "images/000/000002.png").write_bytes(b"no image")
    (folder / "metadata.jsonl").unlink()
    ended = run("synth", "validate", folder)
    assert ended.code == 2
    assert data.faults(folder) == ended.out.splitlines() != []


# In a browser

GUARD = """
import os, socket

def guarded(connect):
    def at_home(self, address):
        host = address[0] if isinstance(address, tuple) else ""
        if host not in ("", "127.0.0.1", "::1", "localhost"):
            with open(os.environ["GUARD_LOG"], "a") as log:
                print(address, file=log)
            raise OSError("the network is off")
        return connect(self, address)
    return at_home

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""
"""What Python runs first: connections to other machines are refused and written down."""


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory):
    """The page, served by a process of its own without a network."""
    if find_spec("gradio") is None:
        pytest.skip("the package gradio is not installed")
    require_browser()
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text(GUARD)
    log = folder / "connections.log"
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://proxy.invalid:9")
    paths = os.pathsep.join(map(str, (folder, ROOT)))
    env = {**os.environ, "PYTHONPATH": paths, "GUARD_LOG": str(log), **proxies}
    words = (sys.executable, "-m", "detect", "app", "--runs", str(runs), "--port", "0")
    with (
        (folder / "stderr").open("w+") as stderr,
        subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as server,
    ):
        try:
            lines = iter(server.stdout.readline, "")
            with killed_after(server, 300):
                found = next(filter(None, (re.match(r"page: (\S+)", line) for line in lines)), None)
            assert found, (folder / "stderr").read_text()
            yield found[1]
        finally:
            server.send_signal(signal.SIGINT)
            with killed_after(server, 60):
                code = server.wait()
    assert not log.exists(), log.read_text()
    assert code == 0
    assert "Traceback" not in (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def chromium(address):
    """The browser."""
    with started_browser() as browser:
        yield browser


@pytest.fixture
def open_page(chromium, address):
    """Opens the page as one more person, with nothing in common with the others."""
    elsewhere, contexts = [], []

    def new():
        contexts.append(chromium.new_context(viewport={"width": 1400, "height": 1000}))
        page = contexts[-1].new_page()
        with page.expect_request("**/queue/data?*"):
            guarded(page, address, elsewhere)
        settle(page)
        return page

    yield new
    for context in contexts:
        context.close()
    assert elsewhere == []


def settle(page):
    """Wait until no events are under way.

    An event that starts just as the stream of others is being closed gets no answer: gradio's
    browser side believes that the stream is still open. Sometimes gradio opens one stream too
    many while a page loads, which stays open with nothing to tell: the wait has an end.
    """
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and any(
        is_open(request) for request in page.requests() if "/queue/data" in request.url
    ):
        page.wait_for_timeout(20)


def is_open(request):
    return request.failure is None and request.timing["responseEnd"] < 0


def score(page, files, counts):
    """Drop photographs, score them, and wait for the counts."""
    page.locator("input[type=file]").first.set_input_files(files)
    page.get_by_text(files[-1].stem[:4]).first.wait_for()
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_role("heading", name=counts).wait_for()
    settle(page)


def captions(page):
    return page.locator(".caption-label:visible").all_inner_texts()


@pytest.mark.browser
def test_a_person_scores_photographs_moves_the_rate_and_downloads(
    open_page, runs, photos, tmp_path
):
    page = open_page()
    text = tmp_path / "text.png"
    text.write_text("not an image")
    files = [*sorted(photos.iterdir()), text]
    session = scored(runs, photos, tmp_path)
    score(page, files, look.counts(session))
    page.locator(".thumbnail-item").nth(NUM_PHOTOS - 1).wait_for()
    assert captions(page) == [look.caption(session, shot) for shot in session.shots]
    assert page.get_by_text("text.png: not an image").is_visible()
    page.get_by_label("number input for False-reject rate (%)").fill("45")
    page.get_by_role("heading", name=look.counts(session.at(0.45))).wait_for()
    assert look.counts(session.at(0.45)) != look.counts(session)
    assert page.get_by_text("(45.00% asked for;").is_visible()
    settle(page)
    page.locator(".thumbnail-item").nth(2).click()
    page.get_by_text(look.caption(session.at(0.45), session.shots[2]), exact=True).last.wait_for()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download scores").click()
    with zipfile.ZipFile(download.value.path()) as mine, zipped(session.at(0.45)) as expected:
        assert table(mine) == table(expected)
        assert sorted(mine.namelist()) == sorted(expected.namelist())


@pytest.mark.browser
def test_work_on_a_folder_can_be_cancelled(open_page, tmp_path):
    for n in range(200):
        write_png(tmp_path / f"many/{n:03d}.png", normal_image(n))
    page = open_page()
    page.get_by_label("Or a folder").click()
    page.get_by_label("Or a folder").fill(str(tmp_path / "many"))
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text(re.compile(r"^[1-9]\d* of 200 images$")).wait_for()
    page.get_by_role("button", name="Cancel", exact=True).click()
    heading = page.get_by_role("heading", name="images are anomalous")
    heading.wait_for()
    done = int(re.search(r"of (\d+) images", heading.inner_text())[1])
    assert 0 < done < 200


@pytest.mark.browser
def test_the_white_of_a_mask_file_does_not_count(open_page, photos, tmp_path):
    page = open_page()
    score(page, [photos / f"part{n}.png" for n in (0, 2, 4, 6)], "1 of 4 images are anomalous")
    mask = np.ones((32, 32), np.bool_)
    mask[:, :10] = False
    write_png(tmp_path / "mask.png", mask)
    page.get_by_text("Ignore a region of all images").click()
    page.get_by_text("Or a mask image").wait_for()
    page.locator("canvas").first.wait_for()  # the last that the accordion lays out
    page.locator("input[type=file]").last.set_input_files(tmp_path / "mask.png")
    page.locator("a[href*='mask.png']").first.wait_for()
    page.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_role("heading", name="0 of 4 images are anomalous").wait_for()


@pytest.mark.browser
def test_what_is_painted_does_not_count(open_page, runs, photos, tmp_path):
    page = open_page()
    files = [photos / f"part{n}.png" for n in (0, 2, 4, 6)]
    score(page, files, "1 of 4 images are anomalous")
    page.get_by_text("Ignore a region of all images").click()
    page.get_by_text("Or a mask image").wait_for()
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    page.mouse.move(*inside(canvas, 0.4, 0.3))
    page.mouse.down()
    page.mouse.move(*inside(canvas, 0.6, 0.5), steps=10)
    page.mouse.up()
    with page.expect_request(lambda request: "layers" in (request.post_data or "")) as asked:
        page.get_by_role("button", name="Apply", exact=True).click()
    (layer,) = asked.value.post_data_json["data"][1]["layers"]
    painted = cv2.imdecode(
        np.frombuffer(page.request.get(layer["url"]).body(), np.uint8), cv2.IMREAD_UNCHANGED
    )
    write_png(tmp_path / "mask.png", painted[..., 3] > 0)
    share = (painted[..., 3] > 0).mean()
    assert 0 < share < 0.5
    page.get_by_text(f"{share:.1%} of every image is ignored").wait_for()
    settle(page)
    expected = load_predictor(runs / "fit/detector", ignore=tmp_path / "mask.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download scores").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        for row in table(archive):
            result = expected.predict(photos / row["file"])
            assert row["verdict"] == result.verdict
            assert float(row["score"]) == pytest.approx(result.score, rel=1e-4)


def inside(locator, x, y):
    """A point of an element, as shares of its width and height."""
    box = locator.bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


@pytest.mark.browser
def test_a_category_brings_its_own_threshold(open_page, runs, photos):
    several = write_several(runs / "several")
    page = open_page()
    assert not page.get_by_label("Category", exact=True).first.is_visible()
    page.get_by_label("Detector").click()
    page.get_by_role("option", name="several").click()
    page.get_by_label("Category", exact=True).first.click()
    page.get_by_role("option", name="bolt").click()
    settle(page)
    files = sorted(photos.iterdir())
    predictor = load_predictor(several, category="bolt")
    rejected = sum(result.is_anomalous for result in predictor.predict(files))
    assert rejected != sum(each.is_anomalous for each in load_predictor(several).predict(files))
    score(page, files, f"{rejected} of {NUM_PHOTOS} images are anomalous")
    shutil.rmtree(several)


@pytest.mark.browser
def test_two_people_see_their_own_images(open_page, photos):
    first, second = open_page(), open_page()
    a, b = sorted(photos.iterdir())[:2], sorted(photos.iterdir())[2:5]
    score(first, a, re.compile("of 2 images"))
    score(second, b, re.compile("of 3 images"))
    first.get_by_label("number input for False-reject rate (%)").fill("45")
    first.get_by_text("(45.00% asked for;").wait_for()
    for page, files in ((first, a), (second, b)):
        names = sorted(text.splitlines()[1] for text in captions(page))
        assert names == [file.name for file in files]
    assert second.get_by_text("(10.00% asked for;").is_visible()


@pytest.mark.browser
def test_a_seed_is_drawn_at_all_strengths_and_blended(open_page, photos):
    page = open_page()
    page.get_by_role("tab", name="Strength").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("7 of 7 strengths of seed 0").wait_for()
    page.get_by_text("seed 0, s 0", exact=True).wait_for()
    settle(page)
    page.get_by_label("number input for Strength s").fill("0.7")
    page.get_by_text("seed 0, s 0.75", exact=True).wait_for()
    settle(page)
    page.get_by_role("button", name="Another seed").click()
    page.get_by_text("seed 1, s 0.75", exact=True).wait_for()
    settle(page)
    page.locator("input[type=file]").last.set_input_files(photos / "part0.png")
    blend = page.get_by_test_id("imageslider-image").locator("visible=true").last
    before = blend.get_attribute("src")
    page.get_by_label("number input for Opacity of the blend").fill("0.3")
    page.wait_for_function(
        "([img, before]) => img.src != before", arg=[blend.element_handle(), before]
    )


@pytest.mark.browser
def test_the_rows_of_a_folder_and_the_faults_of_a_broken_one(open_page, runs):
    broken = shutil.copytree(runs / "fit/sia/folder/widget", runs / "broken", dirs_exist_ok=True)
    (broken / "images/000/000002.png").write_bytes(b"no image")
    page = open_page()
    page.get_by_role("tab", name="Data").click()
    page.get_by_label("SIA folder").click()
    page.get_by_role("option", name="fit/sia/folder/widget").click()
    page.get_by_role("heading", name="6 of 6 images").wait_for()
    settle(page)
    page.locator(".thumbnail-item:visible").nth(1).click()
    digest = json.loads((runs / "fit/sia/folder/widget/metadata.jsonl").read_text().splitlines()[1])
    page.get_by_text(digest["sha256"]).wait_for()
    settle(page)
    page.get_by_label("SIA folder").click()
    page.get_by_role("option", name="broken").click()
    for fault in data.faults(broken):
        page.get_by_text(fault).wait_for()
