from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from products import normal_image
from safetensors.numpy import load_file, save_file
from torch import nn

from synth.base.backbones import DEFAULT_BACKBONE
from synth.base.errors import UserError
from synth.images import resize
from synth.quality.reference import (
    Reference,
    embed,
    load_reference,
    make_reference,
    nearest_distance,
    quality_scores,
    reference_path,
    save_reference,
)

SIZE = (32, 40)


def normals(first: int, num: int) -> np.ndarray:
    return np.stack([normal_image(first + n, SIZE) for n in range(num)])


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(normals(0, 12), normals(100, 5))


def test_an_embedding_is_the_moments_of_the_maps() -> None:
    class Halves(nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [images, images[:, :1, ::2]]

    images = normals(0, 5)
    rows = embed(Halves(), images)  # pyright: ignore[reportArgumentType]
    scaled = images / 255
    first = [*scaled.mean(axis=(1, 2)).T, *scaled.std(axis=(1, 2)).T]
    red = scaled[:, ::2, :, 0].reshape(5, -1)
    expected = np.stack([*first, red.mean(axis=1), red.std(axis=1)], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-4)


def test_the_nearest_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(5, 7)), rng.normal(size=(30, 7))
    all_pairs = np.linalg.norm(queries[:, None] - references[None], axis=2)
    distances, indices = nearest_distance(queries.astype(np.float32), references.astype(np.float32))
    np.testing.assert_allclose(distances, all_pairs.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(indices, all_pairs.argmin(axis=1))


def test_a_score_is_the_nearest_distance_over_the_held_out_normals_median(
    reference: Reference,
) -> None:
    fit, held, new = normals(0, 12), normals(100, 5), normals(200, 4)
    f_fit, f_held, f_new = (embed(reference.backbone, images) for images in (fit, held, new))
    std = f_fit.std(axis=0)
    std = np.maximum(std, np.median(std)) + 1e-6

    def nearest(features: np.ndarray) -> np.ndarray:
        return np.linalg.norm((features[:, None] - f_fit[None]) / std, axis=2).min(axis=1)

    scores = quality_scores(reference, new)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, nearest(f_new) / np.median(nearest(f_held)), rtol=1e-3)
    assert np.median(quality_scores(reference, held)) == pytest.approx(1, abs=1e-4)


def test_training_images_score_0_normal_ones_about_1_and_others_more(reference: Reference) -> None:
    stripes = np.tile(np.uint8(255) * (np.arange(40, dtype=np.uint8) // 4 % 2), (32, 1))
    other = np.repeat(stripes[..., None], 3, axis=2)
    assert quality_scores(reference, normals(0, 12)).max() < 0.01
    assert quality_scores(reference, normals(300, 8)) == pytest.approx(1, abs=0.5)
    assert quality_scores(reference, [other])[0] > 2


def test_a_score_does_not_depend_on_the_images_beside_it(reference: Reference) -> None:
    images = normals(400, 7)
    together = quality_scores(reference, images)
    alone = [quality_scores(reference, images[n : n + 1])[0] for n in (6, 0, 3)]
    np.testing.assert_array_equal(together[[6, 0, 3]], alone)


def test_images_of_another_size_are_scaled_first(reference: Reference) -> None:
    large = normal_image(7, (64, 96))
    scores = quality_scores(reference, [large, resize(large, SIZE)])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("category", [None, "nut"])
def test_a_saved_reference_gives_the_same_scores(
    tmp_path: Path, reference: Reference, category: str | None
) -> None:
    save_reference(tmp_path, reference, category)
    loaded = load_reference(tmp_path, category)
    images = normals(500, 3)
    np.testing.assert_array_equal(quality_scores(loaded, images), quality_scores(reference, images))
    assert (loaded.image_size, loaded.unit) == (reference.image_size, reference.unit)
    size = reference_path(tmp_path, category).stat().st_size
    assert size < 2 * reference.features.size + 10_000


def test_a_missing_reference_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reference\.safetensors: .*`synth inspect --model"):
        load_reference(tmp_path)


def test_a_reference_of_one_category_is_none_of_another(
    tmp_path: Path, reference: Reference
) -> None:
    save_reference(tmp_path, reference, "nut")
    for category in (None, "bolt"):
        with pytest.raises(UserError, match="no such file"):
            load_reference(tmp_path, category)


def test_a_reference_of_another_backbone_is_refused(tmp_path: Path) -> None:
    config = replace(DEFAULT_BACKBONE, weights="random")
    save_reference(tmp_path, make_reference(normals(0, 3), normals(9, 2), config))
    with pytest.raises(UserError, match=r"another backbone .*`synth inspect --model"):
        load_reference(tmp_path)


def test_a_damaged_reference_is_named(tmp_path: Path, reference: Reference) -> None:
    save_reference(tmp_path, reference)
    path = reference_path(tmp_path)
    whole = load_file(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"reference\.safetensors: damaged .*synth inspect"):
        load_reference(tmp_path)
    del whole["std"]
    save_file(whole, path, metadata={"image_size": "32 40"})
    with pytest.raises(UserError, match=r"damaged .*std"):
        load_reference(tmp_path)
