"""`detect fit`: the whole chain in one command."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from commands import Command
from products import write_product

import detect.fitting
from detect.fitting import FALLBACK, Chain, Stage, before, run_chain, run_stage
from synth.base.files import write_json


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture
def product(tmp_path) -> Path:
    return write_product(tmp_path / "widget", num_train=8)


def chain_in(out: Path, **changes: object) -> Chain:
    chain = Chain(
        out=out,
        data=("--root", "photos"),
        diffusion=("--preset", "tiny", "--minutes", "3"),
        train=("--method", "realnet"),
        needs_anomalies=True,
        measured=True,
    )
    return chain._replace(**changes)


@pytest.fixture
def commands(monkeypatch):
    """Commands that are run; none of them does anything."""
    ran: list[tuple[str, ...]] = []

    def note(words: list[str], check: bool) -> subprocess.CompletedProcess:
        ran.append(tuple(words[2:]))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(detect.fitting.subprocess, "run", note)
    return ran


def test_a_chain_without_a_diffusion_model_is_run_as_it_is_printed(run, product, tmp_path):
    """The only method that takes no minutes, on real commands."""
    out = tmp_path / "out"
    ended = run("detect", "fit", product, "--out", out, "--method", "patch-nn")
    assert ended.code == 0, ended
    assert "8 normal images to train on; 4 normal and 4 defective ones" in ended.out
    assert "8 normal images are few" in ended.err
    assert "for 0.05 give about 190 images here" in ended.err
    assert f"--root {product} --method patch-nn" in ended.out
    assert f"next: detect predict NEW_PHOTOS --model {out}/detector" in ended.out
    page = (out / "index.html").read_text()
    assert 'href="results/report.html"' in page
    assert "detect train --dataset folder" in page
    weights = (out / "detector/model.safetensors").read_bytes()
    again = run("detect", "fit", product, "--out", out, "--method", "patch-nn")
    assert again.out.count("done before") == 2
    by_hand = json.loads((out / "fit.json").read_text())["done"][0].split()
    by_hand[by_hand.index("--out") + 1] = str(tmp_path / "other")
    assert run(*by_hand).code == 0
    assert (tmp_path / "other/model.safetensors").read_bytes() == weights


def test_a_dry_run_makes_nothing(run, product, tmp_path):
    out = tmp_path / "out"
    words = ("detect", "fit", product, "--out", out, "--minutes", "3", "--dry-run")
    ended = run(*words)
    assert ended.code == 0, ended
    assert " min for the diffusion model and its images" in ended.out
    titles = [line for line in ended.out.splitlines() if line.endswith(":")]
    assert titles == [
        "train a diffusion model:", "draw anomaly images:", "look at them:",
        "train the detector:", "measure it on the test images:",
    ]  # fmt: skip
    assert f"synth train --dataset folder --root {product} --preset tiny --minutes 3" in ended.out
    assert not out.exists()


def test_images_of_a_model_that_fits_are_used(commands, tmp_path):
    write_json(tmp_path / "model/check.json", {"verdict": "fit"})
    lines: list[str] = []
    run_chain(chain_in(tmp_path), lambda line: None, lines.append)
    assert [words[:2] for words in commands] == [
        ("synth", "train"), ("synth", "generate"), ("synth", "inspect"), ("detect", "train"),
        ("detect", "evaluate"),
    ]  # fmt: skip
    assert commands[3][-4:] == ("--sia", f"{tmp_path}/sia", "--out", f"{tmp_path}/detector")
    assert lines == []


def test_images_of_a_model_that_is_under_fit_are_not_used_and_that_is_said(commands, tmp_path):
    write_json(tmp_path / "model/check.json", {"verdict": "under-fit"})
    lines: list[str] = []
    run_chain(chain_in(tmp_path), lambda line: None, lines.append)
    assert [words[:2] for words in commands] == [
        ("synth", "train"), ("detect", "train"), ("detect", "evaluate"),
    ]  # fmt: skip
    assert commands[1][-4:-2] == FALLBACK
    assert "under-fit, so its images are not used" in lines[0]
    write_json(tmp_path / "model/check.json", {"verdict": "fit"})
    longer = chain_in(tmp_path, diffusion=("--preset", "tiny", "--minutes", "9"))
    run_chain(longer, lambda line: None, lines.append)
    assert [words[:2] for words in commands[3:]] == [
        ("synth", "train"), ("synth", "generate"), ("synth", "inspect"), ("detect", "train"),
        ("detect", "evaluate"),
    ]  # fmt: skip


def test_a_stage_that_is_done_again_forgets_what_came_after():
    done = ["synth train --a", "synth generate", "detect train --b"]
    assert before(done, Stage("", ("synth", "train", "--c"))) == []
    assert before(done, Stage("", ("synth", "generate", "--c"))) == ["synth train --a"]
    assert before(done, Stage("", ("detect", "evaluate"))) == done


def test_a_stage_that_fails_ends_the_chain_with_its_code(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(detect.fitting.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as ended:
        run_stage(Stage("train", ("synth", "train")), tmp_path, print)
    assert ended.value.code == 2
    assert not (tmp_path / "fit.json").exists()


def test_what_is_no_folder_of_photographs_is_refused_in_one_line(run, tmp_path):
    line = run.refused("detect", "fit", tmp_path / "none", "--out", tmp_path / "out")
    assert "no such folder" in line
    line = run.refused("detect", "fit", "--out", tmp_path / "out")
    assert line.startswith("detect: root: this layout needs a folder")


def test_ctrl_c_is_told_by_the_stage_alone(monkeypatch, tmp_path):
    def interrupted(words: list[str], check: bool) -> subprocess.CompletedProcess:
        os.kill(os.getpid(), signal.SIGINT)  # as the terminal sends it to both
        return subprocess.CompletedProcess(words, 130)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(detect.fitting.subprocess, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        run_stage(Stage("training", ("detect", "train")), tmp_path, lambda line: None)
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handler
