import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import MAINS, Command
from products import normal_image, write_product, write_sources
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from synth.images import write_png

TINY = ("--backbone", "resnet10t", "--backbone-weights", "random", "--size", 32, 32)
QUICK = ("--method", "realnet", *TINY, "--batch-size", 4, "--precision", "fp32")


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    return write_product(tmp_path_factory.mktemp("data") / "widget")


@pytest.fixture(scope="module")
def detector(tmp_path_factory, product) -> Path:
    """A detector trained for three steps; do not write to it."""
    folder = tmp_path_factory.mktemp("detector")
    with pytest.MonkeyPatch.context() as patch:
        words = ["detect", "train", "--root", product, *QUICK, "--source", "noise"]
        patch.setattr(sys, "argv", [*map(str, words), "--num-steps", "3", "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            MAINS["detect"]()
    assert ended.value.code == 0
    return folder


@pytest.fixture
def own(detector, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(detector, tmp_path / "detector"))


def train_words(product, out, steps=3, source=("--source", "noise")):
    return (
        "detect",
        "train",
        "--root",
        product,
        *QUICK,
        *source,
        "--num-steps",
        steps,
        "--out",
        out,
    )


# The way through


def test_trained_detector_is_evaluated_and_used(run, product, detector, tmp_path):
    ended = run("detect", "evaluate", "--root", product, "--model", detector, "--out", tmp_path)
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "distance to the mean training image" in ended.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["image"]["auroc"] <= 1
    assert results["protocol"]["Training"].startswith("8 normal images of widget; 2 more held out")
    assert "3 steps of 4 images" in results["protocol"]["Detector"]

    test = product / "test"
    ended = run("detect", "predict", test, "--model", detector, "--out", tmp_path / "p")
    assert ended.code == 0, ended
    with (tmp_path / "scores.csv").open(newline="") as file:
        measured = {row["file"]: row["score"] for row in csv.DictReader(file)}
    with (tmp_path / "p/scores.csv").open(newline="") as file:
        predicted = {row["file"]: row["score"] for row in csv.DictReader(file)}
    assert measured == predicted
    assert len(list((tmp_path / "p/overlays").iterdir())) == 8


def test_threshold_is_a_held_out_score_of_prediction(run, product, detector, tmp_path):
    train = product / "train/good"
    assert run("detect", "predict", train, "--model", detector, "--out", tmp_path).code == 0
    with (tmp_path / "scores.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    calibration = json.loads((detector / "calibration.json").read_text())
    assert len(calibration["scores"]) == 2
    for score in calibration["scores"]:
        assert any(other == pytest.approx(score, rel=1e-5) for other in scores)


def test_training_opens_no_test_image(run, tmp_path):
    root = write_product(tmp_path / "widget")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"not for training")
    for path in (root / "ground_truth").rglob("*.png"):
        path.write_bytes(b"")
    assert run(*train_words(root, tmp_path / "out", steps=1)).code == 0


def test_held_out_images_change_the_threshold_only(run, product, detector, tmp_path):
    from synth.data.catalog import held_out, open_category

    root = Path(shutil.copytree(product, tmp_path / "widget"))
    for number, record in enumerate(held_out(open_category("folder", root))[1], start=77):
        write_png(record.path, normal_image(number) // 2)
    assert run(*train_words(root, tmp_path / "out")).code == 0
    for name in ("afs.json", "realnet/trace.jsonl", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (detector / name).read_bytes(), name
    name = "calibration.json"
    assert (tmp_path / "out" / name).read_bytes() != (detector / name).read_bytes()


def test_finished_training_is_quick_to_repeat_and_changes_nothing(run, product, own):
    before = {path.name: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    ended = run(*train_words(product, own))
    assert ended.code == 0
    assert "selecting channels" not in ended.err
    assert {path.name: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_steps_can_be_raised_but_not_lowered(run, product, own):
    afs = (own / "afs.json").stat().st_mtime_ns
    assert run(*train_words(product, own, steps=5)).code == 0
    rows = (own / "realnet/trace.jsonl").read_text().splitlines()
    assert len(rows) == 5
    assert (own / "afs.json").stat().st_mtime_ns == afs
    line = run.refused(*train_words(product, own, steps=4))
    assert line.startswith("detect: --num-steps: got 4, but")
    assert "give --num-steps 5" in line


def test_losses_go_to_the_tracker_asked_for(run, product, own):
    before = (own / "realnet/trace.jsonl").read_text()
    assert not (own / "siaforge").exists()
    assert run(*train_words(product, own, steps=5), "--tracker", "tensorboard").code == 0
    events = EventAccumulator(str(own / "siaforge"))
    events.Reload()
    rows = [json.loads(row) for row in (own / "realnet/trace.jsonl").read_text().splitlines()]
    assert len(before.splitlines()) == 3
    for name in ("loss", "segmentation", "reconstruction"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(n, pytest.approx(rows[n - 1][name])) for n in (4, 5)]
    assert "wandb is not installed" in run.refused(*train_words(product, own), "--tracker", "wandb")


def test_other_rate_only_sets_another_threshold(run, product, own):
    weights = (own / "model.safetensors").read_bytes()
    assert run(*train_words(product, own), "--false-reject-rate", 0.6).code == 0
    assert json.loads((own / "calibration.json").read_text())["false_reject_rate"] == 0.6
    assert (own / "model.safetensors").read_bytes() == weights


def test_anomaly_images_of_another_category_are_told(run, product, tmp_path):
    sia = write_sources(tmp_path / "sia", category="gadget")
    words = train_words(product, tmp_path / "out", steps=1, source=("--sia", sia))
    ended = run(*words)
    assert ended.code == 0, ended
    assert (
        f"warning: {sia} is of category gadget, the normal images of widget: its images"
        in ended.err
    )
    assert "A false-reject rate of 0.05 needs 19" in ended.err


def test_comparisons_have_their_own_names(run, product, detector, own, tmp_path):
    words = ("detect", "evaluate", "--root", product, "--model", detector, "--compare", own)
    ended = run(*words, "--out", tmp_path / "out")
    assert ended.code == 0
    assert "RealNet on noise images (detector)" in ended.out


def test_several_trainings_are_averaged(run, product, detector, own, tmp_path):
    words = ("detect", "evaluate", "--root", product, "--model", detector, own)
    ended = run(*words, "--out", tmp_path / "out")
    assert ended.code == 0, ended
    assert "the trainings have the same seed: their spread means nothing" in ended.err
    assert ended.out.startswith("Over 2 trainings (mean ± sample standard deviation)")
    results = json.loads((tmp_path / "out/results.json").read_text())
    auroc = results["image"]["auroc"]
    assert results["seeds"]["image"]["auroc"] == {"mean": auroc, "deviation": 0.0}
    assert [row["name"] for row in results["seeds"]["trainings"]] == [detector.name, own.name]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "results.json", "scores.csv", "scores.npz"}


# Mistakes


def test_options_out_of_range(run, product, tmp_path):
    for option, value in [
        ("--batch-size", 0),
        ("--num-steps", 0),
        ("--learning-rate", -1),
        ("--false-reject-rate", 1),
        ("--seed", -1),
        ("--workers", -1),
    ]:
        words = train_words(product, tmp_path / "out")
        assert run.refused(*words, option, value).startswith(f"detect: {option}: got {value}")
    words = train_words(product, tmp_path / "out")
    assert "--size: got 4 32" in run.refused(*words, "--size", 4, 32)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_not_there(run, product, tmp_path):
    sia = write_sources(tmp_path / "sia")
    words = train_words(product, tmp_path / "out", source=())
    assert "--sia: missing" in run.refused(*words)
    assert "--sia: not used" in run.refused(*words, "--source", "noise", "--sia", sia)
    (sia / "metadata.jsonl").unlink()
    assert f"{sia}: unfinished" in run.refused(*words, "--sia", sia)


@pytest.mark.parametrize(
    ("count", "answer"), [(1, "2 or more are needed, to hold one out"), (2, None), (3, None)]
)
def test_few_images(run, tmp_path, count, answer):
    root = write_product(tmp_path / "widget", num_train=count)
    words = train_words(root, tmp_path / "out", steps=1)
    if answer is not None:
        assert answer in run.refused(*words)
    else:
        ended = run(*words)
        assert ended.code == 0, ended
        assert "warning: A false-reject rate of 0.05 needs 19" in ended.err


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_training_images_are_counted(run, tmp_path, content):
    root = write_product(tmp_path / "widget")
    for name in ("003.png", "007.png"):
        path = root / "train/good" / name
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    line = run.refused(*train_words(root, tmp_path / "out"))
    assert line.startswith("detect: 2 of 10 images cannot be read, the first: ")
    assert "003.png" in line


def test_tiny_image_is_named(run, tmp_path):
    root = write_product(tmp_path / "widget")
    write_png(root / "train/good/004.png", normal_image(0, (1, 1)))
    assert "004.png: 1x1 px" in run.refused(*train_words(root, tmp_path / "out"))


def test_data_that_is_not_there(run, tmp_path):
    out = tmp_path / "out"
    assert f"{tmp_path / 'none'}: no such folder" in run.refused(
        *train_words(tmp_path / "none", out)
    )
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no images" in run.refused(*train_words(tmp_path / "empty", out))
    write_product(tmp_path / "two/widget")
    write_product(tmp_path / "two/gadget")
    line = run.refused(*train_words(tmp_path / "two", out), "--category", "gizmo")
    assert "no 'gizmo'" in line
    assert "gadget, widget" in line


def test_folder_of_another_configuration_shows_the_difference(run, product, own):
    before = (own / "model.safetensors").read_bytes()
    line = run.refused(*train_words(product, own), "--seed", 5)
    assert "detector.seed: 0 there, 5 here" in line
    assert (own / "model.safetensors").read_bytes() == before


def test_out_that_is_a_file(run, product, detector, tmp_path):
    (tmp_path / "file").write_text("kept")
    out = ("--out", tmp_path / "file")
    for words in (
        train_words(product, tmp_path / "file"),
        ("detect", "evaluate", "--root", product, "--model", detector, *out),
        ("detect", "predict", product / "test", "--model", detector, *out),
    ):
        assert "no folder that can be written to" in run.refused(*words)
    assert (tmp_path / "file").read_text() == "kept"


def test_model_that_is_none(run, product, own, tmp_path):
    def refused(model):
        words = ("detect", "evaluate", "--root", product, "--model", model)
        return run.refused(*words, "--out", tmp_path / "out")

    assert "no such file" in refused(tmp_path / "nowhere")
    assert "no such file; is this the folder that you meant?" in refused(own / "config.json")
    (own / "model.safetensors").write_bytes(b"odd")
    assert "model.safetensors: damaged" in refused(own)
    (own / "config.json").write_text('{"train": {"unet": {}}}')
    assert f"{own}: not a detector; give the --out of `detect train`" in refused(own)
    (own / "config.json").write_text("{")
    assert "config.json: damaged" in refused(own)


@pytest.mark.parametrize("name", ["afs.json", "realnet/state.safetensors"])
def test_damaged_state_is_named(run, product, own, name):
    (own / name).write_bytes(b"{}")
    line = run.refused(*train_words(product, own, steps=4))
    assert f"{own / name}: damaged" in line
    assert "delete it" in line


def test_test_set_that_cannot_be_measured(run, detector, tmp_path):
    root = write_product(tmp_path / "widget")
    words = ("detect", "evaluate", "--root", root, "--model", detector, "--out", tmp_path / "out")
    (root / "ground_truth/spot/001_mask.png").unlink()
    line = run.refused(*words)
    assert "001.png: its mask" in line
    assert "is missing" in line
    shutil.rmtree(root / "test/spot")
    assert "4 normal and 0 anomalous" in run.refused(*words)


def test_prediction_scores_the_others_and_names_a_broken_file(run, product, detector, tmp_path):
    write_png(tmp_path / "in/a.png", normal_image(0))
    (tmp_path / "in/b.png").write_bytes(b"")
    out = ("--model", detector, "--out", tmp_path / "out")
    ended = run("detect", "predict", tmp_path / "in", *out)
    assert ended.code == 2
    assert "1 of 2 images cannot be read, the first: " in ended.line
    assert "b.png: the file is empty" in ended.line
    rows = (tmp_path / "out/scores.csv").read_text().splitlines()[1:]
    assert [Path(row.split(",")[0]).name for row in rows] == ["a.png", "b.png"]
    assert "no such file or folder" in run.refused("detect", "predict", tmp_path / "no", *out)
    assert "images: none given" in run.refused("detect", "predict", *out)
    assert "File name too long" in run.refused("detect", "predict", "x" * 300, *out)


def test_wrong_choice_is_readable(run):
    for option, value in [("--preset", "huge"), ("--method", "magic"), ("--dataset", "odd")]:
        ended = run("detect", "train", option, value, "--out", "x")
        assert ended.code == 2
        assert value in ended.err


def test_a_loss_without_a_number_stops_and_the_last_good_state_stays(
    run, product, own, monkeypatch, tmp_path
):
    from detect.methods.realnet.model import RealNet

    weights, state = own / "model.safetensors", own / "realnet/state.safetensors"
    before = [weights.read_bytes(), state.read_bytes()]
    compute, steps = RealNet.losses, []

    def losses(self, batch, generator):
        steps.append(1)
        factor = float("nan") if len(steps) == 2 else 1.0
        return {name: factor * term for name, term in compute(self, batch).items()}

    with monkeypatch.context() as patch:
        patch.setattr(RealNet, "losses", losses)
        line = run.refused(*train_words(product, own, steps=6))
    assert "nan" in line
    assert "at step 5" in line
    assert "keeps the last good state, of step 3: lower the learning rate" in line
    assert [weights.read_bytes(), state.read_bytes()] == before
    assert run("detect", "predict", product / "test", "--model", own, "--out", tmp_path).code == 0
    assert run(*train_words(product, own, steps=4)).code == 0


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried to allocate 9 GiB", None])
def test_too_little_memory_names_what_to_lower(run, product, tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise MemoryError if error is None else torch.OutOfMemoryError(error)

    monkeypatch.setattr("detect.training.run.train_stages", full)
    line = run.refused(*train_words(product, tmp_path / "out"))
    assert line == (
        "detect: out of memory; lower --batch-size or --size, or give a smaller --preset"
    )


# Interruptions, in processes of their own


def start(words) -> subprocess.Popen:
    code = "import sys; from detect.cli import main; main()"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words[1:])]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_stopped_training_goes_on_as_if_never_stopped(run, product, tmp_path, kind):
    assert run(*train_words(product, tmp_path / "whole", steps=120)).code == 0
    cut = train_words(product, tmp_path / "cut", steps=120)
    process = start(cut)
    wait_for(tmp_path / "cut/realnet/state.safetensors", process)
    process.send_signal(kind)
    _, err = process.communicate(timeout=300)
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert err.endswith(
            "\ndetect: interrupted; run the same command again to go on from what is saved\n"
        )
    afs = (tmp_path / "cut/afs.json").stat().st_mtime_ns
    assert not (tmp_path / "cut/calibration.json").exists()
    assert run(*cut).code == 0
    assert (tmp_path / "cut/afs.json").stat().st_mtime_ns == afs
    for name in ("realnet/trace.jsonl", "calibration.json", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_start_that_failed_does_not_lock_its_folder(run, product, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"method": "realnet", "seed": 7}')
    (out / "afs.json").write_text("{}")
    stale = {"step": 0, "image_auroc": 2.0, "pixel_average_precision": 2.0}
    (out / "checks.json").write_text(json.dumps({"checks": [stale]}))
    (out / "best.safetensors").write_bytes(b"of another detector")
    run(*train_words(product, out), "--patience", 5)
    assert json.loads((out / "config.json").read_text())["detector"]["image_size"] == [32, 32]
    assert stale not in json.loads((out / "checks.json").read_text())["checks"]
    assert (out / "calibration.json").exists()


def test_a_backbone_with_fewer_channels_than_the_preset_keeps(run, product, tmp_path):
    out = tmp_path / "out"
    words = [*train_words(product, out, steps=1), "--backbone", "mobilenetv2_050"]
    run(*words)
    kept = json.loads((out / "config.json").read_text())["detector"]["num_selected"]
    assert kept == [16, 16, 48]  # the widths of its layers 1 to 3
    assert (out / "model.safetensors").exists()


def test_foreground_everything_overrules_the_finder(run, product, tmp_path):
    out = tmp_path / "out"
    run(*train_words(product, out, steps=1), "--foreground", "everything")
    assert json.loads((out / "config.json").read_text())["foreground"]["method"] == "everything"
