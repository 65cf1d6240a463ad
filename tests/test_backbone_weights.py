"""The shipped backbone: its file fits the network, its features live, its textures repeat."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from synth.features import BackboneConfig, build_backbone

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "detect" / "weights" / "resnet10t_textures.safetensors"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_the_file_is_the_network_up_to_layer_3_and_nothing_else() -> None:
    net = timm.create_model(
        "resnet10t", pretrained=False, features_only=True, out_indices=(1, 2, 3)
    )
    net.load_state_dict(load_file(WEIGHTS), strict=True)
    assert WEIGHTS.stat().st_size <= 4_000_000


def test_the_file_says_how_it_was_made() -> None:
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    command, _, recipe = metadata["recipe"].partition(" ")
    assert (ROOT / command).is_file()
    assert json.loads(recipe)["name"] == "resnet10t"
    assert json.loads(recipe)["seed"] == int(metadata["seed"])
    assert "AUROC" in metadata["figures"]


def test_every_channel_responds_to_textures() -> None:
    from procedural_textures import draw_material, draw_palettes, render

    palettes = draw_palettes(np.random.default_rng(0), 12)
    images = [
        render(draw_material(np.random.default_rng(k), ramp), np.random.default_rng(k), 64)
        for k, ramp in enumerate(palettes)
    ]
    backbone = build_backbone(
        BackboneConfig(name="resnet10t", layers=(1, 2, 3), weights=str(WEIGHTS))
    )
    with torch.inference_mode():
        maps = backbone(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    for layer in maps:
        assert layer.dtype == torch.float32
        assert torch.isfinite(layer).all()
        assert (layer.std((0, 2, 3)) > 1e-3).all()


def test_a_texture_depends_on_its_generators_alone() -> None:
    from procedural_textures import draw_material, draw_palettes, render

    def draw(material_seed: int, sample_seed: int) -> np.ndarray:
        ramp = draw_palettes(np.random.default_rng(1), 2)[1]
        material = draw_material(np.random.default_rng(material_seed), ramp)
        render(material, np.random.default_rng(99), 24)  # an earlier sample leaves no trace
        return render(material, np.random.default_rng(sample_seed), 24)

    for seed in range(20):
        image = draw(seed, 3)
        assert image.shape == (24, 24, 3)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, draw(seed, 3))
        assert (image != draw(seed, 4)).any()
        assert (image != draw(seed + 100, 3)).any()


def test_every_family_fills_its_field() -> None:
    from procedural_patterns import FAMILIES

    for family in FAMILIES.values():
        field = family(np.random.default_rng(5))(np.random.default_rng(6), 32)
        assert field.shape == (32, 32)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        assert field.std() > 0
