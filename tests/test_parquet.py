"""Shards against pyarrow's own reading of them, and against the files they are made from."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value
from PIL import Image as Picture
from publishing import image_of, write_folder

import synth.publishing.parquet
from synth.base.errors import UserError
from synth.publishing.parquet import make_subset, totals, write_shard
from synth.sia.reader import open_sia


def write_all(folder, staging, updates=None):
    subset = make_subset(open_sia(folder))
    update = (lambda *a: None) if updates is None else lambda *a: updates.append(a)
    return [write_shard(subset, shard, staging, update) for shard in subset.shards]


def rewrite_rows(folder, change):
    """Edit metadata.jsonl row by row."""
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "sia", kind="blended")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(synth.publishing.parquet, "SHARD_BYTES", 2000)


def test_a_shard_has_the_original_files_and_the_rows(folder, tmp_path):
    (shard,) = write_all(folder, tmp_path / "out")
    path = tmp_path / "out" / shard.path
    table = pq.read_table(path)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for read, row in zip(table.to_pylist(), rows, strict=True):
        for field, column in (("file_name", "image"), ("mask_file_name", "mask")):
            name = row.pop(field)
            assert read.pop(column) == {
                "bytes": (folder / name).read_bytes(),
                "path": name.split("/")[-1],
            }
        assert read == row
    features = Features.from_arrow_schema(table.schema)
    assert features["image"] == features["mask"] == Image()
    assert features["strength"] == Value("float64")
    assert features["seed"] == Value("int64")
    assert (shard.num_rows, shard.file_bytes) == (5, path.stat().st_size)
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = np.asarray(Picture.open(io.BytesIO(table["image"][3].as_py()["bytes"])))
    assert np.array_equal(pixels, image_of("nut", 3))


def test_the_bytes_are_the_same_on_every_run_and_anywhere(folder, tmp_path, small_shards):
    first = write_all(folder, tmp_path / "one")
    shutil.copytree(folder, tmp_path / "copy")
    second = write_all(tmp_path / "copy", tmp_path / "two")
    assert first == second
    assert len(first) == 3
    assert totals(first)[0] == 5
    assert [shard.path for shard in first][:2] == [
        "nut/train-00000.parquet",
        "nut/train-00001.parquet",
    ]


def test_finished_shards_stay_and_half_written_ones_are_made_again(folder, tmp_path, small_shards):
    staging = tmp_path / "out"
    whole = write_all(folder, staging)
    paths = [staging / shard.path for shard in whole]
    content = [path.read_bytes() for path in paths]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].with_suffix(".json").unlink()  # killed between file and record
    paths[1].write_bytes(content[1][:100])
    stray = paths[1].with_name(f".{paths[1].name}.0123abcd.partial")
    stray.write_bytes(b"PAR1")
    paths[2].write_bytes(content[2][:-1] + b"?")  # damaged behind its record's back
    updates = []
    assert write_all(folder, staging, updates) == whole
    assert [path.read_bytes() for path in paths] == content
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, True, True]
    assert not stray.exists()
    assert updates[-1] == (5, 5)


def test_a_changed_mask_or_row_makes_its_shard_anew(folder, tmp_path, small_shards):
    staging = tmp_path / "out"
    whole = write_all(folder, staging)
    rewrite_rows(folder, lambda row: row | {"strength": 9.0} if row["index"] == 4 else row)
    again = write_all(folder, staging)
    assert [a == b for a, b in zip(whole, again, strict=True)] == [True, True, False]
    mask = folder / "masks/000/000000.png"
    os.utime(mask, ns=(1, 1))
    stamps = [(staging / shard.path).stat().st_mtime_ns for shard in again]
    assert write_all(folder, staging) == again
    assert (staging / again[0].path).stat().st_mtime_ns != stamps[0]
    assert (staging / again[-1].path).stat().st_mtime_ns == stamps[-1]


@pytest.mark.parametrize("name", ["images/000/000001.png", "masks/000/000001.png"])
def test_a_file_that_its_row_does_not_describe_is_refused(folder, tmp_path, name):
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(
        UserError, match=r"000001\.png: not the (image|mask) that its row describes"
    ):
        write_all(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet*"))
    (folder / name).unlink()
    with pytest.raises(UserError, match=r"000001\.png: missing"):
        write_all(folder, tmp_path / "out")


def test_a_record_of_another_version_is_written_anew(folder, tmp_path):
    (shard,) = write_all(folder, tmp_path)
    record = (tmp_path / shard.path).with_suffix(".json")
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"more": 1}))
    assert write_all(folder, tmp_path) == [shard]
    assert json.loads(record.read_text()) == known


def test_row_groups_are_bounded_by_rows_and_by_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(synth.publishing.parquet, "GROUP_ROWS", 2)
    (shard,) = write_all(folder, tmp_path / "a")
    groups = pq.ParquetFile(tmp_path / "a" / shard.path).metadata
    assert [groups.row_group(n).num_rows for n in range(3)] == [2, 2, 1]
    monkeypatch.setattr(synth.publishing.parquet, "GROUP_ROWS", 100)
    monkeypatch.setattr(synth.publishing.parquet, "GROUP_BYTES", 1)
    (shard,) = write_all(folder, tmp_path / "b")
    assert pq.ParquetFile(tmp_path / "b" / shard.path).metadata.num_row_groups == 5


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3, 4, 5], "int64"),
        ([1, 2.5, 3, None, 5], "float64"),
        (["a", None, "c", "d", "e"], "string"),
        ([True, False, True, None, True], "bool"),
        ([None] * 5, "string"),
    ],
)
def test_a_field_of_ones_own_becomes_a_column(folder, tmp_path, values, kind):
    rewrite_rows(folder, lambda row: row | {"note": values[row["index"]]})
    (shard,) = write_all(folder, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / shard.path)
    assert Features.from_arrow_schema(table.schema)["note"] == Value(kind)
    assert table["note"].to_pylist() == values


def test_strength_is_a_number_with_a_point_even_where_all_are_whole(folder):
    rewrite_rows(folder, lambda row: row | {"strength": 0, "quality": None})
    features = make_subset(open_sia(folder)).features
    assert features["strength"] == features["quality"] == Value("float64")


@pytest.mark.parametrize("bad", [[1, 2], {"a": 1}, 2**63, "text"])
def test_a_field_that_fits_no_column_is_named_with_its_line(folder, bad):
    rewrite_rows(folder, lambda row: row | {"note": bad if row["index"] == 2 else 1})
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 3: note is"):
        make_subset(open_sia(folder))
