import hashlib
import json
import time
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synth.base.errors import UserError
from synth.images import read_image, read_mask, write_png
from synth.sia.reader import Item, Kind, SiaHeader, open_sia, write_sia


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 10, 3), dtype=np.uint8)


def header(kind: Kind = "source", **config: Any) -> SiaHeader:
    return SiaHeader(kind, "data", "nut", {"method": "test", "size": (8, 10)} | config)


def make_items(indices: Iterable[int]) -> Iterator[Item]:
    for index in indices:
        yield Item(index, picture(index), None, {"seed": 0, "strength": index / 1000})


def make_blended(indices: Iterable[int]) -> Iterator[Item]:
    for item in make_items(indices):
        yield item._replace(mask=item.image[..., 0] > 128)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def indices_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("images/*/*.png"))


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert write_sia(tmp_path, header(), 120, make_items).num_images == 120
    folder = open_sia(tmp_path, kind="source")
    assert (folder.kind, folder.dataset, folder.category) == ("source", "data", "nut")
    assert folder.config == {"method": "test", "size": [8, 10]}
    assert [row["index"] for row in folder.rows] == list(range(120))
    for index in (0, 99, 100, 119):
        np.testing.assert_array_equal(folder.read_image(index), picture(index))
        row = folder.rows[index]
        written = (tmp_path / row["file_name"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(written).hexdigest()
        assert row["strength"] == index / 1000
    with pytest.raises(UserError, match="kind is 'source', which has no masks"):
        folder.read_mask(0)


@pytest.mark.filterwarnings("ignore")  # of datasets, which is not ours
@pytest.mark.parametrize("kind", ["source", "blended"])
def test_datasets_reads_the_folder_as_an_imagefolder(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "train" / "nut"
    write_sia(folder, header(kind), 12, make_items if kind == "source" else make_blended)
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train"
    )
    fields = {"image", "dataset", "category", "index", "seed", "strength", "sha256"}
    assert set(data.column_names) == fields | (
        {"mask", "mask_sha256"} if kind == "blended" else set()
    )
    assert data["index"][:] == list(range(12))
    for index in (0, 11):
        np.testing.assert_array_equal(np.asarray(data[index]["image"]), picture(index))
        if kind == "blended":
            expected = (picture(index)[..., 0] > 128) * np.uint8(255)
            np.testing.assert_array_equal(np.asarray(data[index]["mask"]), expected)


def test_masks_come_back(tmp_path: Path) -> None:
    write_sia(tmp_path, header("blended"), 3, make_blended)
    folder = open_sia(tmp_path)
    np.testing.assert_array_equal(folder.read_mask(2), picture(2)[..., 0] > 128)
    assert read_mask(tmp_path / "masks/000/000002.png", (8, 10)).any()


def test_a_larger_number_goes_on_and_the_folder_is_unfinished_meanwhile(tmp_path: Path) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    write_sia(grown, header(), 130, make_items)

    def watched(indices: Iterable[int]) -> Iterator[Item]:
        assert not (grown / "metadata.jsonl").exists()
        yield from make_items(indices)

    assert write_sia(grown, header(), 210, watched).num_images == 80
    write_sia(whole, header(), 210, make_items)
    assert contents(grown) == contents(whole)
    assert write_sia(grown, header(), 210, watched).num_images == 0


def test_fewer_images_than_there_are_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_sia(tmp_path, header(), 12, make_items)
    with pytest.raises(UserError, match=r"num: got 5, .* image number 11; give --num 12 or more"):
        write_sia(tmp_path, header(), 5, make_items)
    assert len(open_sia(tmp_path).rows) == 12


def test_images_begun_beyond_the_number_are_refused_too(tmp_path: Path) -> None:
    def broken(indices: Iterator[int]) -> Iterator[Item]:
        yield from make_items(islice(indices, 8))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sia(tmp_path, header(), 20, broken)
    assert not (tmp_path / "metadata.jsonl").exists()
    record = json.loads((tmp_path / "shards/000.json").read_text())
    assert record["status"] == "open"
    assert [row["index"] for row in record["rows"]] == list(range(8))
    with pytest.raises(UserError, match="give --num 8 or more"):
        write_sia(tmp_path, header(), 5, make_items)
    assert write_sia(tmp_path, header(), 20, make_items).num_images == 12


def test_a_record_that_was_open_when_its_last_image_came_is_closed(tmp_path: Path) -> None:
    write_sia(tmp_path, header(), 20, make_items)
    before, record = contents(tmp_path), tmp_path / "shards/000.json"
    record.write_text(record.read_text().replace('"done"', '"open"'))
    written = write_sia(tmp_path, header(), 20, make_items)
    assert (written.num_images, written.complete) == (0, True)
    assert contents(tmp_path) == before


def test_a_folder_that_someone_grows_is_not_called_complete(tmp_path: Path) -> None:
    def grow_meanwhile(indices: Iterable[int]) -> Iterator[Item]:
        yield from make_items(indices)
        write_png(tmp_path / "images/000/000025.png", picture(25))

    assert not write_sia(tmp_path, header(), 20, grow_meanwhile).complete
    assert not (tmp_path / "metadata.jsonl").exists()
    assert write_sia(tmp_path, header(), 30, make_items).complete


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    write_sia(tmp_path, header(seed=1), 2, make_items)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"config\.seed: 1 there, 2 here"):
        write_sia(tmp_path, header(seed=2), 2, make_items)
    assert contents(tmp_path) == before


def test_a_deleted_image_is_made_again(tmp_path: Path) -> None:
    write_sia(tmp_path, header(), 12, make_items)
    before = contents(tmp_path)
    (tmp_path / "images/000/000007.png").unlink()
    with pytest.raises(UserError, match=r"000007\.png: no such file"):
        open_sia(tmp_path).read_image(7)
    assert write_sia(tmp_path, header(), 12, make_items).num_images == 1
    assert contents(tmp_path) == before


def test_a_deleted_mask_is_made_again(tmp_path: Path) -> None:
    write_sia(tmp_path, header("blended"), 3, make_blended)
    before = contents(tmp_path)
    (tmp_path / "masks/000/000001.png").unlink()
    assert write_sia(tmp_path, header("blended"), 3, make_blended).num_images == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0)])
