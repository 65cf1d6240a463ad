"""`detect predict`, from files to files."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from commands import Command
from detectors import NUM_HELD_OUT, write_detector
from PIL import Image
from products import normal_image, write_product
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from detect.calibration import calibrate
from detect.prediction.inputs import Loaded
from detect.prediction.log import ScoreLog, read_rows
from detect.prediction.overlays import heat_scale, short
from detect.prediction.predictor import load_predictor
from detect.prediction.run import Run, predict_watched, read_ahead
from detect.prediction.video import count_frames, read_frames
from detect.prediction.watch import PATIENCE_SECONDS, Unreadable, Watch, stop_on_interrupt
from synth.base.errors import DataWarning, UserError
from synth.images import read_image, write_png


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Do not write to it."""
    return write_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five smooth images of different sizes and four like the held-out ones, with equal names."""
    for n in range(9):
        size = (32, 32) if n % 2 else (30 + n, 40)
        write_png(tmp_path / f"photos/{n % 2}/{n // 2:03d}.png", normal_image(n, size))
    return tmp_path / "photos"


def words(model, out, *images):
    return ("detect", "predict", *images, "--model", model, "--out", out, "--batch-size", 4)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def tree(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# Rows and pictures


def test_a_region_to_ignore(run, model, photos, tmp_path):
    """All images have one size; the region of none of them is marked, and rows do not mix."""
    for path in photos.rglob("*.png"):
        write_png(path, normal_image(int(path.stem), (32, 32)))
    region = np.zeros((32, 32), bool)
    region[:, :20] = True
    write_png(tmp_path / "region.png", region)
    out = tmp_path / "out"
    line = (*words(model, out, photos), "--ignore", tmp_path / "region.png")
    ended = run(*line, "--false-reject-rate", 0.5)
    assert ended.code == 0, ended
    assert "it keeps its promise; --normals sets a closer one" in ended.out
    predictor = load_predictor(model, false_reject_rate=0.5, ignore=region)
    for row in log(out):
        assert row["score"] == pytest.approx(predictor.predict(row["file"]).score, rel=1e-5)
        assert not (read_image(out / row["mask"])[..., 0].astype(bool) & region).any()
    ended = run(*words(model, out, photos), "--false-reject-rate", 0.5)
    assert (ended.code, "ignore" in ended.err) == (2, True)
    ended = run(*line, "--false-reject-rate", 0.5, "--normals", photos / "0", "--out", out / "n")
    assert ended.code == 0, ended
    assert "keeps its promise" not in ended.out
    assert run(*words(model, tmp_path / "x", photos), "--ignore", photos / "nothing.png").code == 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_regions_as_coco_reads_them(run, model, photos, tmp_path):
    from pycocotools.coco import COCO

    (photos / "broken.png").write_text("no image")
    out, file = tmp_path / "out", tmp_path / "regions.json"
    line = (*words(model, out, photos), "--false-reject-rate", 0.9, "--coco", file)
    ended = run(*line)
    assert (ended.code, "1 of 10 images cannot be read" in ended.err) == (2, True)
    rows = [row for row in log(out) if row["verdict"] != "unreadable"]
    coco = COCO(file)
    assert [coco.imgs[n + 1]["file_name"] for n in range(len(rows))] == [r["file"] for r in rows]
    assert f"{len(coco.anns)} anomalous regions: {file}" in ended.out
    assert any(row["verdict"] == "anomalous" for row in rows)
    for image_id, row in enumerate(rows, start=1):
        mask = read_image(out / row["mask"])[..., 0] > 0
        found = coco.loadAnns(coco.getAnnIds(image_id))
        parts = [coco.annToMask(annotation) for annotation in found]
        np.testing.assert_array_equal(sum(parts, np.zeros(mask.shape)), mask)
        for annotation, part in zip(found, parts, strict=True):
            x, y, width, height = annotation["bbox"]
            assert part[y : y + height, x : x + width].sum() == part.sum() == annotation["area"]
            assert cv2.connectedComponents(part)[0] == 2
            assert annotation["score"] == row["score"]
    refused = run(*words(model, tmp_path / "x", photos), "--coco", file, "--pictures", "none")
    assert (refused.code, "--coco: needs --pictures all" in refused.err) == (2, True)


def test_a_row_an_overlay_and_a_mask_per_image(run, model, photos, tmp_path):
    out = tmp_path / "out"
    ended = run(*words(model, out, photos))
    assert ended.code == 0, ended
    rows, logged = table(out), log(out)
    assert list(rows[0]) == ["file", "score", "threshold", "p_value", "verdict", "overlay", "mask"]
    assert [row["file"] for row in rows] == sorted(map(str, photos.rglob("*.png")))
    threshold = json.loads((model / "calibration.json").read_text())["threshold"]
    for row, exact in zip(rows, logged, strict=True):
        image = read_image(Path(row["file"]))
        assert read_image(out / row["overlay"]).shape == image.shape
        mask = cv2.imread(str(out / row["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any() == (row["verdict"] == "anomalous") == (exact["score"] > threshold)
        assert row["verdict"] == exact["verdict"]
        assert exact["threshold"] == threshold
        assert float(row["score"]) == pytest.approx(exact["score"], rel=1e-5)
        assert (row["overlay"], row["mask"]) == (exact["overlay"], exact["mask"])
    assert len({row["overlay"] for row in rows}) == 9
    assert len(list((out / "overlays").iterdir())) == len(list((out / "masks").iterdir())) == 9
    rejected = sum(row["verdict"] == "anomalous" for row in rows)
    assert f"{rejected} of 9 images are anomalous\n" in ended.out
    assert "images per second, decoding included (batches of 4)" in ended.out
    assert ended.out.splitlines()[-1] == f"scores: {out / 'scores.csv'}"


def test_scores_are_those_of_the_call_in_memory(run, model, photos, tmp_path):
    assert run(*words(model, tmp_path / "out", photos)).code == 0
    predictor = load_predictor(model)
    for row in log(tmp_path / "out"):
        result = predictor.predict(row["file"])
        assert row["score"] == pytest.approx(result.score, rel=1e-5)
        assert row["p_value"] == result.p_value


def test_another_rate_at_prediction_time(run, model, photos, tmp_path):
    scores = sorted(json.loads((model / "calibration.json").read_text())["scores"])
    before = (model / "calibration.json").read_bytes()
    for rate, rank, bound in [(0.05, 38, "5.00%"), (0.3, 28, "30.00%"), (0.01, 39, "2.50%")]:
        out = tmp_path / str(rate)
        ended = run(*words(model, out, photos), "--false-reject-rate", rate)
        assert ended.code == 0
        assert log(out)[0]["threshold"] == scores[rank - 1]
        assert f"threshold {scores[rank - 1]:.4g}: rejects at most {bound} of normal" in ended.out
        assert f"({rate:.2%} asked for; from {NUM_HELD_OUT} held-out normal images)" in ended.out
        assert ("needs 99 held-out normal images, got 39" in ended.err) == (rate == 0.01)
    assert (model / "calibration.json").read_bytes() == before
    line = run.refused(*words(model, tmp_path / "no", photos), "--false-reject-rate", 1)
    assert line == "detect: --false-reject-rate: got 1.0, must lie between 0 and 1"


def test_another_rate_at_evaluation_time(run, model, tmp_path):
    root, out = write_product(tmp_path / "widget"), tmp_path / "out"
    scores = sorted(json.loads((model / "calibration.json").read_text())["scores"])
    words = ("detect", "evaluate", "--root", root, "--model", model, "--out", out)
    ended = run(*words, "--false-reject-rate", 0.01)
    assert ended.code == 0, ended
    assert "needs 99 held-out normal images, got 39" in ended.err
    results = json.loads((out / "results.json").read_text())
    assert results["threshold"] == scores[-1]
    assert results["false_reject_rate"]["asked"] == 0.01
    assert {float(row["threshold"]) for row in table(out)} == {float(f"{scores[-1]:.6g}")}


@pytest.mark.parametrize("choice", ["anomalous", "none"])
def test_pictures_of_those_asked_for(run, model, photos, tmp_path, choice):
    out = tmp_path / "out"
    ended = run(*words(model, out, photos), "--pictures", choice, "--false-reject-rate", 0.5)
    assert ended.code == 0
    rows = log(out)
    assert {row["verdict"] for row in rows} == {"normal", "anomalous"}
    for row in rows:
        wanted = choice == "anomalous" and row["verdict"] == "anomalous"
        assert (row["overlay"] is not None) == (row["mask"] is not None) == wanted
    names = {path.name for path in out.rglob("*.png")}
    assert names == {Path(row["overlay"]).name for row in rows if row["overlay"]}
    assert (f"overlays: {out / 'overlays'}\n" in ended.out + ended.err) == (choice == "anomalous")


def test_colours_are_known_before_any_image():
    scale = heat_scale(calibrate([0.1, 0.2, 0.3, 0.4, 0.5], 0.34))
    assert scale == pytest.approx((0.3, 0.5)), "median 0.3, threshold 0.4 in the middle"
    assert heat_scale(calibrate([0.2], 0.5)) == (0.2, 0.2), "shows what lies above"


def test_odd_names(run, model, tmp_path):
    names = [b"long" * 60 + b".png", b"l\xff\xfe.png", "Schräge ✓.png".encode()]
    for n, name in enumerate(names):
        write_png(tmp_path / "a.png", normal_image(n))
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(tmp_path / "a.png", os.path.join(os.fsencode(tmp_path / "in"), name))
    out = tmp_path / "out"
    assert run(*words(model, out, tmp_path / "in")).code == 0
    assert {os.path.basename(os.fsencode(row["file"])) for row in table(out)} == set(names)
    assert all((out / row["overlay"]).exists() for row in table(out))
    assert short("✓" * 99) == "✓" * 33
    assert short('a\nb|c:"d"\x7f') == "a_b_c__d__"


def test_pictures_of_others_stay(run, model, photos, tmp_path):
    """All of them in a folder that is used for the first time, later those of other names."""
    out = tmp_path / "out"
    first = ["overlays/7_report.png", "masks/000099_mine.png", "overlays/0000123_x.png"]
    for name in first:
        write_png(out / name, normal_image(0))
    assert run(*words(model, out, photos)).code == 0
    assert all((out / name).exists() for name in first)
    later = ["overlays/2024_07_line.png", "masks/99_.png", "masks/note.txt", "masks/.2024_x.png"]
    for name in later:
        (out / name).write_bytes(b"mine")
    own = [out / "masks/000999_a.png", out / "overlays/.000003_a.png.0123abcd.partial"]
    for path in own:
        path.write_bytes(b"")
    assert run(*words(model, out, photos)).code == 0
    assert all((out / name).exists() for name in [*first[::2], *later])
    assert not any(path.exists() for path in own)


def test_rows_are_written_before_further_images_are_read(model, photos, tmp_path):
    """Memory holds a chunk, and the one that is read ahead."""
    predictor = load_predictor(model, batch_size=2)
    written_at: list[int] = []

    with ScoreLog(tmp_path, with_frames=False) as scores:

        def batches():
            for n in range(6):
                written_at.append(len(list(read_rows(scores.path))))
                yield [Loaded(f"{n}{k}.png", normal_image(n)) for k in range(2)]

        done = Run(predictor, scores, tmp_path, "none").predict(
            read_ahead(batches()), lambda _: None
        )
    assert done.num_images == 12
    assert written_at[0] == 0
    assert all(at >= 2 * (n - 2) for n, at in enumerate(written_at))


def test_a_detector_with_damaged_weights_writes_no_verdict(run, model, photos, tmp_path):
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    with safe_open(broken / "model.safetensors", "pt") as file:
        about = file.metadata()
    weights = load_file(broken / "model.safetensors")
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", about)
    ended = run(*words(broken, tmp_path / "out", photos))
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert str(broken) in ended.line
    assert "NaN" in ended.line
    assert "anomalous" not in ended.out
    assert not any(path.read_text() for path in (tmp_path / "out").glob("scores.jsonl"))


# What is scored


def test_files_folders_patterns_and_lists(run, model, photos, tmp_path, monkeypatch):
    def scored(*images, stdin=b""):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        ended = run(*words(model, out, *images), "--pictures", "none")
        assert ended.code == 0, ended
        return [str(Path(row["file"]).relative_to(photos)) for row in table(out)]

    everything = [f"0/00{n}.png" for n in range(5)] + [f"1/00{n}.png" for n in range(4)]
    assert scored(photos) == everything
    assert scored(f"{photos}/**/*.png") == everything
    assert scored(f"{photos}/?/00[13].png") == ["0/001.png", "0/003.png", "1/001.png", "1/003.png"]
    assert scored(photos / "1/002.png", photos / "1") == [
        everything[7],
        *everything[5:7],
        everything[8],
    ]
    listed = f"{photos}/1/001.png\r\n\n{photos}/0\n".encode()
    assert scored("-", stdin=listed) == ["1/001.png", *everything[:5]]
    (photos / "notes.txt").write_text("no image")
    (photos / "odd[1].png").write_bytes((photos / "0/000.png").read_bytes())
    assert scored(photos / "odd[1].png") == ["odd[1].png"]
    assert scored(f"{photos}/*") == ["odd[1].png"]


def test_mistakes_in_what_is_scored(run, model, photos, tmp_path, monkeypatch):
    def refused(*images, options=()):
        return run.refused(*words(model, tmp_path / "out", *images), *options)

    assert f"{photos}/*.jpg: the pattern matches no image or video" in refused(f"{photos}/*.jpg")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    assert "the list on standard input names none" in refused("-")
    assert "--every: got 0" in refused(photos, options=("--every", 0))
    assert "--watch: needs one folder" in refused(photos, photos, options=["--watch"])
    assert "--watch: needs one folder" in refused(tmp_path / "no", options=["--watch"])
    assert not (tmp_path / "out/scores.csv").exists()
    line = run.refused(*words(model, photos / "out", photos))
    assert f"--out: {photos / 'out'} lies in {photos}" in line


def test_a_pattern_passes_over_the_commands_own_pictures(run, model, photos, tmp_path, monkeypatch):
    out = photos / "out"
    for _ in range(3):
        assert run(*words(model, out, f"{photos}/**/*.png")).code == 0
        assert len(log(out)) == 9
    line = run.refused(*words(model, out, f"{out}/**/*.png"))
    assert f"--out: {out} is where pictures are written" in line
    picture = next((out / "overlays").iterdir())
    assert f"{picture} names images in it" in run.refused(*words(model, out, picture))
    for listed in (picture, photos):
        stdin = SimpleNamespace(buffer=io.BytesIO(os.fsencode(listed)))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert f"--out: {out}" in run.refused(*words(model, out, "-"))


# Going on


@pytest.mark.parametrize("cut", [0, 3, 9])
def test_a_killed_run_goes_on_as_if_never_stopped(run, model, photos, tmp_path, cut):
    assert run(*words(model, tmp_path / "whole", photos)).code == 0
    out = Path(shutil.copytree(tmp_path / "whole", tmp_path / "out"))
    lines = (out / "scores.jsonl").read_bytes().splitlines(keepends=True)
    half = lines[cut][:20] if cut < 9 else b""
    (out / "scores.jsonl").write_bytes(b"".join(lines[:cut]) + half)
    (out / "scores.csv").write_text("file,score\nodd")
    write_png(out / f"overlays/{cut:06d}_other.png", normal_image(0))
    (out / f"masks/.{cut:06d}_000.png.1234abcd.partial").write_bytes(b"half")
    ended = run(*words(model, out, photos))
    assert ended.code == 0, ended
    if cut == 9:
        assert "images per second" not in ended.out
        (out / f"overlays/{cut:06d}_other.png").unlink(missing_ok=True)
    got, expected = tree(out), tree(tmp_path / "whole")
    assert got.keys() == expected.keys()
    for name in got.keys() - {"scores.jsonl", "scores.csv"}:
        assert got[name] == expected[name], name
    for row, other in zip(log(out), log(tmp_path / "whole"), strict=True):
        assert row.pop("score") == pytest.approx(other.pop("score"), rel=1e-5)
        assert row == other
    assert [row["file"] for row in table(out)] == [row["file"] for row in log(out)]


def test_another_model_or_rate_is_refused(run, model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(*words(model, out, photos)).code == 0
    before = tree(out)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    calibration = calibrate([0.1, 0.2], 0.5)
    (other / "calibration.json").write_text(json.dumps(calibration.to_json()))
    assert "model_digest" in run.refused(*words(other, out, photos))
    line = run.refused(*words(model, out, photos), "--false-reject-rate", 0.3)
    assert "false_reject_rate: 0.1 there, 0.3 here" in line
    assert "or another --out" in line
    assert tree(out) == before


def scores_of(out: Path) -> dict[str, float]:
    rows = log(out)
    assert len({row["file"] for row in rows}) == len(rows), "no file twice"
    assert [row["file"] for row in table(out)] == [row["file"] for row in rows]
    for kind in ("overlay", "mask"):
        named = {Path(row[kind]).name for row in rows if row.get(kind)}
        assert {path.name for path in (out / f"{kind}s").iterdir()} == named
    return {Path(row["file"]).name: row.get("score") for row in rows}


def test_a_growing_folder_goes_on(run, model, tmp_path):
    """A new file is scored alone, one that is gone keeps its row, a changed one has a new row."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for n in range(5):
        write_png(folder / f"{n}.png", normal_image(n))
    assert run(*words(model, out, folder)).code == 0
    first = scores_of(out)
    (folder / "0.png").unlink()
    write_png(folder / "5.png", normal_image(5))
    ended = run(*words(model, out, folder))
    assert ended.code == 0, ended
    assert "other files, with rows of earlier runs: 1\n" in ended.out
    second = scores_of(out)
    assert {**second, **first} == second
    assert second.keys() == {f"{n}.png" for n in range(6)}
    write_png(folder / "1.png", 255 - normal_image(1) // 2)
    write_png(folder / "5.png", normal_image(6))
    assert run(*words(model, out, folder)).code == 0
    third = scores_of(out)
    same = {f"{n}.png" for n in (0, 2, 3, 4)}
    assert {name for name in third if third[name] == second[name]} == same
    expected = load_predictor(model).predict(folder / "1.png").score
    assert third["1.png"] == pytest.approx(expected, rel=1e-5)
    before = tree(out)
    assert "images per second" not in run(*words(model, out, folder)).out
    assert tree(out) == before


def test_a_kill_while_a_changed_file_is_scored_again(run, model, tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    for n in range(5):
        write_png(folder / f"{n}.png", normal_image(n))
    assert run(*words(model, out, folder)).code == 0
    write_png(folder / "1.png", normal_image(7))
    write_png(folder / "3.png", normal_image(8))

    def killed(*_):
        raise UserError("killed")

    for place in ("detect.prediction.log.atomic_path", "detect.prediction.run.chunks"):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            assert run(*words(model, out, folder)).code == 2
    assert run(*words(model, out, folder)).code == 0
    found = scores_of(out)
    predictor = load_predictor(model)
    for name, score in found.items():
        assert score == pytest.approx(predictor.predict(folder / name).score, rel=1e-5)
    assert len(found) == 5


def test_a_file_has_one_row_however_it_is_spelled(run, model, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    path = photos / "0/001.png"
    monkeypatch.chdir(photos)
    given = ("0/001.png", path, "./0/../0/001.png", "0")
    assert run(*words(model, out, *given)).code == 0
    assert len(log(out)) == 5
    monkeypatch.chdir(photos / "1")
    assert run(*words(model, out, "000.png")).code == 0
    assert run(*words(model, out, "../0")).code == 0
    assert len(scores_of_files(out)) == 6
    assert log(out)[0]["file"] == str(path)


def scores_of_files(out: Path) -> set[str]:
    return {row["file"] for row in log(out)}


def test_what_cannot_be_read_has_a_row_and_is_tried_again(run, model, photos, tmp_path):
    out = tmp_path / "out"
    whole = (photos / "0/001.png").read_bytes()
    (photos / "0/001.png").write_bytes(whole[: len(whole) // 2])
    (photos / "1/001.png").write_bytes(b"")
    for _ in range(2):
        ended = run(*words(model, out, photos))
        assert ended.code == 2
        assert "Traceback" not in ended.err
        assert "2 of 9 images cannot be read, the first: " in ended.line
        assert "of 7 images are anomalous, 2 could not be read" in ended.out
        assert [row["verdict"] for row in log(out)].count("unreadable") == 2
        assert len(log(out)) == 9
    (photos / "0/001.png").write_bytes(whole)
    (photos / "1/001.png").unlink()
    ended = run(*words(model, out, photos))
    assert ended.code == 0, ended
    assert [row["file"] for row in log(out) if row["verdict"] == "unreadable"] == [
        str(photos / "1/001.png")
    ]


def test_a_file_that_vanishes_on_the_way_stops_nothing(run, model, photos, tmp_path, monkeypatch):
    out, gone = tmp_path / "out", photos / "1/002.png"

    def vanishing(path):
        gone.unlink(missing_ok=True)
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr("detect.prediction.inputs.read_image", vanishing)
        ended = run(*words(model, out, photos))
    assert ended.code == 2
    assert "1 of 9 images cannot be read, the first: " in ended.line
    assert "002.png: no such file" in ended.line
    assert len(log(out)) == 9
    write_png(gone, normal_image(3))
    assert run(*words(model, out, photos)).code == 0
    assert {row["verdict"] for row in log(out)} <= {"normal", "anomalous"}
    assert len(log(out)) == 9


def test_other_normals_under_the_same_names_are_refused(run, model, photos, tmp_path):
    out, normals = tmp_path / "out", tmp_path / "normals"
    for n in range(9):
        write_png(normals / f"{n}.png", normal_image(100 + n))
    command = (*words(model, out, photos), "--normals", normals)
    assert run(*command).code == 0
    assert run(*command).code == 0
    for n in range(9):
        write_png(normals / f"{n}.png", normal_image(200 + n))
    line = run.refused(*command)
    assert 'normals: "9 files, ' in line
    assert "or another --out" in line


def test_a_damaged_record_is_named(run, model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(*words(model, out, photos)).code == 0
    record = out / "scores.jsonl"
    for line in (b'{"file": "a"}\n', b'{"file": "\xff"}\n', b"\xff\xfe\n", b"[1]\n"):
        record.write_bytes(line)
        assert "scores.jsonl: damaged (line 1: " in run.refused(*words(model, out, photos))
    record.unlink()
    record.mkdir()
    assert f"{record}: cannot go on with it (Is a directory)" in run.refused(
        *words(model, out, photos)
    )


def test_a_folder_of_others_keeps_its_files(run, model, photos, tmp_path):
    """Rows without what they were made with are not gone on with, nor cut, nor removed."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.jsonl").write_bytes(b"not ended by a newline")
    (out / "normals.json").write_text("mine")
    before = tree(out)
    assert "predict.json is not beside it; give another --out" in run.refused(
        *words(model, out, photos)
    )
    assert tree(out) == before
    (out / "scores.jsonl").unlink()
    (out / "scores.csv").write_text("of an evaluation")
    assert "scores.csv: not known to be of a prediction" in run.refused(*words(model, out, photos))
    (out / "scores.csv").unlink()
    assert run(*words(model, out, photos)).code == 0
    assert (out / "normals.json").read_text() == "mine"


def test_a_damaged_threshold_is_set_again(run, model, photos, tmp_path):
    out = tmp_path / "out"
    command = (*words(model, out, photos), "--normals", photos / "0")
    assert run(*command).code == 0
    before, threshold = tree(out), out / "normals.json"
    for damage in (b'{"scores": [', b"{}", b"\xff", b'{"scores": [null], "threshold": 1}'):
        threshold.write_bytes(damage)
        line = run.refused(*command)
        assert str(threshold) in line
        assert "delete this one file, and the threshold is set on the normal images again" in line
    threshold.unlink()
    assert run(*command).code == 0
    assert tree(out) == before


# Videos


@pytest.fixture
def video(tmp_path) -> Path:
    """Twelve frames at 10 per second, frame n of brightness 20 n."""
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 40))
    for n in range(12):
        writer.write(np.full((40, 48, 3), 20 * n, np.uint8))
    writer.release()
    return path


def test_frames_are_numbered_and_every_nth_is_scored(run, model, video, tmp_path):
    assert count_frames(video) == 12
    for number, seconds, frame in read_frames(video, every=5):
        assert seconds == pytest.approx(number / 10)
        assert abs(frame.mean() - 20 * number) < 3
    out = tmp_path / "out"
    ended = run(*words(model, out, video), "--every", 5)
    assert ended.code == 0, ended
    rows = table(out)
    assert [row["frame"] for row in rows] == ["0", "5", "10"]
    assert [row["time_s"] for row in rows] == ["0.000", "0.500", "1.000"]
    assert {row["file"] for row in rows} == {str(video)}
    assert rows[1]["overlay"] == "overlays/000001_line_frame000005.png"
    assert read_image(out / rows[1]["overlay"]).shape == (40, 48, 3)
    assert [row["frame"] for row in log(out)] == [0, 5, 10]


def test_a_killed_video_goes_on_with_its_next_frame(run, model, video, photos, tmp_path):
    out = tmp_path / "out"
    images = (photos / "1", video)
    assert run(*words(model, out, *images), "--every", 2, "--pictures", "none").code == 0
    whole = [(row["file"], row.get("frame")) for row in log(out)]
    assert whole[3:6] == [(str(photos / "1/003.png"), None), (str(video), 0), (str(video), 2)]
    lines = (out / "scores.jsonl").read_text().splitlines(keepends=True)
    (out / "scores.jsonl").write_text("".join(lines[:6]))
    assert run(*words(model, out, *images), "--every", 2, "--pictures", "none").code == 0
    assert [(row["file"], row.get("frame")) for row in log(out)] == whole
    assert table(out)[0]["frame"] == ""


def test_a_video_that_changed_is_scored_from_its_beginning(run, model, video, tmp_path):
    out = tmp_path / "out"
    command = (*words(model, out, video), "--every", 4)
    assert run(*command).code == 0
    before = log(out)
    os.utime(video, ns=(1, 1))
    assert run(*command).code == 0
    assert [row["frame"] for row in log(out)] == [0, 4, 8]
    assert {row["mtime_ns"] for row in log(out)} == {1}
    assert [row["overlay"] for row in log(out)] == [row["overlay"] for row in before]
    write_png(video.parent / "a.png", normal_image(0))
    assert run(*words(model, out, video.parent / "a.png"), "--every", 4).code == 0
    assert [row["frame"] for row in table(out)] == ["0", "4", "8", ""]


def test_videos_that_cannot_be_read(run, model, video, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    ended = run(*words(model, tmp_path / "out", tmp_path / "bad.mp4", video), "--every", 6)
    assert ended.code == 2
    assert f"{tmp_path / 'bad.mp4'}: not a video that can be decoded" in ended.line
    verdicts = [row["verdict"] for row in log(tmp_path / "out")]
    assert (len(verdicts), verdicts.count("unreadable")) == (3, 1)
    data = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 3 // 4])
    with pytest.warns(DataWarning, match="it names .* frames, .* can be read"):
        assert 0 < len(list(read_frames(tmp_path / "cut.avi"))) < 12


# Watching


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_taken_only_when_complete_and_again_only_when_replaced(tmp_path):
    write_png(tmp_path / "whole.png", normal_image(0, (90, 90)))
    data, path = (tmp_path / "whole.png").read_bytes(), tmp_path / "new/image.png"
    (tmp_path / "new").mkdir()
    watch = Watch(tmp_path / "new", {}, clock=Clock())
    assert list(watch.look()) == []
    for end in (0, 100, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data[:end])
        os.utime(path, ns=(end, end))
        assert [list(watch.look()) for _ in range(3)] == [[], [], []]
    path.write_bytes(data)
    assert list(watch.look()) == [], "it has just changed"
    (found,) = watch.look()
    assert isinstance(found, Loaded)
    assert found.file == str(path)
    np.testing.assert_array_equal(found.image, normal_image(0, (90, 90)))
    assert [list(watch.look()) for _ in range(3)] == [[], [], []]
    assert not watch.seen
    write_png(path, normal_image(1, (90, 90)))
    assert list(watch.look()) == [], "it has just changed"
    (again,) = watch.look()
    assert isinstance(again, Loaded)
    np.testing.assert_array_equal(again.image, normal_image(1, (90, 90)))
    assert again.content != found.content
    assert list(watch.look()) == []
    known = {again.file: again.content}
    later = Watch(tmp_path / "new", known, clock=Clock())
    assert [list(later.look()) for _ in range(3)] == [[], [], []]


def test_a_watched_folder_may_be_gone_for_a_while(tmp_path):
    folder = tmp_path / "share"
    write_png(folder / "0.png", normal_image(0))
    watch = Watch(folder, {}, clock=Clock())
    assert [len(list(watch.look())) for _ in range(3)] == [0, 1, 0]
    for _ in range(2):
        folder.rename(tmp_path / "unmounted")
        with pytest.warns(DataWarning, match="share: the folder is gone; waiting") as told:
            assert [list(watch.look()) for _ in range(3)] == [[], [], []]
        assert len(told) == 1
        (tmp_path / "unmounted").rename(folder)
        assert [list(watch.look()) for _ in range(2)] == [[], []], "nothing is new"
    write_png(folder / "1.png", normal_image(1))
    assert [len(list(watch.look())) for _ in range(2)] == [0, 1]


def test_what_stays_unreadable_is_told_of_once_and_may_still_become_an_image(tmp_path):
    clock, path = Clock(), tmp_path / "bad.png"
    path.write_bytes(b"no image")
    watch = Watch(tmp_path, {}, clock=clock)
    assert [list(watch.look()) for _ in range(3)] == [[], [], []]
    clock.now = PATIENCE_SECONDS
    (found,) = watch.look()
    assert isinstance(found, Unreadable)
    assert found.reason.startswith(f"{path}: not an image")
    clock.now *= 5
    assert list(watch.look()) == []
    write_png(path, normal_image(0))
    list(watch.look())
    (found,) = watch.look()
    assert isinstance(found, Loaded)


def test_a_watched_folder_is_scored_as_it_fills_and_goes_on(model, tmp_path, monkeypatch):
    """Two runs with a new and a broken image between: every image once, the broken one named."""
    monkeypatch.setattr("detect.prediction.run.POLL_SECONDS", 0.01)
    monkeypatch.setattr("detect.prediction.watch.PATIENCE_SECONDS", 0.0)
    folder, out = tmp_path / "new", tmp_path / "out"
    predictor = load_predictor(model, batch_size=4)

    def watch_until(num_rows: int) -> list[str]:
        stop = Event()
        told: list[str] = []
        with ScoreLog(out, with_frames=False) as scores:

            def seen(row):
                told.append(f"{Path(row['file']).name} {row['verdict']}")
                if scores.num_rows == num_rows:
                    stop.set()

            predict_watched(Run(predictor, scores, out, "all"), folder, stop, seen)
        return told

    for n in range(3):
        write_png(folder / f"{n}.png", normal_image(n))
    out.mkdir()
    assert len(watch_until(3)) == 3
    (folder / "3.png").write_bytes(b"odd")
    write_png(folder / "later/4.png", normal_image(4))
    told = watch_until(5)
    assert "3.png unreadable" in told
    assert len(told) == 2
    assert sorted(Path(row["file"]).name for row in table(out)) == [f"{n}.png" for n in range(5)]
    (bad,) = [row for row in table(out) if row["verdict"] == "unreadable"]
    assert (bad["score"], bad["overlay"]) == ("", "")
    write_png(folder / "3.png", normal_image(3))
    write_png(folder / "0.png", normal_image(50))
    stale = next(row for row in log(out) if row["file"].endswith("/0.png"))
    told = watch_until(5)
    assert sorted(line.split()[0] for line in told) == ["0.png", "3.png"]
    assert {row["verdict"] for row in log(out)} <= {"normal", "anomalous"}
    assert len(scores_of(out)) == 5
    fresh = next(row for row in log(out) if row["file"].endswith("/0.png"))
    assert fresh["score"] != stale["score"]


def test_interrupt_stops_after_what_is_begun_and_the_second_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with stop_on_interrupt() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def start(*words) -> subprocess.Popen:
    code = "import sys; from detect.cli import main; main()"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words[1:])]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )


def wait_for_rows(out: Path, num: int, process: subprocess.Popen) -> None:
    path = out / "scores.jsonl"
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < num:
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_watching_survives_a_kill_and_ends_with_ctrl_c(model, tmp_path):
    folder, out = tmp_path / "new", tmp_path / "out"
    for n in range(40):
        write_png(folder / f"{n:02d}.png", normal_image(n))
    process = start(*words(model, out, folder), "--watch")
    wait_for_rows(out, 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = len(log(out))
    process = start(*words(model, out, folder), "--watch")
    for n in range(40, 43):
        write_png(folder / f"{n:02d}.png", normal_image(n))
    wait_for_rows(out, 43, process)
    process.send_signal(signal.SIGINT)
    told, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert told.count(": normal, score") + told.count(": anomalous, score") == 43 - done
    names = sorted(Path(row["file"]).name for row in table(out))
    assert names == [f"{n:02d}.png" for n in range(43)]
    assert [row["file"] for row in log(out)] == [row["file"] for row in table(out)]
    assert len(list((out / "overlays").iterdir())) == 43


# Tiles


def test_tiles_on_the_command_line(run, model, photos, tmp_path):
    for n in range(12):
        write_png(tmp_path / f"normals/{n}.png", normal_image(100 + n, (50, 60)))
    out = tmp_path / "out"
    tile = (*words(model, out, photos), "--tile")
    assert "--tile: needs --normals" in run.refused(*tile)
    assert "not used without --tile" in run.refused(*words(model, out, photos), "--overlap", 0.3)
    tile = (*tile, "--normals", tmp_path / "normals")
    assert "overlap: got 0.7" in run.refused(*tile, "--overlap", 0.7)
    assert "no such file or folder" in run.refused(*tile[:-1], tmp_path / "none")
    ended = run(*tile)
    assert ended.code == 0, ended
    assert "from 12 held-out normal images" in ended.out
    stored = json.loads((out / "normals.json").read_text())
    assert log(out)[0]["threshold"] == stored["threshold"]
    predictor = load_predictor(model, tile=True)
    assert log(out)[0]["score"] == pytest.approx(predictor.predict(log(out)[0]["file"]).score)
    assert run(*tile).code == 0
    assert "tile: [32, 32] there, [16, 24] here" in run.refused(*tile, "--tile-size", 16, 24)


def test_normals_set_the_threshold_of_whole_images_too(run, model, photos, tmp_path):
    out = tmp_path / "out"
    assert run(*words(model, out, photos), "--normals", photos / "0").code == 0
    scores = [row["score"] for row in log(out)[:5]]
    assert log(out)[0]["threshold"] == pytest.approx(max(scores), rel=1e-5)


def test_a_run_killed_before_its_first_row_leaves_no_threshold_behind(
    run, model, photos, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    for n in range(5):
        write_png(tmp_path / f"others/{n}.png", normal_image(200 + n, (50, 60)))

    def killed(*_):
        raise UserError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("detect.prediction.run.predict_files", killed)
        assert run(*words(model, out, photos), "--normals", tmp_path / "others").code == 2
    assert (out / "normals.json").exists()
    (out / "scores.jsonl").unlink()  # killed a moment earlier, it would not be there yet
    assert run(*words(model, out, photos), "--normals", photos / "0").code == 0
    scores = [row["score"] for row in log(out)[:5]]
    assert log(out)[0]["threshold"] == pytest.approx(max(scores), rel=1e-5)


def test_a_detectors_own_folder_as_out_keeps_its_threshold(run, model, photos, tmp_path):
    own = tmp_path / "detector"
    shutil.copytree(model, own)
    before = (own / "calibration.json").read_bytes()
    assert run(*words(own, own, photos), "--normals", photos / "0").code == 0
    assert (own / "calibration.json").read_bytes() == before
    scores = [row["score"] for row in log(own)[:5]]
    assert log(own)[0]["threshold"] == pytest.approx(max(scores), rel=1e-5)


def test_a_failure_while_writing_stops_with_one_line(run, model, photos, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("x.png: not written, the disk is full")

    monkeypatch.setattr("detect.prediction.run.write_pictures", full)
    ended = run(*words(model, tmp_path / "out", photos))
    assert ended.code == 2
    assert ended.line == "detect: x.png: not written, the disk is full"
    assert log(tmp_path / "out") == []


def test_images_are_as_a_person_sees_them(run, model, tmp_path):
    """A turned photograph: picture and mask lie as the photograph is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(normal_image(0, (40, 30))).save(tmp_path / "turned.jpg", exif=exif)
    assert run(*words(model, tmp_path / "out", tmp_path / "turned.jpg")).code == 0
    assert read_image(tmp_path / "out/overlays/000000_turned.png").shape == (30, 40, 3)


def test_watching_what_cannot_be_read_ends_with_2_as_scoring_does(
    run, model, photos, tmp_path, monkeypatch
):
    def watch(work, folder):
        work.predict([[Unreadable(str(folder / "a.png"), "a.png: damaged")]], lambda row: None)

    monkeypatch.setattr("detect.commands.predict.watch_folder", watch)
    ended = run(*words(model, tmp_path / "out", photos), "--watch")
    assert ended.code == 2
    assert ended.err.endswith("1 of 1 images cannot be read; their rows say so\n")
    assert [row["verdict"] for row in table(tmp_path / "out")] == ["unreadable"]
