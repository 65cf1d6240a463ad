from dataclasses import replace

import numpy as np
import pytest

from synth.base.backbones import DEFAULT_BACKBONE
from synth.quality.check import SampleCheck, check_samples, pixel_noise
from synth.quality.reference import make_reference

SIZE = 64


@pytest.fixture(params=["random", "bundled"])
def backbone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts hold in the features of the bundled network, and even in random ones."""
    config = replace(DEFAULT_BACKBONE, weights=request.param)
    monkeypatch.setattr("synth.quality.reference.DEFAULT_BACKBONE", config)


def product(rng: np.random.Generator) -> np.ndarray:
    """A disc of a random place, radius and shade on a ground with a slope of light."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centre_y, centre_x = rng.uniform(26, 38, 2)
    disc = np.clip(rng.uniform(14, 20) - np.hypot(y - centre_y, x - centre_x), 0, 1)
    ground = 60 + rng.uniform(-20, 20) + rng.uniform(-0.3, 0.3) * x
    grey = ground + disc * rng.uniform(60, 120)
    image = grey[..., None] + rng.normal(0, 3, (SIZE, SIZE, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def products(seed: int, num: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([product(rng) for _ in range(num)])


def check(samples: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> SampleCheck:
    return check_samples(make_reference(training, held_out), samples, held_out)


@pytest.fixture(scope="module")
def training() -> np.ndarray:
    return products(0, 48)


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return products(1, 16)


@pytest.mark.usefixtures("backbone")
def test_noise_is_under_fit(training: np.ndarray, held_out: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    samples = rng.integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    found = check(samples, held_out, training)
    assert found.verdict == "under-fit"
    assert found.share_far == 1
    assert found.distance > 2
    assert found.grain > 5
    assert "noisier than the product: raise --num-steps" in found.sentence


@pytest.mark.usefixtures("backbone")
def test_smooth_images_of_something_else_are_under_fit(
    training: np.ndarray, held_out: np.ndarray
) -> None:
    stripes = np.uint8(127) * (np.arange(SIZE) // 4 % 2).astype(np.uint8) + np.uint8(64)
    samples = np.broadcast_to(stripes[None, None, :, None], (8, SIZE, SIZE, 3)).copy()
    found = check(samples, held_out, training)
    assert found.verdict == "under-fit"
    assert "their structure is off" in found.sentence


@pytest.mark.usefixtures("backbone")
def test_further_normal_images_fit(training: np.ndarray, held_out: np.ndarray) -> None:
    found = check(products(3, 16), held_out, training)
    assert found.verdict == "fit"
    assert found.share_far < 0.5
    assert found.distance == pytest.approx(1, abs=0.5)
    assert found.grain == pytest.approx(1, abs=0.1)
    assert (found.num_samples, found.num_held_out) == (16, 16)
    assert found.sentence.startswith("model fits: ")
    assert found.sentence.endswith("; next: `synth generate`")
    assert replace(found, share_far=0.4).sentence.startswith("model nearly fits: ")
    grainy = replace(found, grain=1.6).sentence
    assert grainy.startswith("model fits: ")
    assert grainy.endswith("; more steps would take off the grain")


@pytest.mark.usefixtures("backbone")
def test_training_images_are_copies(training: np.ndarray, held_out: np.ndarray) -> None:
    found = check(training[:16], held_out, training)
    assert found.verdict == "copies"
    assert found.share_copies == 1
    assert found.distance < 0.01
    assert "train fewer steps" in found.sentence


@pytest.mark.usefixtures("backbone")
def test_a_held_out_that_repeats_the_training_images_gives_finite_figures(
    training: np.ndarray,
) -> None:
    found = check(products(3, 4), training[:4], training)
    assert np.isfinite(found.distance)
    assert found.to_json()["sentence"] == found.sentence


@pytest.mark.parametrize("sigma", [8.0, 16.0])
def test_pixel_noise_is_the_deviation_of_white_noise_on_any_slope(sigma: float) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:129, :97]
    grey = 100 + 0.5 * x + 0.2 * y + rng.normal(0, sigma, (4, 129, 97))
    images = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=3)
    assert pixel_noise(images) == pytest.approx([sigma] * 4, rel=0.05)
    images[:, :, ::16] = 255  # edges are no noise
    assert pixel_noise(images) == pytest.approx([sigma] * 4, rel=0.3)


@pytest.mark.usefixtures("backbone")
def test_samples_a_little_farther_than_normal_images_that_are_all_alike_fit(
    training: np.ndarray, held_out: np.ndarray
) -> None:
    reference = make_reference(training, held_out)
    alike = reference._replace(held_distances=np.full(16, np.median(reference.held_distances)))
    near = check_samples(alike, products(3, 16), held_out)
    assert near.share_far > 0.3
    assert (near.distance <= 1.15) == (near.verdict == "fit")
    shifted = reference._replace(held_distances=alike.held_distances / 2)
    far = check_samples(shifted, products(3, 16), held_out)
    assert far.distance > 1.15
    assert far.verdict == "under-fit"
