"""Real defects as an anomaly source: cut out, varied, pasted; never such that are tested."""

import itertools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import Command
from products import SIZE, load_source, normal_image, write_product, write_sources

from detect.data import defects
from detect.data.defects import (
    Cutout,
    Photograph,
    find_photographs,
    read_cutout,
    require_unseen,
    varied,
)
from detect.data.samples import BlendedDataset, batches
from detect.data.sources import Part, open_source, open_sources
from synth.base.errors import UserError
from synth.data.catalog import open_category
from synth.data.foreground import EVERYTHING
from synth.images import read_image, read_mask, write_png

NORMALS = np.stack([normal_image(n) for n in range(5)])
CPU = torch.device("cpu")


def write_defects(folder: Path, count: int = 3) -> Path:
    """images/n.png with masks/n.png: an L of its own colour on a normal image."""
    for n in range(count):
        image, mask = normal_image(3000 + n), np.zeros(SIZE, np.bool_)
        mask[4 : 10 + n, 6:9] = mask[9 + n, 6:14] = True
        image[mask] = (40 * n, 200, 90)
        write_png(folder / f"images/{n}.png", image)
        write_png(folder / f"masks/{n}.png", mask)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_defects(tmp_path / "defects")


def refused(folder: Path | None, message: str, size: tuple[int, int] = SIZE) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_source(Part("defects", folder), size=size)
    assert "\n" not in str(caught.value)


# Files


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.png", "masks/a.png"),
        ("images/cell/a.bmp", "masks/cell/a_mask.png"),
        ("dent/a.png", "ground_truth/dent/a_mask.png"),
        ("dent/a.png", "ground_truth/dent/a.bmp"),
        ("a.png", "ground_truth/a.png"),
    ],
)
def test_an_image_has_a_mask_of_its_stem(tmp_path: Path, image: str, mask: str) -> None:
    write_png(tmp_path / image, normal_image(0))
    write_png(tmp_path / mask, np.ones(SIZE, np.bool_))
    assert find_photographs(tmp_path) == [Photograph(tmp_path / image, tmp_path / mask)]


def test_folders_and_masks_that_do_not_serve(tmp_path: Path, folder: Path) -> None:
    refused(None, "--defects: missing")
    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "--defects: no images in")
    write_png(folder / "masks/1.png", np.ones((16, 16), np.bool_))
    refused(folder, r"masks/1\.png: the mask is 16x16 px, its image is 32x32 px")
    write_png(folder / "masks/1.png", np.zeros(SIZE, np.bool_))
    refused(folder, r"masks/1\.png: no defect is left of it at 32 x 32 px")
    (folder / "masks/1.png").unlink()
    refused(folder, r"images/1\.png: its mask .*masks/1\.png is missing")


# Cutting out


