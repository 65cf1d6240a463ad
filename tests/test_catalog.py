"""Every layout is listed as it lies on disk, and nothing is skipped in silence."""

from pathlib import Path

import pytest
from PIL import Image

from synth.base.errors import UserError
from synth.data import textures
from synth.data.archives import MTD_DEFECTS
from synth.data.catalog import (
    Category,
    categories,
    choose_categories,
    held_out,
    open_category,
)
from synth.data.layouts import READERS


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    return root


def names(category: Category, root: Path) -> list[tuple[str, str, str, str | None]]:
    return [
        (
            record.path.relative_to(root).as_posix(),
            record.split,
            record.defect,
            record.mask_path and record.mask_path.relative_to(root).as_posix(),
        )
        for record in category.records
    ]


MVTEC = (
    "bottle/train/good/000.png",
    "bottle/train/good/001.png",
    "bottle/test/good/000.png",
    "bottle/test/crack/000.png",
    "bottle/ground_truth/crack/000_mask.png",
)


# folder


@pytest.mark.parametrize(
    "files",
    [
        ("a.png", "b.jpg"),
        ("x/a.png", "y/z/b.png"),
        ("train/a.png", "train/b.png"),
        ("train/good/a.png", "train/good/b.png"),
        ("good/a.png", "good/b.png"),
    ],
)
def test_folder_in_each_of_its_shapes(tmp_path: Path, files: tuple[str, ...]) -> None:
    category = open_category("folder", tree(tmp_path / "parts", *files), None)
    assert category.name == "parts"
    assert names(category, tmp_path / "parts") == [(file, "train", "good", None) for file in files]
    assert category.test == ()


@pytest.mark.parametrize("normals", ["", "train/", "train/good/", "good/"])
@pytest.mark.parametrize("mask", ["0.png", "0_mask.png", "0.bmp"])
def test_folder_with_a_test_and_masks(tmp_path: Path, normals: str, mask: str) -> None:
    truth = f"ground_truth/dent/{mask}"
    tree(tmp_path, f"{normals}a.png", "test/good/0.png", "test/dent/0.png", truth)
    category = open_category("folder", tmp_path, "lid")
    assert category.name == "lid"
    assert categories("folder", tmp_path) == [tmp_path.name]  # test/good makes no product of it
    assert names(category, tmp_path) == [
        (f"{normals}a.png", "train", "good", None),
        ("test/dent/0.png", "test", "dent", truth),
        ("test/good/0.png", "test", "good", None),
    ]
    assert [record.is_anomalous for record in category.test] == [True, False]


def test_folder_may_have_no_masks_but_not_some(tmp_path: Path) -> None:
    tree(tmp_path, "good/a.png", "test/dent/0.png", "test/dent/1.png")
    assert [r.mask_path for r in open_category("folder", tmp_path, None).test] == [None, None]
    tree(tmp_path, "ground_truth/dent/0.png")
    with pytest.raises(UserError, match=r"dent/1\.png: its mask .*ground_truth/dent/1\.png"):
        open_category("folder", tmp_path, None)


def test_folder_of_several_products(tmp_path: Path) -> None:
    tree(tmp_path, "lid/good/a.png", "cap/train/b.png")
    assert categories("folder", tmp_path) == ["cap", "lid"]
    assert open_category("folder", tmp_path, "cap").records[0].path.name == "b.png"
    with pytest.raises(UserError, match="choose one of cap, lid"):
        open_category("folder", tmp_path, None)
    with pytest.raises(UserError, match=r"no 'can' in .*; there are: cap, lid"):
        open_category("folder", tmp_path, "can")


def test_a_name_is_free_only_where_there_are_no_products(tmp_path: Path) -> None:
    assert open_category("folder", tree(tmp_path / "lids", "a.png"), "cap").name == "cap"
    with pytest.raises(UserError, match=r"no 'cap' in .*; there are: lid"):
        open_category("folder", tree(tmp_path / "parts", "lid/good/a.png"), "cap")


def test_a_selection_is_of_what_there_is(tmp_path: Path) -> None:
    several = tree(tmp_path / "parts", "lid/good/a.png", "cap/train/b.png")
    assert choose_categories("folder", several, ()) == ["cap", "lid"]
    assert choose_categories("folder", several, ("lid", "lid")) == ["lid"]
    one = tree(tmp_path / "lids", "a.png")
    for root, there in ((several, "cap, lid"), (one, "lids")):
        with pytest.raises(
            UserError, match=f"--categories: no 'can' in {root}; there are: {there}"
        ):
            choose_categories("folder", root, ("can",))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("notes.png/a.txt",), "no images"),
        (("train/good/a.png", "train/dent/b.png"), "training images must be normal"),
        (("good/a.png", "dent/b.png"), "defects belong in .*test/<type>"),
        (("good/a.png", "b.png"), "would not be used"),
        (("good/a.png", "test/b.png"), "loose in"),
        (("x/y/good/a.png", "x/y/test/dent/b.png"), "give the folder above it"),
    ],
)
def test_folder_refuses_what_it_would_skip_or_mistake(
    tmp_path: Path, files: tuple[str, ...], words: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=words) as caught:
        open_category("folder", tmp_path, None)
    assert "\n" not in str(caught.value)


