"""The shipped backbone: its file fits the network, its features live, its textures repeat."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from synth.base.backbones import BUNDLED, BackboneConfig, build_backbone

ROOT = Path(__file__).parent.parent
WEIGHTS = BUNDLED["resnet10t"]


@pytest.fixture
def textures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/ is no package: its modules find each other as neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import procedural_textures  # pyright: ignore[reportMissingImports]

    return procedural_textures


# The file


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


def test_every_channel_responds_to_textures(textures: ModuleType) -> None:
    images = torch.from_numpy(np.stack([draw(textures, k, k, 64) for k in range(96)]))
    backbone = build_backbone(
        BackboneConfig(name="resnet10t", layers=(1, 2, 3), weights=str(WEIGHTS))
    )
    with torch.inference_mode():
        maps = backbone(images.permute(0, 3, 1, 2) / 255)
    assert [tuple(layer.shape[1:]) for layer in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    for layer in maps:
        assert layer.dtype == torch.float32
        assert torch.isfinite(layer).all()
        assert float(layer.std((0, 2, 3)).min()) > 1e-3


# The textures it was trained on


def draw(
    textures: ModuleType, material_seed: int, sample_seed: int, size_px: int
) -> NDArray[np.uint8]:
    palettes = textures.draw_palettes(np.random.default_rng(1), 12)
    material = textures.draw_material(
        np.random.default_rng(material_seed), palettes[material_seed % 12]
    )
    textures.render(material, np.random.default_rng(99), 16)  # an earlier sample leaves no trace
    return textures.render(material, np.random.default_rng(sample_seed), size_px)


@pytest.mark.parametrize("seed", range(12))
def test_a_texture_depends_on_its_generators_alone(textures: ModuleType, seed: int) -> None:
    image = draw(textures, seed, 3, 24)
    assert image.shape == (24, 24, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, draw(textures, seed, 3, 24))
    assert (image != draw(textures, seed, 4, 24)).any()
    assert (image != draw(textures, seed + 12, 3, 24)).any()


def test_every_family_fills_its_field(textures: ModuleType) -> None:
    for family in textures.FAMILIES.values():
        field = family(np.random.default_rng(5))(np.random.default_rng(6), 32)
        assert field.shape == (32, 32)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        assert field.std() > 0