def test_a_cut_out_is_the_bounding_box_at_the_size_of_the_normal_images(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    mask = np.zeros((40, 48), np.bool_)
    mask[9:16, 21] = mask[30, 20:25] = True
    write_png(tmp_path / "a.png", image)
    write_png(tmp_path / "m.png", mask)
    cutout = read_cutout(Photograph(tmp_path / "a.png", tmp_path / "m.png"), (20, 24))
    touched = np.zeros((20, 24), np.bool_)
    for y, x in np.argwhere(mask):
        touched[y // 2, x // 2] = True
    box = np.s_[4:16, 10:13]  # rows 9 // 2 to 30 // 2, columns 20 // 2 to 24 // 2
    np.testing.assert_array_equal(cutout.mask, touched[box])
    means = image.reshape(20, 2, 24, 2, 3).mean((1, 3))[box]
    assert np.abs(cutout.image - means).max() <= 0.5


def test_a_defect_too_small_for_the_size_is_named(tmp_path: Path) -> None:
    mask = np.zeros((600, 600), np.bool_)
    mask[7, 7] = True
    write_png(tmp_path / "images/a.png", np.zeros((600, 600, 3), np.uint8))
    write_png(tmp_path / "masks/a.png", mask)
    refused(tmp_path, r"masks/a\.png: no defect is left of it at 8 x 8 px.*larger --size", (8, 8))


def test_a_cut_out_is_flipped_each_way_and_brightened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "SCALE", (1, 1))
    rng = np.random.default_rng(0)
    image = rng.integers(20, 200, (6, 9, 3), dtype=np.uint8)
    cutout = Cutout(image, rng.random((6, 9)) < 0.5)
    seen = set()
    for seed in range(40):
        got = varied(cutout, np.random.default_rng(seed))
        (flip,) = (
            (v, h)
            for v, h in itertools.product((1, -1), repeat=2)
            if (cutout.mask[::v, ::h] == got.mask).all()
        )
        ratio = got.image / image[:: flip[0], :: flip[1]]
        factor = float(np.median(ratio))
        assert 0.89 < factor < 1.11
        assert np.abs(got.image - factor * image[:: flip[0], :: flip[1]]).max() < 2
        seen.add(flip)
    assert len(seen) == 4


def test_a_cut_out_is_scaled_with_its_mask() -> None:
    disc = (np.indices((61, 61)) - 30).__pow__(2).sum(0) <= 30**2
    cutout = Cutout(np.full((61, 61, 3), 100, np.uint8), disc)
    scales = []
    for seed in range(100):
        got = varied(cutout, np.random.default_rng(seed))
        side = got.mask.shape[0]
        assert got.image.shape == (side, side, 3)
        scales.append(side / 61)
        radius = (got.mask.sum() / np.pi) ** 0.5
        assert radius == pytest.approx(30.5 * scales[-1], abs=1)
    assert min(scales) == pytest.approx(0.8, abs=0.03)
    assert max(scales) == pytest.approx(1.25, abs=0.03)


def test_the_thinnest_defect_survives_every_scale() -> None:
    speck = Cutout(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.bool_))
    assert all(varied(speck, np.random.default_rng(seed)).mask.any() for seed in range(50))
    line = Cutout(np.zeros((20, 20, 3), np.uint8), np.eye(20, dtype=np.bool_))
    for seed in range(50):
        mask = varied(line, np.random.default_rng(seed)).mask
        pieces, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        assert pieces == 2  # the background and one line


@pytest.mark.parametrize("grey", [True, False])
def test_cut_outs_are_as_grey_as_the_product(folder: Path, grey: bool) -> None:
    source = load_source(Part("defects", folder), grey=grey)
    drawn = [source(np.random.default_rng(n), NORMALS[0]) for n in range(20)]
    assert all((each.image[..., :1] == each.image).all() for each in drawn) == grey
    assert {each.opacity for each in drawn} == {(1.0, 1.0)}


# Samples


def dataset(folder: Path, *others: Part, seed: int = 0) -> BlendedDataset:
    source = load_source(Part("defects", folder), *others)
    return BlendedDataset(NORMALS, EVERYTHING, source, seed=seed, anomalous_share=1.0)


def test_outside_its_mask_a_sample_is_the_normal_image(folder: Path) -> None:
    """And inside it has the colour of one defect, made brighter or darker."""
    colours = np.array([(40 * n, 200, 90) for n in range(3)])
    data = dataset(folder)
    used = set()
    for number in range(60):
        image, normal, mask, n = data[number]
        assert torch.equal(normal, torch.from_numpy(NORMALS[n].transpose(2, 0, 1).copy()))
        assert torch.equal(image[:, ~mask], normal[:, ~mask])
        inner = np.median(image[:, mask].numpy(), axis=1)
        ratios = inner / inner[1] * 200  # green of all is 200
        nearest = np.abs(colours - ratios).sum(1)
        used.add(int(nearest.argmin()))
    assert used == {0, 1, 2}


def test_the_area_is_that_of_the_varied_defect(folder: Path) -> None:
    source = load_source(Part("defects", folder))
    data = BlendedDataset(NORMALS, EVERYTHING, source, seed=0, anomalous_share=1.0)
    areas = {}

    def spied(rng, normal):
        anomaly = source(rng, normal)
        areas["last"] = int(anomaly.mask.sum())
        return anomaly

    data.source = spied
    for number in range(40):
        assert int(data[number].mask.sum()) == areas["last"]


