import json
import shutil
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import MAINS, Command
from products import normal_image, write_product
from tiny import UNET, write_model

import synth.making.train
import synth.quality.reference
from synth.images import MAX_PIXELS, read_image, read_mask, write_png

TINY = ("--size", 32, 32, "--batch-size", 4, "--precision", "fp32")


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module", autouse=True)
def quick_check():
    """The check's verdict does not matter here: few samples, and no trained weights."""
    untrained = replace(synth.quality.reference.DEFAULT_BACKBONE, weights="random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth.quality.reference, "DEFAULT_BACKBONE", untrained)
        patch.setattr(synth.making.train, "NUM_CHECK_SAMPLES", 2)
        patch.setattr(synth.making.train, "NUM_SHEET_IMAGES", 1)
        yield


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    return write_product(tmp_path_factory.mktemp("data") / "widget")


@pytest.fixture(scope="module")
def model(tmp_path_factory, product) -> Path:
    """A model trained for two steps; do not write to it."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in train_words(product, folder)])
        with pytest.raises(SystemExit) as ended:
            MAINS["synth"]()
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def sia(tmp_path_factory, model) -> Path:
    """Three anomaly images; do not write to it."""
    folder = tmp_path_factory.mktemp("sia")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in generate_words(model, folder, 3)])
        with pytest.raises(SystemExit) as ended:
            MAINS["synth"]()
    assert ended.value.code == 0
    return folder


def train_words(product, out, steps=2):
    return ("synth", "train", "--root", product, *TINY, "--num-steps", steps, "--out", out)


def generate_words(model, out, num):
    return ("synth", "generate", "--model", model, "--out", out, "--num", num, "--num-steps", 20)


def bomb(width: int, height: int) -> bytes:
    """The start of a PNG that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100)))):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        chunks += struct.pack(">I", len(data)) + kind + data + checksum
    return b"\x89PNG\r\n\x1a\n" + chunks


# The way through


def test_training_leaves_a_model_its_trace_and_its_check(model):
    config = json.loads((model / "config.json").read_text())
    assert config["category"] == "widget"
    assert config["train"]["unet"]["num_channels"] == 1  # the product is grey
    assert len((model / "trace.jsonl").read_text().splitlines()) == 2
    assert json.loads((model / "check.json").read_text())["num_held_out"] == 2
    assert read_image(model / "samples.png").shape[2] == 3


def test_training_opens_no_test_image_and_goes_on(run, tmp_path):
    root = write_product(tmp_path / "widget")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"not for training")
    out = tmp_path / "out"
    ended = run(*train_words(root, out, steps=1))
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1] == f"model: {out}"
    assert run(*train_words(root, out, steps=2)).code == 0
    assert len((out / "trace.jsonl").read_text().splitlines()) == 2
    assert "--num-steps: got 1, but" in run.refused(*train_words(root, out, steps=1))


def test_images_do_not_depend_on_batches_or_on_how_often_it_ran(run, model, sia, tmp_path):
    assert run(*generate_words(model, tmp_path, 2), "--batch-size", 1).code == 0
    ended = run(*generate_words(model, tmp_path, 3), "--batch-size", 2)
    assert ended.code == 0
    assert ended.out == f"SIA folder: {tmp_path / 'folder' / 'widget'}\n"
    for n in range(3):
        name = f"folder/widget/images/000/{n:06d}.png"
        difference = read_image(tmp_path / name).astype(int) - read_image(sia / name)
        assert np.abs(difference).max() <= 1


def test_blended_images_have_masks(run, product, sia, tmp_path):
    words = ("--root", product, "--sia", sia, "--size", 24, 32, "--num", 5, "--out", tmp_path)
    ended = run("synth", "blend", *words)
    assert ended.code == 0, ended
    folder = tmp_path / "folder/widget"
    for n in range(5):
        assert read_image(folder / f"images/000/{n:06d}.png").shape == (24, 32, 3)
        assert read_mask(folder / f"masks/000/{n:06d}.png", (24, 32)).any()


def test_shares_make_one_folder_and_say_when_it_is_whole(run, tmp_path):
    model = write_model(tmp_path / "model", replace(UNET, image_size=(8, 8)))
    words = (*generate_words(model, tmp_path, 101), "--strength", "0,0.5", "--num-steps", 2)
    folder = tmp_path / "data/nut"
    first = run(*words, "--shard", "2/2")
    assert (
        first.out == f"SIA folder: {folder} (unfinished: other shares of it are still to be made)\n"
    )
    assert run(*words, "--shard", "1/2").out == f"SIA folder: {folder}\n"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["strength"] for row in rows] == [0, 0.5] * 50 + [0]


