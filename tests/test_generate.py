from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import UNET, write_model

from synth.blend_sia import blend_sia
from synth.catalog import Category, Record
from synth.config import SdasConfig
from synth.errors import UserError
from synth.foreground import ForegroundRule
from synth.generate import draw_strength, generate_sia
from synth.images import write_png
from synth.model import DiffusionModel, load_model
from synth.normals import Normals
from synth.sampling import sample_images
from synth.sia import SiaFolder, open_sia
from synth.strength import Strength

CONFIG = SdasConfig(num_steps=2)
EVERYWHERE = ForegroundRule(method="everything")


class Killed(BaseException):
    pass


def stop_at(number: int) -> Callable[[int, int], None]:
    def on_image(done: int, total: int) -> None:
        if done == number:
            raise Killed

    return on_image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    unet = replace(UNET, image_size=(8, 8))
    return load_model(write_model(tmp_path_factory.mktemp("model"), unet), torch.device("cpu"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_strengths_are_uniform_in_their_range_and_belong_to_the_index() -> None:
    config = SdasConfig(strength=Strength((0.1, 0.3), uniform=True))
    drawn = np.array([draw_strength(config, index) for index in range(2000)])
    assert 0.1 <= drawn.min() < 0.102
    assert 0.298 < drawn.max() <= 0.3
    counts, _ = np.histogram(drawn, bins=10, range=(0.1, 0.3))
    assert np.abs(counts - 200).max() < 6 * np.sqrt(200 * 0.9)
    assert draw_strength(config, 7) == drawn[7]
    assert draw_strength(replace(config, seed=1), 7) != drawn[7]
    assert draw_strength(SdasConfig(strength=Strength((0.0,))), 3) == 0


def test_rows_say_how_their_image_was_made(model: DiffusionModel, tmp_path: Path) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 5, batch_size=2).folder
    assert path == tmp_path / "data" / "nut"
    folder = open_sia(path, kind="source")
    assert folder.config["checkpoint"] == model.digest
    for index, row in enumerate(folder.rows):
        again = sample_images(model, [row["strength"]], row["seed"], [index], row["num_steps"])
        difference = np.abs(again[0].astype(int) - folder.read_image(index))
        assert difference.max() <= 1
        assert row["strength"] == draw_strength(CONFIG, index)


def test_a_stopped_generation_goes_on_to_the_same_bytes(
    model: DiffusionModel, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    generate_sia(model, CONFIG, whole, 230, batch_size=16)
    for number in (57, 120):
        with pytest.raises(Killed):
            generate_sia(model, CONFIG, parts, 230, batch_size=16, on_image=stop_at(number))
        assert not (parts / "data" / "nut" / "metadata.jsonl").exists()
    generate_sia(model, CONFIG, parts, 230, batch_size=16)
    assert contents(parts) == contents(whole)


def test_growing_keeps_what_is_there(model: DiffusionModel, tmp_path: Path) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 3, batch_size=2).folder
    before = contents(path / "images")
    generate_sia(model, CONFIG, tmp_path, 6, batch_size=2)
    after = contents(path / "images")
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


def test_another_strength_is_refused(model: DiffusionModel, tmp_path: Path) -> None:
    generate_sia(model, CONFIG, tmp_path, 2, batch_size=2)
    with pytest.raises(UserError, match=r"config\.strength: \[0\.1, 0\.2\] there, 0\.15 here"):
        generate_sia(model, replace(CONFIG, strength=Strength((0.15,))), tmp_path, 2, batch_size=2)


def test_a_batch_of_nothing_is_refused(model: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size: got 0"):
        generate_sia(model, CONFIG, tmp_path, 2, batch_size=0)


# Blending


@pytest.fixture
def sources(model: DiffusionModel, tmp_path: Path) -> SiaFolder:
    return open_sia(generate_sia(model, CONFIG, tmp_path / "sources", 4, batch_size=4).folder)


def normals(folder: Path, num: int = 3) -> Normals:
    images = np.random.default_rng(0).integers(90, 110, (num, 32, 32, 3), dtype=np.uint8)
    paths = [folder / f"{index}.png" for index in range(num)]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    records = [Record(path, "train", "good", None) for path in paths]
    category = Category("folder", "plate", tuple(records))
    return Normals(category, records, images, [], images[:0])


def test_blended_images_differ_from_their_normal_under_the_mask_only(
    sources: SiaFolder, tmp_path: Path
) -> None:
    plates = normals(tmp_path / "normals")
    path = blend_sia(plates, EVERYWHERE, sources, tmp_path / "out", 7, seed=1).folder
    assert path == tmp_path / "out" / "folder" / "plate"
    folder = open_sia(path, kind="blended")
    for index, row in enumerate(folder.rows):
        mask, blended = folder.read_mask(index), folder.read_image(index)
        normal = plates.fit[index % 3]
        assert row["normal_file"] == f"{index % 3}.png"
        assert mask.any()
        np.testing.assert_array_equal(blended[~mask], normal[~mask])
        assert (blended[mask] != normal[mask]).any()
        assert 0.5 <= row["opacity"] <= 1
        assert row["strength"] == sources.rows[row["source_index"]]["strength"]


def test_other_normal_images_are_refused_in_the_same_folder(
    sources: SiaFolder, tmp_path: Path
) -> None:
    plates = normals(tmp_path / "normals")
    blend_sia(plates, EVERYWHERE, sources, tmp_path / "out", 2, seed=1)
    others = plates._replace(fit=plates.fit + np.uint8(1))
    with pytest.raises(UserError, match=r"config\.normals: .* there, .* here"):
        blend_sia(others, EVERYWHERE, sources, tmp_path / "out", 4, seed=1)


def test_blended_images_do_not_depend_on_a_stop(sources: SiaFolder, tmp_path: Path) -> None:
    plates = normals(tmp_path / "normals")

    def blend(name: str, on_image: Callable[[int, int], None] | None = None) -> Path:
        out = tmp_path / name
        blend_sia(plates, EVERYWHERE, sources, out, 12, seed=1, on_image=on_image)
        return out

    with pytest.raises(Killed):
        blend("parts", stop_at(5))
    assert contents(blend("parts")) == contents(blend("whole"))
