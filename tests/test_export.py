import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from synth.base.errors import UserError
from synth.base.locks import sole_user
from synth.base.progress import no_bars
from synth.commands.export import LAYOUT_NAMES
from synth.data.catalog import open_category
from synth.data.normals import Normals, load_normals
from synth.images import read_image, read_mask
from synth.pictures import digest
from synth.publishing.export import LAYOUTS, export_sia, other_normals
from synth.sia.reader import Item, SiaHeader, open_sia, write_sia
from tests.commands import Command
from tests.products import write_product, write_sources

NUM = 7
SIZE = (24, 40)


def write_blended(folder: Path, num: int = NUM, size: tuple[int, int] = SIZE, **about: Any) -> Path:
    """Noise images, each with a mask of its own."""

    def items(indices: Iterator[int]) -> Iterator[Item]:
        for index in indices:
            rng = np.random.default_rng(index)
            mask = np.zeros(size, np.bool_)
            mask[index % 8 : index % 8 + 5, 3:9] = True
            row = {"seed": 0, "opacity": 0.5, "normal_file": "a.png", "source_index": 0}
            yield Item(index, rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask, row)

    config = {"method": "blend", "image_size": list(size)} | about
    write_sia(folder, SiaHeader("blended", "folder", "widget", config), num, items)
    return folder


@pytest.fixture
def normals(tmp_path: Path) -> Normals:
    return load_normals(
        open_category("folder", write_product(tmp_path / "widget"), None), SIZE, no_bars
    )


@pytest.fixture
def blended(tmp_path: Path) -> Path:
    return write_blended(tmp_path / "sia")


def names(folder: Path) -> dict[str, list[str]]:
    """Folder, relative: its files, by name."""
    return {
        str(Path(parent).relative_to(folder)): sorted(files)
        for parent, _, files in os.walk(folder)
        if files
    }


def numbered(count: int, ending: str = ".png") -> list[str]:
    return [f"{n:06d}{ending}" for n in range(count)]


def test_every_layout_is_on_offer() -> None:
    assert get_args(LAYOUT_NAMES) == tuple(LAYOUTS)


def test_mvtec_layout(blended: Path, normals: Normals, tmp_path: Path) -> None:
    done = export_sia(blended, "mvtec", tmp_path / "out", normals)
    assert done.folder == tmp_path / "out/widget"
    assert names(done.folder) == {
        ".": ["export.json"],
        "train/good": numbered(len(normals.fit)),
        "test/good": numbered(len(normals.held)),
        "test/synthetic": numbered(NUM),
        "ground_truth/synthetic": numbered(NUM, "_mask.png"),
    }
    assert (done.num_files, done.num_linked) == (10 + 2 * NUM, 2 * NUM)
    sia = open_sia(blended)
    category = open_category("mvtec", tmp_path / "out", "widget")  # our own reader of the layout
    assert [record.defect for record in category.test] == ["good"] * 2 + ["synthetic"] * NUM
    for record, image in zip(category.train, normals.fit, strict=True):
        np.testing.assert_array_equal(read_image(record.path), image)
    for n, record in enumerate(r for r in category.test if r.is_anomalous):
        np.testing.assert_array_equal(read_image(record.path), sia.read_image(n))
        assert record.mask_path is not None
        np.testing.assert_array_equal(read_mask(record.mask_path, SIZE), sia.read_mask(n))


def test_folder_layout(blended: Path, normals: Normals, tmp_path: Path) -> None:
    done = export_sia(blended, "folder", tmp_path / "out", normals)
    assert names(done.folder) == {
        ".": ["export.json"],
        "normal": numbered(8),
        "normal_test": numbered(2),
        "abnormal": numbered(NUM),
        "mask": numbered(NUM),
    }
    assert 'mask_dir="mask"' in done.usage
    np.testing.assert_array_equal(read_image(done.folder / "normal/000003.png"), normals.fit[3])


