import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import UNET, write_model

from synth.base.device import fitting_batch_size
from synth.base.errors import UserError
from synth.base.files import file_digest
from synth.data.catalog import Category, Record
from synth.data.foreground import ForegroundRule
from synth.data.normals import Normals
from synth.diffusion.config import SdasConfig
from synth.diffusion.model import DiffusionModel, load_model
from synth.diffusion.sampling import sample_images
from synth.diffusion.speed import CPU_BATCH_SIZE, auto_batch_size, choose_precision
from synth.images import write_png
from synth.making.blend import blend_sia
from synth.making.candidates import MAX_ATTEMPTS, QualityRange
from synth.making.generate import draw_strength, generate_sia, remake_image
from synth.pictures import Images
from synth.sia.reader import SiaFolder, open_sia
from synth.sia.strength import Strength

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


def test_a_list_of_strengths_is_taken_in_turn(model: DiffusionModel, tmp_path: Path) -> None:
    config = replace(CONFIG, strength=Strength((0.0, 0.5)))
    path = generate_sia(model, config, tmp_path, 4, batch_size=3).folder
    folder = open_sia(path)
    assert [row["strength"] for row in folder.rows] == [0.0, 0.5, 0.0, 0.5]
    assert folder.config["strength"] == {"in_turn": [0.0, 0.5]}


# Quality


def brightness(images: Images) -> NDArray[np.float32]:
    return (images.mean(axis=(1, 2, 3)) / 127.5).astype(np.float32)


MIDDLE = QualityRange(0.95, 1.05, brightness, "brightness")


def first_accepted(model: DiffusionModel, index: int) -> tuple[int, NDArray[np.uint8]]:
    for attempt in range(MAX_ATTEMPTS):
        strength = draw_strength(CONFIG, index)
        image = sample_images(model, [strength], 0, [index], 2, attempts=[attempt])
        if MIDDLE.low <= brightness(image)[0] <= MIDDLE.high:
            return attempt, image[0]
    raise AssertionError("none accepted")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_first_accepted_candidate_of_each_image_is_kept(
    model: DiffusionModel, tmp_path: Path, batch_size: int
) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 8, batch_size=batch_size, quality=MIDDLE).folder
    folder = open_sia(path)
    for index, row in enumerate(folder.rows):
        attempt, image = first_accepted(model, index)
        assert row["attempt"] == attempt
        assert row["quality"] == pytest.approx(brightness(image[None])[0], abs=0.01)
        assert np.abs(folder.read_image(index).astype(int) - image).max() <= 1
    assert 0 < sum(row["attempt"] > 0 for row in folder.rows) < 8
    assert folder.config["quality"] == {"low": 0.95, "high": 1.05, "reference": "brightness"}


def test_images_without_a_filter_are_first_candidates(
    model: DiffusionModel, tmp_path: Path
) -> None:
    plain = open_sia(generate_sia(model, CONFIG, tmp_path / "a", 4, batch_size=4).folder)
    everything = QualityRange(0, math.inf, brightness, "brightness")
    path = generate_sia(model, CONFIG, tmp_path / "b", 4, batch_size=4, quality=everything).folder
    scored = open_sia(path)
    assert contents(scored.path / "images") == contents(plain.path / "images")
    assert all(row["attempt"] == 0 and row["quality"] > 0 for row in scored.rows)
    assert not any("quality" in row or "attempt" in row for row in plain.rows)
    assert "quality" not in plain.config


def test_a_range_that_nothing_reaches_ends_with_the_share_and_keeps_what_there_is(
    model: DiffusionModel, tmp_path: Path
) -> None:
    def odd_ones(images: Images) -> NDArray[np.float32]:
        return np.where(images[:, 0, 0, 0] == first[0, 0, 0, 0], 1.0, 9.0).astype(np.float32)

    first = sample_images(model, [draw_strength(CONFIG, 0)], 0, [0], 2)
    quality = QualityRange(0, 2, odd_ones, "odd")
    with pytest.raises(UserError, match=r"refused 50 times; of \d+ candidates .*% lay within"):
        generate_sia(model, CONFIG, tmp_path, 30, batch_size=4, quality=quality)
    record = json.loads((tmp_path / "data/nut/shards/000.json").read_text())
    assert record["status"] == "open"
    assert 0 in [row["index"] for row in record["rows"]]


# Memory


class SmallMemory(torch.nn.Module):
    """A network whose device holds few images."""

    def __init__(self, unet: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.unet, self.most, self.device, self.batches = unet, most, torch.device("cpu"), []

    def forward(self, x: torch.Tensor, *others: torch.Tensor, **named: torch.Tensor) -> Any:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.batches.append(len(x))
        return self.unet(x, *others, **named)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    model: DiffusionModel, tmp_path: Path
) -> None:
    small = SmallMemory(model.unet, 3)
    generate_sia(model._replace(unet=small), CONFIG, tmp_path / "small", 10, batch_size=8)
    generate_sia(model, CONFIG, tmp_path / "large", 10, batch_size=2)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")
    assert set(small.batches) == {2}