def test_a_model_of_several_categories_fills_a_folder_for_each(run, tmp_path):
    unet = replace(UNET, image_size=(8, 8), num_categories=2)
    about = {"category": None, "categories": ["nut", "bolt"]}
    model = write_model(tmp_path / "model", unet, **about)
    out = tmp_path / "out"
    ended = run(*generate_words(model, out, 2), "--batch-size", 2)
    assert ended.code == 0, ended
    folders = [out / "data/nut", out / "data/bolt"]
    assert ended.out == "".join(f"SIA folder: {folder}\n" for folder in folders)
    nut, bolt = (read_image(folder / "images/000/000001.png") for folder in folders)
    assert (nut != bolt).any()
    assert "it knows nut, bolt" in run.refused(*generate_words(model, out, 2), "--category", "cog")
    one = tmp_path / "one"
    assert run(*generate_words(model, one, 2), "--category", "bolt", "--batch-size", 1).code == 0
    assert [path.name for path in (one / "data").iterdir()] == ["bolt"]
    alone = read_image(one / "data/bolt/images/000/000001.png").astype(int)
    assert np.abs(alone - bolt).max() <= 1


def test_an_image_is_made_again_from_its_row(run, model, sia, tmp_path):
    ended = run("synth", "generate", "--model", model, "--row", sia, 2, "--out", tmp_path)
    assert ended.code == 0, ended
    said, where = ended.out.splitlines()
    assert said.startswith("image 2: ")
    assert where == f"image: {tmp_path / '000002.png'}"
    again = read_image(tmp_path / "000002.png").astype(int)
    assert np.abs(again - read_image(sia / "folder/widget/images/000/000002.png")).max() <= 1


