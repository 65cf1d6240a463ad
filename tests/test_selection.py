"""AFS in a training: scores are taken only for what they were computed from; `detect select`."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from commands import Command
from products import normal_image, write_product, write_sources

from detect.data.material import Material, Product, prepare_material
from detect.data.samples import BlendedDataset, batches
from detect.data.sources import Part, open_source
from detect.methods.realnet import TINY, afs, afs_files, select_channels
from detect.methods.realnet.afs import AFSResult
from detect.methods.realnet.recipe import Shares, chosen_channels, whole_layers
from detect.options import TrainOptions
from detect.report.channels import LayerScores, by_layer, empty_score
from synth.base import cache
from synth.base.device import make_accelerator
from synth.base.errors import DataWarning, UserError
from synth.base.progress import no_bars
from synth.base.run_folder import agreed
from synth.data.catalog import open_category
from synth.data.foreground import EVERYTHING
from synth.data.normals import load_normals
from synth.images import write_png


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture
def product(tmp_path) -> Path:
    return write_product(tmp_path / "widget", num_train=6)


@pytest.fixture
def kept(monkeypatch, tmp_path) -> Path:
    """A cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "cache_folder", lambda: folder)
    return folder / "afs"


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """The sizes of the batches that were scored."""
    seen = list[int]()
    compute = afs.batch_losses

    def counted(features, batch):
        seen.append(len(batch.image))
        return compute(features, batch)

    monkeypatch.setattr(afs, "batch_losses", counted)
    return seen


FP32 = ("--precision", "fp32")


def words(command, product, out, *more):
    return (
        *("detect", command, "--root", product, "--out", out, "--size", 32, 32, "--batch-size", 2),
        *("--backbone-weights", "bundled", "--method", "realnet"),
        *(more or ("--source", "noise")),
    )


def material_of(normals, source, options) -> Material:
    products = [Product(normals, source)]
    prepared = prepare_material(products, options)
    accelerator = make_accelerator("fp32")
    return Material(accelerator=accelerator, products=products, prepared=prepared, bars=no_bars)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "channels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_takes_the_scores_that_were_computed_before(
    run, product, kept, scored, tmp_path
):
    select = run(*words("select", product, tmp_path / "select"))
    assert select.code == 0, select
    assert scored == [2] * 8
    other = ("--num-steps", 1, "--learning-rate", 0.1, "--seed", 3, "--precision", "fp32")
    trained = run(*words("train", product, tmp_path / "out", "--source", "noise", *other))
    assert trained.code == 0, trained
    assert scored == [2] * 8
    assert "selecting channels" not in trained.err
    afs = json.loads((tmp_path / "out/afs.json").read_text())
    table = [row for row in rows(tmp_path / "select") if row["layer"] == "2"]
    assert [float(row["score"]) for row in table] == afs["scores"][1]
    assert [int(row["channel"]) for row in table if row["kept"] == "True"] == afs["indices"][1]


def change_image(product: Path, sia: Path) -> None:
    write_png(product / "train/good/001.png", normal_image(77))


def change_anomaly(product: Path, sia: Path) -> None:
    write_png(sorted((sia / "images").rglob("*.png"))[0], normal_image(5))


OPTIONS = {
    "method": "realnet",
    "size": (32, 32),
    "batch_size": 2,
    "backbone": "tf_efficientnet_lite0",
    "backbone_weights": "bundled",
}
RANDOM = {"backbone": "resnet10t", "backbone_weights": "random"}
CHANGES = {
    "other weights": {"backbone_weights": "random"},
    "another normalisation": {"backbone_mean": (0.4, 0.5, 0.5)},
    "other layers": {"backbone_layers": (1, 2)},
    "another size": {"size": (32, 40)},
    "other batches": {"batch_size": 3},
    "the authors' way": {"official": True},
    "another normal image": change_image,
    "another anomaly image": change_anomaly,
}


