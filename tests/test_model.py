import hashlib
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from rights import ordinary_rights
from safetensors.torch import load_file, save_file
from tiny import UNET, write_model

from synth.base.errors import UserError
from synth.base.files import read_json, write_json
from synth.base.seeding import generator
from synth.diffusion.ddpm import build_scheduler
from synth.diffusion.init_from import load_source
from synth.diffusion.model import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    DiffusionModel,
    EpsilonUNet,
    load_model,
)
from synth.diffusion.sampling import sample_images
from synth.diffusion.spectrum import NUM_OF_MEAN, Spectrum, bands

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load_model(write_model(tmp_path_factory.mktemp("model")), CPU)


def test_a_model_comes_back_with_its_weights_and_digest(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path), CPU)
    saved = load_file(tmp_path / WEIGHTS_FILE)
    assert all(torch.equal(model.unet.state_dict()[name], saved[name]) for name in saved)
    assert set(model.unet.state_dict()) == set(saved)
    assert (
        hashlib.sha256((tmp_path / WEIGHTS_FILE).read_bytes()).hexdigest().startswith(model.digest)
    )
    assert (model.image_size, model.num_channels, model.precision) == ((16, 24), 3, "fp32")
    assert not model.unet.training
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_diffusers_reads_the_folder_as_a_pipeline(tmp_path: Path) -> None:
    ours = load_model(write_model(tmp_path), CPU)
    pipeline = DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert isinstance(pipeline, DDPMPipeline)
    assert pipeline.scheduler.config["variance_type"] == "learned_range"
    assert pipeline.scheduler.config["timestep_spacing"] == "leading"
    theirs = pipeline.unet.state_dict()
    assert all(torch.equal(theirs[name], t) for name, t in ours.unet.state_dict().items())
    x = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.unet(x, 500).sample
    torch.testing.assert_close(ours.unet(x, 500).sample, expected, rtol=0, atol=1e-5)


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    first = load_model(write_model(tmp_path), CPU)
    second = load_model(write_model(tmp_path, seed=1), CPU)
    assert first.digest != second.digest


def test_an_unfinished_model_names_the_way_out(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="unfinished; run its `synth train` command again"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    write_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"\.safetensors: damaged"):
        load_model(tmp_path, CPU)


def test_weights_without_rights_are_not_called_damaged(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model") / WEIGHTS_FILE
    weights.chmod(0)
    with ordinary_rights(), pytest.raises(PermissionError) as caught:  # one line of a command
        load_model(tmp_path / "model", torch.device("cpu"))
    assert caught.value.filename == str(weights)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused_whole(tmp_path: Path, fault: str) -> None:
    path = write_model(tmp_path) / WEIGHTS_FILE
    weights = load_file(path)
    if fault == "missing":
        del weights["conv_in.weight"]
    else:
        weights["conv_in.weight" if fault == "shape" else "other"] = torch.zeros(2)
    save_file(weights, path)
    with pytest.raises(UserError, match=r"\.safetensors: damaged"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"train": "fast"},
        {"train": {"unet": 3, "precision": "fp32"}, "dataset": "a", "category": "b"},
        {"train": {"unet": {"sides": 3}, "precision": "fp32"}, "dataset": "a", "category": "b"},
        {"train": {"unet": {}}, "dataset": "a", "category": "b"},
        {"train": {"unet": {}, "precision": "fp32"}, "dataset": "a"},
    ],
)
def test_another_folder_is_no_diffusion_model(tmp_path: Path, config: dict[str, Any]) -> None:
    write_model(tmp_path)
    write_json(tmp_path / CONFIG_FILE, config)
    with pytest.raises(UserError, match="not a diffusion model; give the --out of `synth train`"):
        load_model(tmp_path, CPU)