def test_tabular_layout_has_absolute_paths(
    blended: Path, normals: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export_sia(Path("sia"), "tabular", Path("out"), normals)
    rows = list(csv.DictReader((done.folder / "samples.csv").read_text().splitlines()))
    assert [(row["label_index"], row["split"]) for row in rows] == [("0", "train")] * 8 + [
        ("0", "test")
    ] * 2 + [("1", "test")] * NUM
    assert rows[0]["image_path"] == str(tmp_path / "out/widget/normal/000000.png")
    assert rows[10]["image_path"] == str(blended / "images/000/000000.png")
    assert rows[10]["mask_path"] == str(blended / "masks/000/000000.png")
    assert all(Path(row["image_path"]).is_file() for row in rows)
    assert done.num_linked == 0


def test_dtd_layout_is_the_images_alone(tmp_path: Path) -> None:
    write_sources(tmp_path / "sia", num=5)
    done = export_sia(tmp_path / "sia", "dtd", tmp_path / "out")
    assert names(done.folder) == {".": ["export.json"], "000": numbered(5)}
    assert (done.folder / "000/000004.png").samefile(tmp_path / "sia/images/000/000004.png")


def test_a_folder_without_masks_has_no_mask_folder(tmp_path: Path, normals: Normals) -> None:
    write_sources(tmp_path / "sia", num=5)
    done = export_sia(tmp_path / "sia", "folder", tmp_path / "out", normals)
    assert set(names(done.folder)) == {".", "normal", "normal_test", "abnormal"}
    assert "mask_dir" not in done.usage
    table = export_sia(tmp_path / "sia", "tabular", tmp_path / "table", normals).folder
    assert (table / "samples.csv").read_text().startswith("image_path,label_index,split\n")


def test_where_links_cannot_be_made_files_are_copied(
    blended: Path, normals: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, path: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("synth.publishing.export.os.link", refuse)
    done = export_sia(blended, "folder", tmp_path / "out", normals)
    assert done.num_linked == 0
    copy, source = done.folder / "mask/000002.png", blended / "masks/000/000002.png"
    assert copy.read_bytes() == source.read_bytes()
    assert not copy.samefile(source)


def test_an_interrupted_export_is_not_there_and_goes_on(
    blended: Path, normals: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, count = os.link, 0

    def interrupted(source: Path, path: Path) -> None:
        nonlocal count
        count += "sia" in str(source)
        if count > 5:
            raise KeyboardInterrupt
        link(source, path)

    monkeypatch.setattr("synth.publishing.export.os.link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_sia(blended, "mvtec", tmp_path / "out", normals)
    assert not (tmp_path / "out/widget").exists()
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("train/good/*.png")}
    monkeypatch.undo()
    done = export_sia(blended, "mvtec", tmp_path / "out", normals)
    whole = export_sia(blended, "mvtec", tmp_path / "whole", normals)
    assert names(done.folder) == names(whole.folder)
    assert len(begun) == 8
    for path, time in begun.items():  # not made again
        assert (done.folder / "train/good" / path.name).stat().st_mtime_ns == time


def test_an_export_that_another_command_makes_is_refused(
    blended: Path, normals: Normals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with (
        sole_user(out / "widget", out / ".widget.lock"),
        pytest.raises(UserError, match="another command is at work"),
    ):
        export_sia(blended, "mvtec", out, normals)
    assert not any(out.iterdir())
    export_sia(blended, "mvtec", out, normals)
    assert [path.name for path in out.iterdir()] == ["widget"]


def test_a_rerun_restores_what_is_missing_and_changes_nothing_else(
    blended: Path, normals: Normals, tmp_path: Path
) -> None:
    done = export_sia(blended, "tabular", tmp_path / "out", normals)
    before = names(done.folder)
    (done.folder / "normal/000001.png").unlink()
    assert export_sia(blended, "tabular", tmp_path / "out", normals) == done
    assert names(done.folder) == before
    np.testing.assert_array_equal(read_image(done.folder / "normal/000001.png"), normals.fit[1])


def test_another_export_and_foreign_folders_are_refused(
    blended: Path, normals: Normals, tmp_path: Path
) -> None:
    export_sia(blended, "mvtec", tmp_path / "out", normals)
    with pytest.raises(UserError, match=r'layout: "mvtec" there, "folder" here'):
        export_sia(blended, "folder", tmp_path / "out", normals)
    (tmp_path / "photos/widget").mkdir(parents=True)
    (tmp_path / "photos/widget/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"widget: not empty, and no export of ours; give another"):
        export_sia(blended, "mvtec", tmp_path / "photos", normals)
    assert [path.name for path in (tmp_path / "photos").rglob("*")] == ["widget", "mine.txt"]
    (tmp_path / "photos/widget/mine.txt").unlink()
    export_sia(blended, "mvtec", tmp_path / "photos", normals)  # empty: ours to fill


def test_a_grown_folder_is_another_export(blended: Path, normals: Normals, tmp_path: Path) -> None:
    export_sia(blended, "mvtec", tmp_path / "out", normals)
    write_blended(blended, NUM + 1)
    with pytest.raises(UserError, match="num_images: 7 there, 8 here"):
        export_sia(blended, "mvtec", tmp_path / "out", normals)


def test_what_a_layout_cannot_show_is_refused(
    blended: Path, normals: Normals, tmp_path: Path
) -> None:
    write_sources(tmp_path / "whole", num=2)
    with pytest.raises(UserError, match="'mvtec' needs masks, and this folder has none"):
        export_sia(tmp_path / "whole", "mvtec", tmp_path / "out", normals)
    with pytest.raises(UserError, match="'dtd' takes whole anomaly images, and these are blended"):
        export_sia(blended, "dtd", tmp_path / "out")
    (blended / "masks/000/000003.png").unlink()
    with pytest.raises(UserError, match=r"1 faults, the first: .*000003\.png: missing; `synth val"):
        export_sia(blended, "mvtec", tmp_path / "out", normals)
    assert not (tmp_path / "out").exists()


def test_normals_of_another_product_are_noticed(blended: Path, normals: Normals) -> None:
    sia = open_sia(blended)
    assert other_normals(sia, normals) is None
    assert other_normals(sia._replace(config={"normals": digest(normals.fit)}), normals) is None
    remark = other_normals(sia._replace(config={"normals": "0123"}), normals)
    assert remark == "the normal images are not those that the folder was made from"
    remark = other_normals(sia._replace(category="bolt"), normals)
    assert remark == "the normal images are of category widget, not bolt"


# The command


def test_the_command_says_where_and_how_to_read_it(
    blended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = Command(monkeypatch, capsys)
    root, out = write_product(tmp_path / "widget"), tmp_path / "out"
    words = ("synth", "export", blended, "--layout", "mvtec", "--out", out)
    ended = run(*words, "--root", root)
    assert (ended.code, ended.err.count("warning")) == (0, 0)
    assert ended.out.splitlines() == [
        f'anomalib: MVTecAD(root="{out}", category="widget")',
        f"24 files, 14 of them hard links: {out / 'widget'}",
    ]
    assert read_image(out / "widget/train/good/000000.png").shape == (*SIZE, 3)
    assert "give --root" in run.refused(*words)
    shutil.copytree(root, tmp_path / "bolt")
    ended = run(*words[:-1], tmp_path / "other", "--root", tmp_path / "bolt")
    assert "are of category bolt, not widget" in ended.err
    write_sources(tmp_path / "source")
    words = ("synth", "export", tmp_path / "source", "--layout", "dtd", "--out", tmp_path / "dtd")
    assert "the layout dtd has no normal images" in run.refused(*words, "--root", root)
    assert run(*words).out.startswith('anomalib: Draem(dtd_dir="')
