"""The default dataset: exact masks, disjoint regions, the same bytes every time."""

import ast
import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from synth.base.errors import UserError
from synth.data import textures
from synth.data.textures import MARKER, PAINTERS, PHOTOGRAPHS, defect_crop, write_textures
from synth.images import read_image, read_mask

CASES = [(category, name) for category in PHOTOGRAPHS for name in PAINTERS]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUM_TRAIN", "NUM_TEST_GOOD", "NUM_PER_DEFECT"):
        monkeypatch.setattr(textures, name, 2)
    monkeypatch.setattr(textures, "NUM_FIT", 1)


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Defects


@pytest.mark.parametrize(("category", "name"), CASES)
def test_masks_are_exact_and_defects_visible(category: str, name: str) -> None:
    for index in range(textures.NUM_PER_DEFECT):
        clean, image, mask = defect_crop(category, name, index)
        np.testing.assert_array_equal(image[~mask], clean[~mask])
        changed = image[mask] != clean[mask]
        assert changed.mean() > 0.9
        assert 0.002 < mask.mean() < 0.15
        assert np.abs(image[mask].astype(int) - clean[mask]).mean() > 8


@pytest.mark.parametrize(("category", "name"), CASES)
def test_defects_differ_from_each_other(category: str, name: str) -> None:
    masks = [defect_crop(category, name, index).mask for index in range(20)]
    assert len({mask.tobytes() for mask in masks}) == 20


def test_the_painters_share_nothing_with_the_synthesis() -> None:
    source = ast.parse(Path(textures.__file__).read_text(encoding="utf-8"))
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(source)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {module for module in modules if module and module.startswith("synth")} == {
        "synth.base.cache",
        "synth.base.errors",
        "synth.images",
    }
    assert "noise" not in modules


# Regions


def test_held_out_and_test_crops_are_drawn_alike_apart_from_those_to_train_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = np.tile((np.arange(512) // 2).astype(np.uint8), (512, 1))  # a pixel tells its column
    monkeypatch.setitem(PHOTOGRAPHS, "brick", lambda: columns)
    monkeypatch.setattr(np.random, "default_rng", unlit_generator)
    train = np.stack([textures.train_crop("brick", i) for i in range(textures.NUM_TRAIN)])
    test = np.stack([textures.test_crop("brick", i) for i in range(textures.NUM_TEST_GOOD)])
    fit, held = train[: textures.NUM_FIT], train[textures.NUM_FIT :]
    assert fit.min() >= 64
    for others in (held, test):
        assert fit.max() < 160 <= others.min() < 165
        assert others.max() > 250
    assert (len(fit), len(held)) == (216, 24)


class Unlit:
    """A generator whose gain is 1 and offset 0: positions stay random, pixels stay exact."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.integers, self.random = rng.integers, rng.random

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


REAL_GENERATOR = np.random.default_rng


def unlit_generator(seed: list[int]) -> Unlit:
    return Unlit(REAL_GENERATOR(seed))


def test_test_crops_with_defects_come_from_the_test_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = skimage.data.brick().copy()
    half[:, textures.OTHER_COLUMNS[0] :] = 0
    monkeypatch.setitem(PHOTOGRAPHS, "brick", lambda: half)
    for name in PAINTERS:
        assert defect_crop("brick", name, 0).clean.max() <= 6  # the largest offset


# The tree


def test_full_tree_counts_and_files(tmp_path: Path) -> None:
    folder = write_textures(tmp_path, "gravel")
    counts = {
        path.relative_to(folder).as_posix(): len(list(path.glob("*.png")))
        for path in folder.glob("*/*")
    }
    expected = {"train/good": 240, "test/good": 60}
    for name in PAINTERS:
        expected |= {f"test/{name}": 20, f"ground_truth/{name}": 20}
    assert counts == expected
    image = read_image(folder / "test/hole/003.png")
    defect = defect_crop("gravel", "hole", 3)
    np.testing.assert_array_equal(image[:, :, 0], defect.image)
    mask = read_mask(folder / "ground_truth/hole/003_mask.png", (128, 128))
    np.testing.assert_array_equal(mask, defect.mask)


@pytest.mark.usefixtures("small")
def test_same_bytes_twice_and_written_once(tmp_path: Path) -> None:
    first = write_textures(tmp_path / "a", "brick")
    again = write_textures(tmp_path / "b", "brick")
    assert digest(first) == digest(again)
    extra = first / "kept.txt"
    extra.touch()
    assert write_textures(tmp_path / "a", "brick") == first
    assert extra.exists()


@pytest.mark.usefixtures("small")
def test_another_version_is_replaced_whole(tmp_path: Path) -> None:
    folder = write_textures(tmp_path, "brick")
    (folder / MARKER).write_text("siaforge textures 0\n")
    (folder / "train/good/999.png").touch()
    write_textures(tmp_path, "brick")
    assert digest(folder) == digest(write_textures(tmp_path / "new", "brick"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brick", "new"]


@pytest.mark.usefixtures("small")
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, image: object) -> None:
        raise UserError("the disk is full") from OSError(errno.ENOSPC, "full")

    path = write_textures(tmp_path / "good", "brick")
    monkeypatch.setattr(textures, "write_png", full)
    with pytest.raises(UserError, match="disk is full"):
        write_textures(tmp_path, "brick")
    assert [entry.name for entry in tmp_path.iterdir()] == ["good"]
    assert (path / MARKER).is_file()


@pytest.mark.usefixtures("small")
def test_a_faster_process_wins_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree = textures._write_tree

    def slow(folder: Path, category: str) -> None:
        write_tree(folder, category)
        write_tree(tmp_path / category, category)  # the other process finishes now

    monkeypatch.setattr(textures, "_write_tree", slow)
    folder = write_textures(tmp_path, "grass")
    assert (folder / MARKER).is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["grass"]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "brick").mkdir()
    (tmp_path / "brick" / "mine.png").touch()
    with pytest.raises(UserError, match="not a texture dataset; choose another root"):
        write_textures(tmp_path, "brick")
    assert (tmp_path / "brick" / "mine.png").exists()


def test_an_unknown_texture_lists_the_three(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed: brick, grass, gravel"):
        write_textures(tmp_path, "wood")