EDM = replace(UNET, prediction="edm", mu=-0.1, sigma_data=0.4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sigma_data": None}, "prediction: got edm with mu -0.1, sigma_data None"),
        ({"sigma_data": math.inf}, "sigma_data: got inf"),
        ({"mu": 7}, "mu: got 7, must lie between -1 and 1"),
        ({"mu": math.nan}, "mu: got nan"),
        ({"prediction": "epsilon"}, "prediction: got epsilon with mu -0.1"),
        ({"prediction": None}, "prediction: got None, allowed are epsilon, v, edm, wiener"),
    ],
)
def test_a_changed_network_is_refused_with_its_file(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = write_model(tmp_path, EDM) / CONFIG_FILE
    config = read_json(path)
    config["train"]["unet"] |= change
    write_json(path, config)
    line = f"{re.escape(str(path))}: damaged \\({told}.*; put the file back"
    for load in (lambda: load_model(tmp_path, CPU), lambda: load_source(str(tmp_path))):
        with pytest.raises(UserError, match=line):
            load()


@pytest.mark.parametrize("field", ["mu", "sigma_data", "attention_levels", "sides"])
def test_a_network_with_an_odd_value_is_refused(tmp_path: Path, field: str) -> None:
    path = write_model(tmp_path, EDM) / CONFIG_FILE
    config = read_json(path)
    config["train"]["unet"][field] = "odd"
    write_json(path, config)
    with pytest.raises(UserError, match="not a diffusion model"):
        load_model(tmp_path, CPU)
    with pytest.raises(UserError, match=r"config\.json: damaged .* put the file back"):
        load_source(str(tmp_path))


def test_an_empty_folder_is_no_diffusion_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_model(tmp_path, CPU)


def test_images_do_not_depend_on_their_batch(model: DiffusionModel) -> None:
    together = sample_images(model, [0.0, 0.1, 0.2, 0.2], 5, [0, 1, 2, 3], 4)
    assert together.shape == (4, 16, 24, 3)
    assert together.dtype == np.uint8
    alone = sample_images(model, [0.2], 5, [2], 4)[0]
    # Batched convolutions round differently: at most one grey level at the edge between two.
    assert np.abs(together[2].astype(int) - alone).max() <= 1
    assert (together[2] == alone).mean() > 0.99
    assert (together[2] != together[3]).mean() > 0.5
    assert (sample_images(model, [0.2], 6, [2], 4)[0] != alone).mean() > 0.5


def test_a_grey_model_draws_grey_images(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path, replace(UNET, num_channels=1)), CPU)
    images = sample_images(model, [0.1, 0.1], 0, [0, 1], 4)
    assert images.shape == (2, 16, 24, 3)
    assert (images == images[..., :1]).all()
    assert images.std() > 1


def test_the_configuration_is_plain_json(model: DiffusionModel) -> None:
    assert json.loads(json.dumps(model.config)) == model.config


@pytest.mark.parametrize("kind", ["epsilon", "v", "edm", "wiener"])
def test_a_pipeline_of_diffusers_draws_what_we_draw(tmp_path: Path, kind: str) -> None:
    """At s = 0 and with the same noise, step by step, to rounding."""
    statistics: dict[str, Any] = {"mu": -0.1, "sigma_data": 0.4} if kind == "edm" else {}
    if kind == "wiener":
        rows, columns = (1 + int(bands(side)[-1]) for side in UNET.image_size)
        std = ((tuple(np.linspace(2, 0, columns).tolist()),) * rows,) * 3
        height, width = (min(side, NUM_OF_MEAN) for side in UNET.image_size)
        statistics["spectrum"] = Spectrum((((0.1,) * width,) * height,) * 3, std)
    unet = replace(UNET, prediction=kind, **statistics)
    model = load_model(write_model(tmp_path, unet), CPU)
    if kind in ("edm", "wiener"):
        assert not (tmp_path / "model_index.json").exists()
        pipeline = DDPMPipeline(EpsilonUNet.of(model), build_scheduler())
    else:
        pipeline = DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(generator=[generator(5, 3)], num_inference_steps=20, output_type="np").images[
        0
    ]
    ours = sample_images(model, [0.0], 5, [3], 20)[0]
    np.testing.assert_allclose(drawn * 255, ours, atol=1.5)