def test_several_processes_in_any_order_make_the_folder_of_one(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    for rank in order:
        assert not (shared / "metadata.jsonl").exists()
        write_sia(shared, header(), 410, make_items, process=rank, num_processes=3)
    write_sia(whole, header(), 410, make_items)
    assert contents(shared) == contents(whole)


def test_progress_counts_what_was_missing(tmp_path: Path) -> None:
    write_sia(tmp_path, header(), 3, make_items)
    told: list[tuple[int, int]] = []
    write_sia(tmp_path, header(), 6, make_items, on_image=lambda *state: told.append(state))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_few_images_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.sia.writer.MAX_WAITING_BYTES", 16 * (4096 + 240))
    made, dropped, most = 0, list[int](), 0

    class Tracked(np.ndarray):
        """An array that can be watched."""

    def tracked(indices: Iterable[int]) -> Iterator[Item]:
        nonlocal made, most
        for item in make_items(indices):
            image = item.image.view(Tracked)
            weakref.finalize(image, dropped.append, item.number)
            made += 1
            most = max(most, made - len(dropped))
            yield item._replace(image=image)

    write_sia(tmp_path, header(), 300, tracked)
    assert most < 30


def test_a_full_disk_stops_early_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def full(path: Path, image: np.ndarray) -> None:
        raise UserError(f"{path}: not written, the disk is full")

    def counted(indices: Iterable[int]) -> Iterator[Item]:
        for item in make_items(indices):
            made.append(item.number)
            yield item

    monkeypatch.setattr("synth.sia.writer.write_png", full)
    monkeypatch.setattr("synth.sia.writer.MAX_WAITING_BYTES", 8 * (4096 + 240))
    with pytest.raises(UserError, match=r"000000\.png: not written, the disk is full"):
        write_sia(tmp_path, header(), 100, counted)
    assert len(made) < 20
    monkeypatch.undo()
    assert write_sia(tmp_path, header(), 100, make_items).num_images == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("{}", "no rows"),
        ('{"rows": [1]}', "a row without file_name"),
        ('{"rows": [{"file_name": "a.png", "sha256": "0"}]}', "a row without index"),
    ],
)
def test_a_damaged_record_is_named_and_can_be_deleted(
    tmp_path: Path, content: str, message: str
) -> None:
    write_sia(tmp_path, header(), 5, make_items)
    before = contents(tmp_path)
    record = tmp_path / "shards/000.json"
    record.write_text(content)
    with pytest.raises(UserError, match=rf"000\.json: .*{message}.*delete this file"):
        write_sia(tmp_path, header(), 5, make_items)
    record.unlink()
    write_sia(tmp_path, header(), 5, make_items)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"damaged \(line 3"),
        ("7", "line 3: expected a JSON object, got int"),
        ('{"file_name": "a.png", "index": 1, "sha256": "0"}', "a row without mask_file_name"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_sia(tmp_path, header("blended"), 2, make_blended)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=rf"metadata\.jsonl: .*{message}"):
        open_sia(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, this version reads format 1; update siaforge, or make"),
        ({"kind": "other"}, r"damaged \(kind is .other., must be one of"),
        ({"kind": "blended"}, "kind is 'blended', expected 'source': give anomaly images"),
        ({"category": "../new"}, r"damaged \(category is .../new., must be"),
        ({"dataset": "a\\b"}, r"damaged \(dataset is"),
        ({"category": None}, r"damaged \(category is None, must be the name of one folder"),
    ],
)
def test_other_headers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_sia(tmp_path, header(), 1, make_items)
    values = json.loads((tmp_path / "sia.json").read_text()) | change
    values = {name: value for name, value in values.items() if value is not None}
    (tmp_path / "sia.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        open_sia(tmp_path, kind="source")


def test_the_only_folder_below_is_found_and_several_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected one SIA folder .*found none; name"):
        open_sia(tmp_path)
    write_sia(tmp_path / "data" / "nut", header(), 1, make_items)
    assert open_sia(tmp_path).path == tmp_path / "data" / "nut"
    write_sia(tmp_path / "data" / "bolt", header(), 1, make_items)
    with pytest.raises(UserError, match=r"bolt, .*nut"):
        open_sia(tmp_path)


@pytest.mark.parametrize("num", [0, -3])
def test_no_images_are_refused_before_anything_is_written(tmp_path: Path, num: int) -> None:
    with pytest.raises(UserError, match=f"num: got {num}, must be at least 1"):
        write_sia(tmp_path / "out", header(), num, make_items)
    assert not (tmp_path / "out").exists()


def test_images_are_rgb_on_disk(tmp_path: Path) -> None:
    write_sia(tmp_path, header(), 1, make_items)
    np.testing.assert_array_equal(read_image(tmp_path / "images/000/000000.png"), picture(0))


def test_the_maker_waits_only_for_a_writer_that_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(path: Path, image: np.ndarray) -> None:
        time.sleep(0.02)
        write_png(path, image)

    def slow_maker(indices: Iterable[int]) -> Iterator[Item]:
        for item in make_items(indices):
            time.sleep(0.01)
            yield item

    quick = write_sia(tmp_path / "quick", header(), 40, slow_maker)
    assert quick.seconds > 0.4
    assert quick.waited_seconds < 0.1 * quick.seconds
    monkeypatch.setattr("synth.sia.writer.write_png", slowly)
    monkeypatch.setattr("synth.sia.writer.MAX_WAITING_BYTES", 4 * (4096 + 240))
    slow = write_sia(tmp_path / "slow", header(), 40, make_items)
    assert slow.waited_seconds > 0.5 * slow.seconds