def test_folder_does_not_take_test_images_of_an_mvtec_root_for_normals(tmp_path: Path) -> None:
    category = open_category("folder", tree(tmp_path, *MVTEC), None)
    assert category.name == "bottle"
    assert len(category.train) == 2


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path / "screws", "a.png"))
    assert open_category("folder", Path(), None).name == "screws"


# mvtec


@pytest.mark.parametrize("inside", [False, True])
def test_mvtec_from_its_root_or_from_the_category(tmp_path: Path, inside: bool) -> None:
    root = tree(tmp_path, *MVTEC)
    category = open_category("mvtec", root / "bottle" if inside else root, None)
    assert category.name == "bottle"
    assert names(category, root) == [
        ("bottle/train/good/000.png", "train", "good", None),
        ("bottle/train/good/001.png", "train", "good", None),
        ("bottle/test/crack/000.png", "test", "crack", "bottle/ground_truth/crack/000_mask.png"),
        ("bottle/test/good/000.png", "test", "good", None),
    ]


def test_mvtec_names_the_mask_it_looked_for(tmp_path: Path) -> None:
    tree(tmp_path, *MVTEC, "bottle/test/crack/007.png")
    with pytest.raises(UserError, match=r"ground_truth/crack/007_mask\.png is missing"):
        open_category("mvtec", tmp_path, "bottle")


def test_a_missing_category_lists_those_there_are(tmp_path: Path) -> None:
    tree(tmp_path, *MVTEC, "cable/train/good/0.png", "licence/readme.png")
    assert categories("mvtec", tmp_path) == ["bottle", "cable"]
    with pytest.raises(UserError, match=r"no 'botle' in .*; there are: bottle, cable"):
        open_category("mvtec", tmp_path, "botle")


def test_a_test_without_anomalies_is_allowed(tmp_path: Path) -> None:
    tree(tmp_path, "nut/train/good/0.png", "nut/test/good/0.png")
    assert [record.defect for record in open_category("mvtec", tmp_path, "nut").test] == ["good"]


# mtd


@pytest.fixture
def mtd(tmp_path: Path) -> Path:
    free = [f"MT_Free/Imgs/exp_{i}" for i in range(10)]
    defects = [f"MT_{defect.capitalize()}/Imgs/exp_1" for defect in MTD_DEFECTS]
    return tree(tmp_path, *(name + end for name in free + defects for end in (".jpg", ".png")))


def test_mtd_with_its_list(mtd: Path) -> None:
    (mtd / "train_filenames.txt").write_text("exp_3.jpg\nexp_5.jpg\n")
    category = open_category("mtd", mtd, None)
    assert category.name == "magnetic_tile"
    assert [record.path.name for record in category.train] == ["exp_3.jpg", "exp_5.jpg"]
    assert [record.defect for record in category.test] == ["good"] * 8 + list(MTD_DEFECTS)
    masks = [r.mask_path.name if r.mask_path else None for r in category.test]
    assert masks == [None] * 8 + ["exp_1.png"] * 5


def test_mtd_without_its_list_trains_on_four_fifths(mtd: Path) -> None:
    category = open_category("mtd", mtd, "magnetic_tile")
    assert len(category.train) == 8
    assert category == open_category("mtd", mtd, None)
    assert len({record.path for record in category.records}) == 15


def test_mtd_list_with_unknown_names(mtd: Path) -> None:
    (mtd / "train_filenames.txt").write_text("exp_3.jpg\nexp_99.jpg\n")
    with pytest.raises(UserError, match=r"1 of its 2 names .*the first: exp_99\.jpg"):
        open_category("mtd", mtd, None)


@pytest.mark.parametrize("lost", ["MT_Crack/Imgs/exp_1.jpg", "MT_Crack/Imgs/exp_1.png"])
def test_an_incomplete_mtd_archive_is_refused(mtd: Path, lost: str) -> None:
    (mtd / lost).unlink()
    with pytest.raises(UserError, match="MT_Crack"):
        open_category("mtd", mtd, None)


# textures


def test_textures_are_written_where_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUM_TRAIN", "NUM_TEST_GOOD", "NUM_PER_DEFECT"):
        monkeypatch.setattr(textures, name, 3)
    monkeypatch.setattr(textures, "NUM_FIT", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert categories("textures", None) == ["brick", "grass", "gravel"]
    category = open_category("textures", None, "grass")
    assert category.records[0].path.is_relative_to(tmp_path / "siaforge" / "textures" / "grass")
    assert len(category.train) == 3
    assert len(category.test) == 3 + 5 * 3
    fit, held = held_out(category)
    assert [record.path.name for record in fit] == ["000.png"]
    assert [record.path.name for record in held] == ["001.png", "002.png"]


# What every layout refuses


def test_an_unknown_dataset_lists_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"allowed: {', '.join(READERS)}"):
        open_category("vista", tmp_path, None)