def test_samples_depend_on_seed_and_number_alone(folder: Path, tmp_path: Path) -> None:
    others = (Part("noise"), Part("sia", write_sources(tmp_path / "sia")))

    def as_bytes(batch) -> bytes:
        return b"".join(np.ascontiguousarray(part).tobytes() for part in batch)

    one, other = dataset(folder, *others), dataset(folder, *others)
    ones = [as_bytes(one[n]) for n in range(30)]
    assert ones == [as_bytes(other[n]) for n in reversed(range(30))][::-1]
    assert ones != [as_bytes(dataset(folder, *others, seed=1)[n]) for n in range(30)]
    whole = [as_bytes(b) for b in batches(one, 6, 0, 4, CPU)]
    assert whole == [as_bytes(b) for b in batches(one, 6, 0, 4, CPU, num_workers=1)]
    assert whole != [as_bytes(b) for b in batches(dataset(folder), 6, 0, 4, CPU)]
    (batch,) = batches(one, 6, 1, 2, CPU)
    for r in (0, 1):
        part = next(batches(one, 6, 1, 2, CPU, process=r, num_processes=2))
        assert as_bytes(part) == as_bytes([field[r::2] for field in batch])


def test_each_category_may_have_defects_of_its_own(tmp_path: Path) -> None:
    root, shared = tmp_path / "products", write_defects(tmp_path / "defects", 1)
    for name in ("lid", "cap"):
        write_product(root / name, 3, 2)
    own = write_defects(shared / "mvtec/lid", 2)
    both = [open_category("mvtec", root, name) for name in ("lid", "cap")]
    opened = open_sources([Part("defects", shared)], both)
    assert [len(source.photographs) for source in opened] == [2, 1]
    assert opened[0].photographs[0].image.is_relative_to(own)


# What is tested is not trained on


@pytest.mark.parametrize("name", ["same.png", "again.bmp"])
def test_a_test_image_is_refused_however_it_is_stored(tmp_path: Path, name: str) -> None:
    root = write_product(tmp_path / "widget")
    tested = root / "test/spot/002.png"
    image = tmp_path / "defects/images" / name
    image.parent.mkdir(parents=True)
    if image.suffix == ".png":
        shutil.copy(tested, image)
    else:
        cv2.imwrite(str(image), read_image(tested)[..., ::-1])
    mask = read_mask(root / "ground_truth/spot/002_mask.png", SIZE)
    write_png(tmp_path / "defects/masks" / f"{image.stem}.png", mask)
    opened = open_source([Part("defects", tmp_path / "defects")])
    with pytest.raises(UserError, match=f"{image} shows the same as the test image {tested}"):
        require_unseen(opened.photographs, open_category("mvtec", root))
    tested.unlink()
    require_unseen(opened.photographs, open_category("mvtec", root))


def test_defects_from_the_shell(tmp_path: Path, folder: Path, monkeypatch, capsys) -> None:
    run = Command(monkeypatch, capsys)
    product, out = write_product(tmp_path / "widget"), tmp_path / "out"
    words = ("detect", "train", "--root", product, "--backbone", "resnet10t", "--backbone-weights")
    words += ("random", "--size", 32, 32, "--batch-size", 4, "--num-steps", 1, "--precision")
    words += ("fp32", "--out", out, "--defects", folder, "--method", "realnet")
    assert "--defects: not used with --source noise" in run.refused(*words, "--source", "noise")
    words += ("--source", "noise=0.7", "defects=0.3")
    ended = run(*words)
    assert ended.code == 0, ended
    parts = json.loads((out / "config.json").read_text())["source"]["parts"]
    assert [(part["kind"], part["share"]) for part in parts] == [("noise", 0.7), ("defects", 0.3)]
    ended = run("detect", "evaluate", "--root", product, "--model", out, "--out", tmp_path)
    assert ended.code == 0, ended
    results = json.loads((tmp_path / "results.json").read_text())
    assert "30 % 3 photographs of real defects" in results["protocol"]["Anomaly source"]

    shutil.copy(product / "test/spot/001.png", folder / "images/1.png")
    told = f"{folder}/images/1.png shows the same as the test image {product}/test/spot/001.png"
    assert told in run.refused(*words)
    grid = ("detect", "benchmark", "--root", product, "--out", tmp_path / "grid", "--dry-run")
    assert told in run.refused(*grid, "--methods", "realnet", "--sources", f"defects:{folder}")