def test_memory_for_not_even_one_image_is_told(model: DiffusionModel, tmp_path: Path) -> None:
    small = model._replace(unet=SmallMemory(model.unet, 0))
    with pytest.raises(UserError, match="out of memory: not even one image fits"):
        generate_sia(small, CONFIG, tmp_path, 10, batch_size=8)


def test_other_errors_pass(model: DiffusionModel, tmp_path: Path) -> None:
    broken = model._replace(unet=SmallMemory(torch.nn.Identity(), 8))
    with pytest.raises(TypeError):
        generate_sia(broken, CONFIG, tmp_path, 10, batch_size=8)


@pytest.mark.parametrize(
    ("free_gib", "image_gib", "expected"),
    [(80, 1.5, 32), (80, 0.01, 256), (1, 1, 1), (0.1, 5, 1), (24, 0.7, 16)],
)
def test_the_batch_is_the_largest_power_of_two_that_fits(
    free_gib: float, image_gib: float, expected: int
) -> None:
    assert fitting_batch_size(free_gib * 2**30, image_gib * 2**30) == expected


def test_the_batch_of_a_processor_is_the_measured_one(model: DiffusionModel) -> None:
    assert auto_batch_size(model) == CPU_BATCH_SIZE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_batch_of_a_gpu_fits_its_memory(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path), torch.device("cuda"))
    size = auto_batch_size(model)
    assert 1 <= size <= 256
    assert len(sample_images(model, [0.1] * size, 0, range(size), 2)) == size


# Arithmetic


def test_a_begun_folder_keeps_its_arithmetic(model: DiffusionModel, tmp_path: Path) -> None:
    folder = generate_sia(model, CONFIG, tmp_path, 2, batch_size=2, precision="bf16").folder
    assert open_sia(folder).config["precision"] == "bf16"
    assert choose_precision(None, model, folder) == "bf16"
    assert choose_precision("auto", model, folder) == "bf16"
    assert choose_precision("fp32", model, folder) == "fp32"
    assert choose_precision(None, model, tmp_path / "new") == "fp32"
    with pytest.raises(UserError, match=r'config\.precision: "bf16" there, "fp32" here'):
        generate_sia(model, CONFIG, tmp_path, 2, batch_size=2)


# One image again


def test_any_image_can_be_made_again_from_its_row(model: DiffusionModel, tmp_path: Path) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 6, batch_size=1, quality=MIDDLE).folder
    folder = open_sia(path)
    tried_again = next(row["index"] for row in folder.rows if row["attempt"] > 0)
    remade = remake_image(model, folder, tried_again, tmp_path / "again")
    assert remade.sentence == f"image {tried_again}: identical to the one of its row, byte for byte"
    there = path / folder.rows[tried_again]["file_name"]
    assert remade.path.read_bytes() == there.read_bytes()


def test_how_far_an_image_is_from_its_folders_is_told(
    model: DiffusionModel, tmp_path: Path
) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 2, batch_size=1).folder
    other = open_sia(path).read_image(1)
    other[2, 3] += np.where(other[2, 3] < 128, 1, -1).astype(np.uint8)
    write_png(path / "images/000/000001.png", other)
    assert remake_image(model, open_sia(path), 1, tmp_path / "again").identical  # to the row
    rows = (path / "metadata.jsonl").read_text().splitlines()
    row = json.loads(rows[1]) | {"sha256": file_digest(path / "images/000/000001.png")}
    (path / "metadata.jsonl").write_text(f"{rows[0]}\n{json.dumps(row)}\n")
    rounded = remake_image(model, open_sia(path), 1, tmp_path / "again")
    assert (
        "3 of 192 values differ from the folder's, by 1 of 255 levels at most" in rounded.sentence
    )


def test_other_models_and_images_that_are_not_there_are_refused(
    model: DiffusionModel, tmp_path: Path
) -> None:
    folder = open_sia(generate_sia(model, CONFIG, tmp_path, 2, batch_size=1).folder)
    with pytest.raises(UserError, match=r"no image 2; it has 0 to 1"):
        remake_image(model, folder, 2, tmp_path / "again")
    with pytest.raises(UserError, match=r"with digest .*, this one's is 0000; give the model"):
        remake_image(model._replace(digest="0000"), folder, 1, tmp_path / "again")
    other = folder._replace(config={**folder.config, "method": "hand"})
    with pytest.raises(UserError, match="method 'hand'; only"):
        remake_image(model, other, 1, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    for out in (folder.path, folder.path / "images/000"):
        with pytest.raises(UserError, match="whose images stay; give another folder"):
            remake_image(model, folder, 1, out)


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