def test_scores_of_anything_else_are_not_taken(product, kept, scored, tmp_path):
    sia = write_sources(tmp_path / "sia")

    def choose(**more):
        options = TrainOptions(**{**OPTIONS, **more})
        normals = load_normals(open_category("folder", product), options.size, no_bars)
        material = material_of(normals, open_source([Part("sia", sia)]), options)
        chosen_channels(material.prepared.config, material)

    choose()
    for number, (name, change) in enumerate(CHANGES.items(), start=2):
        more = change if isinstance(change, dict) else {}
        if callable(change):
            change(product, sia)
        for again in range(2):
            before = len(scored)
            choose(**more)
            assert (len(scored) == before) == bool(again), name
        assert len(list(kept.iterdir())) == number, name


@pytest.mark.parametrize(
    "content", ["{", '{"scores": [[1.0]]}', '{"scores": "x"}', '{"a": 1}', '{"scores": [[NaN, 1]]}']
)
def test_a_damaged_entry_is_told_of(tmp_path, content):
    path = tmp_path / "entry.json"
    assert afs_files.read_scores(path, (2,)) is None
    afs_files.keep_scores(path, (torch.tensor([0.1, torch.inf]),))
    (scores,) = afs_files.read_scores(path, (2,)) or ()
    assert torch.equal(scores, torch.tensor([0.1, torch.inf]))
    path.write_text(content)
    with pytest.warns(DataWarning, match=r"entry\.json: damaged; the channels are scored again"):
        assert afs_files.read_scores(path, (2,)) is None


def test_damaged_scores_are_computed_again(run, product, kept, scored, tmp_path):
    run(*words("select", product, tmp_path / "out"))
    (entry,) = kept.iterdir()
    whole = entry.read_text()
    entry.write_text(whole[:100])
    ended = run(*words("select", product, tmp_path / "out"))
    assert ended.code == 0
    assert f"warning: {entry}: damaged; the channels are scored again" in ended.err
    assert scored == [2] * 16
    assert entry.read_text() == whole


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(DataWarning, match="AFS's scores are not kept: .*file"):
        afs_files.keep_scores(tmp_path / "file/afs/entry.json", (torch.zeros(2),))


def test_shares_make_up_the_scores_of_one_process(product, monkeypatch):
    """Two processes in turn, the second adding what the first has: as their all-reduce does."""
    normals = load_normals(open_category("folder", product), (32, 32), no_bars)
    options = TrainOptions(**{**OPTIONS, "batch_size": 3})
    material = material_of(normals, open_source([Part("noise")]), options)
    config = replace(material.prepared.config, num_afs_batches=5)

    def scores():
        shares = Shares(config, material)
        numbers = config.num_selected
        return select_channels(material.backbone, shares.batches(), numbers, shares.joined).scores

    one = scores()

    parts = []
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    for process in (0, 1):
        monkeypatch.setattr(Accelerator, "process_index", process)

        def reduce(self, tensor, reduction):
            parts.append(tensor)
            return sum(parts[1:], parts[0])

        monkeypatch.setattr(Accelerator, "reduce", reduce)
        both = scores()
    assert [int((part != 0).any(1).sum()) for part in parts] == [3, 2]
    assert all(torch.equal(a, b) for a, b in zip(one, both, strict=True))


def test_what_the_first_process_refuses_all_refuse(monkeypatch):
    def refuse():
        raise UserError("no")

    sent = []
    monkeypatch.setattr("synth.base.run_folder.broadcast_object_list", sent.append)
    with pytest.raises(UserError, match="no"):
        agreed(Accelerator(cpu=True), refuse)
    assert sent == [[None, "no"]]

    def receive(outcome):
        outcome[:] = sent[0]

    monkeypatch.setattr("synth.base.run_folder.broadcast_object_list", receive)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    with pytest.raises(UserError, match="no"):
        agreed(Accelerator(cpu=True), lambda: pytest.fail("only the first process decides"))


# The table and the picture