@pytest.mark.parametrize("dataset", [name for name in READERS if name not in ("textures", "hub")])
def test_a_root_is_needed_and_must_exist(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a folder"):
        open_category(dataset, None, None)
    with pytest.raises(UserError, match="no such folder"):
        open_category(dataset, tmp_path / "absent", None)
    with pytest.raises(UserError, match=r"no images|no category"):
        open_category(dataset, tmp_path, None)


# Held-out normals


def normals(root: Path, count: int) -> Category:
    return open_category("folder", tree(root, *(f"{i:03d}.png" for i in range(count))), None)


def file_names(records) -> list[str]:
    return [record.path.name for record in records]


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(2, 0.1, 1), (3, 0.1, 1), (4, 0.1, 2), (10, 0.1, 2), (60, 0.1, 6), (4, 0.99, 3), (2, 0.9, 1)],
)
def test_held_out_counts(tmp_path: Path, count: int, fraction: float, held: int) -> None:
    category = normals(tmp_path, count)
    fit, out = held_out(category, fraction)
    assert len(out) == held
    assert sorted(file_names(fit + out)) == file_names(category.train)


def test_held_out_is_stable_where_the_root_moves_and_differs_by_seed(tmp_path: Path) -> None:
    here, there = normals(tmp_path / "a", 50), normals(tmp_path / "b" / "c", 50)
    assert file_names(held_out(here)[1]) == file_names(held_out(there)[1])
    assert file_names(held_out(here)[1]) != file_names(held_out(here, seed=1)[1])


def test_held_out_pinned_so_that_old_thresholds_stay_valid(tmp_path: Path) -> None:
    held = file_names(held_out(normals(tmp_path, 20), 0.2)[1])
    assert held == [
        "001.png",
        "006.png",
        "008.png",
        "010.png",
    ]


def test_new_files_move_few(tmp_path: Path) -> None:
    before = set(file_names(held_out(normals(tmp_path, 100), 0.2)[1]))
    after = set(file_names(held_out(normals(tmp_path, 110), 0.2)[1]))
    assert len(before - after) <= 4


def test_held_out_with_equal_names_in_sub_folders(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{part}/{i}.png" for part in "ab" for i in range(5)))
    fit, out = held_out(open_category("folder", tmp_path, None), 0.3)
    assert (len(fit), len(out)) == (7, 3)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_held_out_refuses_impossible_fractions(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        held_out(normals(tmp_path, 5), fraction)


def test_held_out_needs_two(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 or more"):
        held_out(normals(tmp_path, 1))


@pytest.mark.parametrize("place", ["sia.json", "folder/nut/sia.json"])
def test_anomaly_images_are_not_taken_for_normal_ones(tmp_path: Path, place: str) -> None:
    tree(tmp_path, "images/000/000000.png", "images/000/000001.png")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("{}")
    with pytest.raises(UserError, match="an SIA folder, whose images show anomalies"):
        open_category("folder", tmp_path)


# Where results may go


@pytest.mark.parametrize(
    ("dataset", "files", "inside", "outside"),
    [
        ("folder", ("a.png", "b.png"), ("", "runs/model"), ("../runs",)),
        ("folder", ("x/a.png", "x/y/b.png"), ("runs",), ("../runs",)),
        ("folder", ("a.png", "test/good/b.png"), ("runs",), ("../runs",)),
        ("folder", ("train/a.png", "test/dent/b.png"), ("train/out", "test/out"), ("runs", "")),
        ("folder", ("good/a.png", "good/b.png"), ("good/out", "runs"), ("../runs",)),
        ("folder", ("lid/good/a.png", "cap/train/b.png"), ("cap/train/out",), ("runs", "lid")),
        ("mvtec", MVTEC, ("bottle/test/out",), ("runs", "")),
    ],
)
def test_results_do_not_go_where_images_are_read(
    tmp_path: Path, dataset: str, files: tuple[str, ...], inside: tuple, outside: tuple
) -> None:
    root = tree(tmp_path / "parts", *files)
    category = categories(dataset, root)[0]
    for place in inside:
        with pytest.raises(UserError, match=r"--out: .* lies in .*; give a folder outside"):
            open_category(dataset, root, category, out=root / place)
    for place in outside:
        assert open_category(dataset, root, category, out=root / place).train


def test_results_in_the_current_folder_are_not_among_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree(tmp_path / "screws", "a.png"))
    with pytest.raises(UserError, match=r"--out: runs/model lies in \., whose images are read"):
        open_category("folder", Path(), out=Path("runs/model"))
