from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
import torch
from products import SIZE, normal_image
from scipy.ndimage import gaussian_filter
from sklearn.neighbors import NearestNeighbors

from detect.calibration import calibrate
from detect.checkpoint import load_detector, save_detector
from detect.methods import patch_nn
from detect.methods.patch_nn import (
    PatchNN,
    PatchNNConfig,
    blurred,
    build_bank,
    coreset,
    nearest_distances,
    patches,
    smallest,
)
from detect.pooling import image_scores
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.base.files import write_json

CPU = torch.device("cpu")
CONFIG = PatchNNConfig(
    image_size=SIZE,
    backbone=BackboneConfig(name="resnet10t", layers=(2, 3), weights="random"),
    bank_size=20,
)
IMAGES = np.stack([normal_image(n) for n in range(5)])


@pytest.fixture(scope="module")
def backbone():
    return build_backbone(CONFIG.backbone)


def unit(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("chunk", [1, 500, 1 << 24])
def test_distances_equal_scikit_learn(monkeypatch, chunk):
    monkeypatch.setattr(patch_nn, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    bank = rng.normal(3, 1, (57, 24)).astype(np.float32)
    queries = np.concatenate([rng.normal(3, 1.2, (101, 24)).astype(np.float32), bank[:7]])
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank.astype(np.float64))
    wanted = nearest.kneighbors(queries)[0][:, 0]
    found = nearest_distances(torch.from_numpy(queries), torch.from_numpy(bank)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert (found[-7:] == 0).all()  # no cancellation where a query is in the bank


@pytest.mark.parametrize("columns", [100, 700, 57, 701])
@pytest.mark.parametrize("levels", [3, 1000])  # few: the first of equals is taken
def test_the_smallest_of_a_row_is_argmin(columns, levels):
    rows = torch.from_numpy(np.random.default_rng(columns).integers(0, levels, (40, columns)))
    assert smallest(rows.float()).equal(rows.argmin(1))


def test_patches_are_means_over_neighbours_of_both_layers(backbone):
    with torch.no_grad():
        fine, coarse = (x.numpy() for x in backbone(unit(IMAGES[:1])))
    found = patches(backbone, unit(IMAGES[:1])).numpy()
    C, h, w = fine.shape[1:]
    assert found.shape == (1, h, w, C + coarse.shape[1])
    padded = np.pad(fine[0], ((0, 0), (1, 1), (1, 1)))
    for y, x in ((0, 0), (1, 2), (h - 1, w - 1)):
        mean = padded[:, y : y + 3, x : x + 3].sum((1, 2)) / 9
        np.testing.assert_allclose(found[0, y, x, :C], mean, rtol=1e-4, atol=1e-6)
    padded = np.pad(coarse[0], ((0, 0), (1, 1), (1, 1)))
    corner = padded[:, :3, :3].sum((1, 2)) / 9  # bilinear keeps the corner
    np.testing.assert_allclose(found[0, 0, 0, C:], corner, rtol=1e-4, atol=1e-6)


def test_map_is_the_blurred_distance_and_the_score_its_pooling(backbone):
    bank = build_bank(backbone, IMAGES[:4], CONFIG, CPU)[0]
    detector = PatchNN(CONFIG, backbone, bank)
    scores = detector.predict(unit(IMAGES[4:]))
    cells = patches(backbone, unit(IMAGES[4:]))[0].numpy()
    pairs = np.linalg.norm(cells[:, :, None] - bank.numpy(), axis=-1)
    distances = pairs.min(-1).astype(np.float32)
    wanted = gaussian_filter(
        cv2.resize(distances, SIZE, interpolation=cv2.INTER_LINEAR), 4 * 32 / 256, mode="mirror"
    )
    np.testing.assert_allclose(scores.maps[0].numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(scores.image, image_scores(scores.maps))


@pytest.mark.parametrize("sigma", [0.5, 2.0, 20.0])
def test_blur_keeps_a_constant(sigma):
    maps = torch.full((2, 1, 9, 12), 3.0)
    assert torch.allclose(blurred(maps, sigma), maps, atol=1e-5)


def test_random_bank_holds_different_patches_whatever_the_batches(backbone, monkeypatch):
    cells = patches(backbone, unit(IMAGES)).flatten(0, 2)
    bank = build_bank(backbone, IMAGES, CONFIG, CPU)[0]
    places = torch.cdist(bank, cells).argmin(1)
    assert torch.allclose(cells[places], bank, atol=1e-5)
    assert len(set(places.tolist())) == len(bank) == 20
    monkeypatch.setattr(patch_nn, "BATCH_SIZE", 2)
    assert torch.allclose(build_bank(backbone, IMAGES, CONFIG, CPU)[0], bank, atol=1e-5)
    other = build_bank(backbone, IMAGES, replace(CONFIG, seed=1), CPU)[0]
    assert not torch.allclose(other, bank)
    whole = build_bank(backbone, IMAGES, replace(CONFIG, bank_size=10**6), CPU)[0]
    assert torch.allclose(whole, cells, atol=1e-5)


def radius(points, chosen):
    return np.linalg.norm(points[:, None] - points[list(chosen)], axis=-1).min(1).max()


def test_coreset_is_within_twice_the_best_radius():
    for trial in range(5):
        points = np.random.default_rng(trial).normal(size=(14, 3)).astype(np.float32)
        chosen = coreset(torch.from_numpy(points), 4, seed=0).tolist()
        assert len(set(chosen)) == 4
        best = min(radius(points, four) for four in combinations(range(14), 4))
        assert radius(points, chosen) <= 2 * best


def test_coreset_covers_more_than_chance(backbone):
    coresets = replace(CONFIG, choice="coreset", bank_size=12)
    cells = patches(backbone, unit(IMAGES)).flatten(0, 2)
    reach = [
        nearest_distances(cells, build_bank(backbone, IMAGES, config, CPU)[0]).max()
        for config in (coresets, replace(coresets, choice="random"))
    ]
    assert reach[0] < reach[1]


def test_saved_and_loaded_it_scores_the_same(backbone, tmp_path):
    detector = PatchNN(CONFIG, backbone, build_bank(backbone, IMAGES, CONFIG, CPU)[0])
    product = {"dataset": "folder", "category": "widget"}
    about = {"method": "patch-nn", **product, "detector": CONFIG.to_json()}
    write_json(tmp_path / "config.json", about)
    save_detector(tmp_path, detector, 0, calibrate([0.1, 0.2], 0.5))
    loaded = load_detector(tmp_path, CPU)
    assert isinstance(loaded.detector, PatchNN)
    assert loaded.detector.config == CONFIG
    one, other = (d.predict(unit(IMAGES)) for d in (detector, loaded.detector))
    assert torch.equal(one.maps, other.maps)
    assert detector.stages() == []
    config = about["detector"] | {"backbone": {**about["detector"]["backbone"], "layers": [1, 2]}}
    write_json(tmp_path / "config.json", about | {"detector": config})
    with pytest.raises(UserError, match="do not fit the configuration"):
        load_detector(tmp_path, CPU)
