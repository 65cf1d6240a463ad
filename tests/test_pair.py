import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny import UNET, write_model

from synth.catalog import Category, Record
from synth.config import SdasConfig
from synth.errors import UserError
from synth.model import DiffusionModel, load_model
from synth.normals import Normals
from synth.pair import chain_position, make_start, open_pairing, pair_images, timestep
from synth.pictures import Images
from synth.seeding import generator
from synth.sia_writer import SiaHeader, write_sia

SIZE = (16, 24)
CONFIG = SdasConfig(num_steps=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(write_model(tmp_path_factory.mktemp("model"), UNET), torch.device("cpu"))


def noise_images(num: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Images:
    rng = np.random.default_rng(seed)
    return rng.integers(60, 200, (num, *size, 3), dtype=np.uint8)


# Depth


@pytest.mark.parametrize(
    ("depth", "num_steps", "k", "t"),
    [
        (0.1, 20, 1, 50),
        (0.35, 20, 6, 300),
        (0.5, 20, 9, 450),
        (0.95, 20, 18, 900),
        (0.5, 4, 1, 250),
    ],
)
def test_depth_is_the_share_of_the_steps_that_remain(
    depth: float, num_steps: int, k: int, t: int
) -> None:
    assert chain_position(depth, num_steps) == k
    assert timestep(depth, num_steps) == t


@pytest.mark.parametrize("depth", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_depth_out_of_range_is_refused(depth: float) -> None:
    with pytest.raises(UserError, match="depth: got .* must lie between 0 .* and 1"):
        chain_position(depth, 20)


def test_a_single_step_is_refused_with_the_least_depth() -> None:
    with pytest.raises(UserError, match=r"1 of 20 steps.*give 0\.1 or more"):
        chain_position(0.05, 20)


# Images


def test_a_pair_at_strength_0_is_diffusers_noising_and_denoising(model: DiffusionModel) -> None:
    normals, depth = noise_images(1), 0.4
    ours = pair_images(model, normals, depth, [0.0], 5, [7], 20)
    reference = DDPMScheduler(
        1000, 1e-4, 0.02, variance_type="learned_range", timestep_spacing="leading"
    )
    reference.set_timesteps(20)
    g = generator(5, 7)
    x_0 = torch.from_numpy(normals).permute(0, 3, 1, 2).float() / 127.5 - 1
    timesteps = [t for t in reference.timesteps if t <= 350]  # 8 of 20 steps
    assert len(timesteps) == 8
    eps = torch.randn(x_0.shape[1:], generator=g)[None]
    x = reference.add_noise(x_0, eps, torch.tensor([350]))
    for t in timesteps:
        x = reference.step(model.unet(x, t).sample, int(t), x, generator=g, return_dict=False)[0]
    theirs = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() <= 1


def test_a_pair_depends_on_its_own_normal_image_strength_and_index(model: DiffusionModel) -> None:
    normals = noise_images(3)

    def draw(strengths: list[float], *indices: int) -> np.ndarray:
        few = normals[list(indices)]
        return pair_images(model, few, 0.5, strengths, 1, indices, 10).astype(int)

    batch = draw([0.0, 0.2, 0.5], 0, 1, 2)
    # Batched convolutions round differently, which may tip a grey level.
    assert np.abs(draw([0.5, 0.0], 2, 0) - batch[[2, 0]]).max() <= 1
    assert np.abs(draw([0.0], 2) - batch[2]).max() > 1
    others = pair_images(model, normals[[1]], 0.5, [0.0], 1, [0], 10).astype(int)
    assert np.abs(others - batch[0]).max() > 1


def test_normal_images_that_the_model_cannot_draw_are_refused(
    model: DiffusionModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="got 8x24 pixels, the model draws 16x24"):
        make_start(model, noise_images(1)[:, :8], 0.5, 20)
    grey = load_model(write_model(tmp_path, replace(UNET, num_channels=1)), torch.device("cpu"))
    with pytest.raises(UserError, match="got colours, the model draws grey"):
        make_start(grey, noise_images(1), 0.5, 20)
    one = np.repeat(noise_images(1)[..., :1], 3, axis=3)
    start = make_start(grey, one, 0.5, 20)
    assert start.images.shape == (1, 1, *SIZE)
    torch.testing.assert_close(
        (start.images[0, 0] + 1) * 127.5, torch.from_numpy(one[0, ..., 0]).float()
    )