def test_every_channel_is_in_the_table_with_its_rank(run, product, kept, tmp_path):
    out = tmp_path / "out"
    ended = run(*words("select", product, out))
    table = rows(out)
    assert [row["layer"] for row in table] == ["1"] * 24 + ["2"] * 40 + ["3"] * 112
    for layer, m in (("1", 24), ("2", 40), ("3", 64)):
        mine = [row for row in table if row["layer"] == layer]
        order = sorted(mine, key=lambda row: (float(row["score"]), int(row["channel"])))
        assert [int(row["rank"]) for row in order] == list(range(1, len(mine) + 1))
        assert [row["kept"] for row in order] == ["True"] * m + ["False"] * (len(mine) - m)
        best, cut, worst = (float(order[n]["score"]) for n in (0, m - 1, -1))
        line = f"layer {layer}: {m} of {len(mine)} channels kept; scores: best {best:.4f}, "
        assert line + f"at the cut {cut:.4f}, worst {worst:.4f}" in ended.out
    picture = cv2.imread(str(out / "channels.png"))
    assert picture is not None
    assert picture.shape[1] > 1000
    assert picture.std() > 20
    assert ended.out.endswith(f"table: {out / 'channels.csv'}\npicture: {out / 'channels.png'}\n")


def test_layers_in_which_nothing_is_chosen_are_told_of(run, product, kept, tmp_path):
    small = ("--backbone", "mobilenetv2_050", "--backbone-weights", "random", "--source", "noise")
    ended = run(*words("select", product, tmp_path / "out", *small))
    assert "layer 1: 16 of 16 channels kept" in ended.out
    assert ended.out.count("; AFS has nothing to choose\n") == 3
    assert whole_layers(TINY.fitted((16, 16, 48)), (16, 16, 48)) == (
        "AFS has nothing to choose in any layer: all channels are kept"
    )
    assert whole_layers(TINY, (64, 128, 256)) == ""
    some = ("--backbone", "mobilenetv2_100", "--backbone-weights", "random", "--source", "noise")
    trained = run(*words("train", product, tmp_path / "u", *some, "--num-steps", 1, *FP32))
    assert "AFS has nothing to choose in layer 1 (24), layer 2 (32): all" in trained.out


def test_a_channel_that_shows_nothing_scores_what_is_said(product):
    images = np.stack([normal_image(n) for n in range(4)])
    source = open_source([Part("noise")]).load((32, 32), True, no_bars)
    blended = BlendedDataset(images, EVERYTHING, source, seed=0, anomalous_share=1.0)
    data = batches(blended, 4, 0, 2, torch.device("cpu"))
    dead = select_channels(lambda x: [torch.zeros(len(x), 1, 32, 32)], data, (1,))
    assert empty_score(blended, 8) == pytest.approx(float(dead.scores[0]))


def test_equal_scores_rank_by_channel_and_missing_ones_come_last():
    scores = torch.tensor([0.2, torch.inf, 0.1, 0.2])
    (layer,) = by_layer((7,), AFSResult((torch.tensor([0, 2]),), (scores,)))
    assert isinstance(layer, LayerScores)
    assert layer.order == [2, 0, 3, 1]
    assert layer.shown == {"best": 2, "at the cut": 0, "worst": 1}
    assert layer.sentence.startswith("layer 7: 2 of 4 channels kept; scores: best 0.1000")


def test_options_that_choose_nothing_are_not_offered(run, product, tmp_path):
    ended = run(*words("select", product, tmp_path / "out"), "--num-steps", 3)
    assert ended.code == 2
    line = run.refused(*words("select", product, tmp_path / "out"), "--batch-size", 0)
    assert line.startswith("detect: --batch-size: got 0")


def test_the_size_of_features_is_measured_on_the_normal_images(product, kept, tmp_path):
    """A network without biases is homogeneous: inputs 64 times as large make features so."""
    source = open_source([Part("sia", write_sources(tmp_path / "sia"))])
    normals = load_normals(open_category("folder", product), (32, 32), no_bars)

    def exponents(std: float, **more) -> tuple[int, ...]:
        options = {**OPTIONS, **RANDOM, "backbone_mean": (0, 0, 0), **more}
        chosen = TrainOptions(**options, backbone_std=(std, std, std))
        return material_of(normals, source, chosen).prepared.config.feature_exponents

    near, far = exponents(1 / 64), exponents(1 / 1024)
    assert [b - a for a, b in zip(near, far, strict=True)] == [4, 4, 4]
    assert exponents(1.0, official=True) == ()


def test_methods_without_channels_to_choose_are_refused(run, product, tmp_path):
    line = run.refused(
        "detect", "select", "--root", product, "--out", tmp_path, "--method", "csflow"
    )
    assert line == "detect: --method: got csflow; realnet and realnet-nn choose channels"