def test_quality_is_recorded_and_a_range_that_is_out_of_reach_is_told(
    run, model, tmp_path, monkeypatch
):
    monkeypatch.setattr("synth.making.candidates.MAX_ATTEMPTS", 3)
    words = ("--num", 2, "--num-steps", 2, "--min-quality", 0, "--out", tmp_path / "all")
    ended = run("synth", "generate", "--model", model, *words)
    assert ended.code == 0, ended
    text = (tmp_path / "all/folder/widget/metadata.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["attempt"] for row in rows] == [0, 0]
    assert min(row["quality"] for row in rows) > 0
    words = ("--num", 1, "--num-steps", 2, "--min-quality", 1e6, "--out", tmp_path / "none")
    line = run.refused("synth", "generate", "--model", model, *words, "--batch-size", 1)
    assert "of 3 candidates 0.0% lay within 1e+06 to inf" in line


# Mistakes


def test_options_out_of_range(run, product, model, sia, tmp_path):
    out = ("--out", tmp_path / "out")
    generate = ("synth", "generate", "--model", model, *out)
    assert "strength: got -0.1" in run.refused(*generate, "--strength", "-0.1")
    line = run.refused(*generate, "--strength", "uniform:0.3,0.2")
    assert "strength: got uniform:0.3,0.2, must be LOW,HIGH" in line
    for shard in ("0/4", "5/4", "1/0", "2", "a/b"):
        assert f"--shard: got {shard}" in run.refused(*generate, "--shard", shard).replace("'", "")
    assert "--min-quality, --max-quality: got 2.0 and 1.0" in run.refused(
        *generate, "--min-quality", 2, "--max-quality", 1
    )
    assert "--num: got 0" in run.refused(*generate, "--num", 0)
    assert "--batch-size: got 0" in run.refused(*generate, "--batch-size", 0)
    assert "num_steps: got 1001" in run.refused(*generate, "--num-steps", 1001)
    assert "seed: got -1" in run.refused(*generate, "--seed", -1)
    blend = ("synth", "blend", "--root", product, "--sia", sia, *out)
    assert "--num: got -5" in run.refused(*blend, "--num", -5)
    assert "--seed: got -1" in run.refused(*blend, "--seed", -1)
    assert "--size: got 0 0" in run.refused(*blend, "--size", 0, 0)
    train = train_words(product, tmp_path / "out")
    assert "--batch-size: got 0" in run.refused(*train, "--batch-size", 0)
    assert "--learning-rate: got 0.0" in run.refused(*train, "--learning-rate", 0)
    line = run.refused(*train, "--size", 65, 64)
    assert "image size: got 65x64" in line
    assert "try 64 for 65" in line
    assert not (tmp_path / "out").exists()


def test_model_that_is_none(run, product, model, tmp_path):
    def refused(folder):
        return run.refused(*generate_words(folder, tmp_path / "out", 1))

    assert "no such file" in refused(tmp_path / "nowhere")
    own = Path(shutil.copytree(model, tmp_path / "model"))
    weights = own / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{weights}: damaged" in refused(own)
    weights.unlink()
    assert f"{own}: training is unfinished" in refused(own)
    assert not (tmp_path / "out").exists()
    (own / "config.json").write_text('{"method": "realnet"}')
    assert f"{own}: not a diffusion model; give the --out of `synth train`" in refused(own)
    (own / "config.json").write_text("[]")
    assert "config.json: damaged (expected a JSON object" in refused(own)


def test_folder_of_another_configuration_shows_the_difference(run, product, model, sia, tmp_path):
    own = Path(shutil.copytree(sia, tmp_path / "sia"))
    image = own / "folder/widget/images/000/000000.png"
    before = image.read_bytes()
    line = run.refused(*generate_words(model, own, 3), "--seed", 7)
    assert "config.seed: 0 there, 7 here" in line
    assert "give --num 3" in run.refused(*generate_words(model, own, 2))
    assert image.read_bytes() == before
    again = Path(shutil.copytree(model, tmp_path / "model"))
    line = run.refused(*train_words(product, again), "--flip-horizontal")
    assert "train.flip_horizontal: false there, true here" in line


def test_sia_folder_that_cannot_be_blended(run, product, sia, tmp_path):
    own = Path(shutil.copytree(sia, tmp_path / "sia")) / "folder/widget"
    words = ("synth", "blend", "--root", product, "--out", tmp_path / "out", "--num", 1, "--sia")
    (own / "metadata.jsonl").unlink()
    assert f"{own}: unfinished" in run.refused(*words, own)
    assert "found none" in run.refused(*words, product)
    header = json.loads((own / "sia.json").read_text())
    (own / "sia.json").write_text(json.dumps({**header, "kind": "blended"}))
    assert "kind is 'blended', expected 'source'" in run.refused(*words, own)


def test_broken_images_are_counted(run, tmp_path):
    root = write_product(tmp_path / "widget")
    train = root / "train/good"
    (train / "002.png").write_bytes(b"")
    words = train_words(root, tmp_path / "out")
    line = run.refused(*words)
    assert "1 of 10 images cannot be read, the first: " in line
    assert "002.png: the file is empty" in line
    write_png(train / "002.png", normal_image(0, (1, 1)))
    assert "002.png: 1x1 px" in run.refused(*words)
    (train / "002.png").write_bytes(bomb(20_000, MAX_PIXELS // 10_000))
    assert "002.png: the image is over 100,000,000 pixels" in run.refused(*words)
    for path in train.iterdir():
        path.write_bytes(b"odd")
    assert "10 of 10 images cannot be read" in run.refused(*words)
    assert not (tmp_path / "out/config.json").exists()


def test_data_that_is_not_there(run, tmp_path):
    out = tmp_path / "out"
    assert "no such folder" in run.refused(*train_words(tmp_path / "none", out))
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no images" in run.refused(*train_words(tmp_path / "empty", out))
    words = ("synth", "train", "--dataset", "textures", "--category", "wool", "--out", out)
    line = run.refused(*words)
    assert "no 'wool'" in line
    assert "brick" in line
    assert "--root" in run.refused("synth", "train", "--out", out)


def test_results_among_the_images_that_are_read(run, product, model, sia, tmp_path, monkeypatch):
    photos = Path(shutil.copytree(product / "train/good", tmp_path / "photos"))
    monkeypatch.chdir(photos)
    data = ("--root", ".", "--out", "runs/x")
    for words in (
        ("train", *TINY, *data),
        ("blend", "--sia", sia, *data),
        ("baseline", "--method", "noise", *data),
        ("inspect", "--foreground", *data),
        ("export", sia, "--layout", "folder", *data),
        ("generate", "--model", model, "--pair", 0.5, *data),
    ):
        assert "--out: runs/x lies in ., whose images are read" in run.refused("synth", *words)
    assert len(list(photos.rglob("*.png"))) == 10


def test_out_that_is_a_file(run, product, model, tmp_path):
    (tmp_path / "file").write_text("kept")
    for words in (
        train_words(product, tmp_path / "file"),
        generate_words(model, tmp_path / "file/below", 1),
        ("synth", "inspect", "--root", product, "--foreground", "--out", tmp_path / "file"),
    ):
        assert "no folder that can be written to" in run.refused(*words)
    assert (tmp_path / "file").read_text() == "kept"
