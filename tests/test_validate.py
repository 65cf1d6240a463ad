"""One way of breaking an SIA folder per parameter; each must be told, and nothing else."""

import gc
import hashlib
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synth.base.errors import UserError
from synth.sia.reader import Item, SiaHeader, write_sia
from synth.sia.validate import sia_folders, validate_sia
from tests.commands import Command
from tests.products import write_product
from tests.tiny import write_model

NUM = 4
SIZE = (8, 10)
CONFIG = {"method": "blend", "seed": 3, "opacity": [0.5, 1.0], "image_size": list(SIZE)}
IMAGE, MASK, RECORD = "images/000/000001.png", "masks/000/000001.png", "shards/000.json"


def make_items(indices: Iterator[int]) -> Iterator[Item]:
    for index in indices:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        row = {"seed": 3, "opacity": 0.7, "normal_file": "a.png", "source_index": 5}
        yield Item(index, image, image[..., 0] > 128, row | {"strength": None})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "nut"
    write_sia(folder, SiaHeader("blended", "data", "nut", CONFIG), NUM, make_items)
    return folder


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    folder = tmp_path / "two"
    write_sia(folder, SiaHeader("blended", "data", "nut", CONFIG), 103, make_items)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "nut")


def faults(folder: Path, **options: Any) -> list[str]:
    lines: list[str] = []
    verdict = validate_sia(folder, lines.append, **options)
    assert verdict.num_faults == len(lines)
    return lines


# Ways to break it


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:num_bytes])

    return change


def spoil(name: str) -> Callable[[Path], None]:
    """Damage the pixels' own bytes; start and end stay."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        start = data.index(b"IDAT") + 6
        data[start : start + 8] = b"\xff" * 8
        (folder / name).write_bytes(data)

    return change


def picture(name: str, pixels: np.ndarray, field: str) -> Callable[[Path], None]:
    """Another picture, which its row vouches for."""

    def change(folder: Path) -> None:
        Image.fromarray(pixels).save(folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        edit_rows(lambda rows: rows[1].update({field: digest}))(folder)

    return change


def append(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: put(name, (folder / name).read_bytes() + data)(folder)


def edit_record(change: Callable[[dict], None], name: str = RECORD) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        change(record)
        (folder / name).write_text(json.dumps(record))

    return edit


def edit_metadata(change: Callable[[list], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "metadata.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return edit


def edit_rows(change: Callable[[list], None]) -> Callable[[Path], None]:
    """Of the first record and of the metadata alike."""

    def edit(folder: Path) -> None:
        edit_record(lambda record: change(record["rows"]))(folder)
        edit_metadata(change)(folder)

    return edit


def set_field(**values: Any) -> Callable[[Path], None]:
    return edit_rows(lambda rows: rows[1].update(values))


def drop_field(name: str) -> Callable[[Path], None]:
    return edit_rows(lambda rows: rows[1].pop(name))


def set_header(**values: Any) -> Callable[[Path], None]:
    return edit_record(lambda header: header.update(values), "sia.json")


def drop_header(name: str) -> Callable[[Path], None]:
    return edit_record(lambda header: header.pop(name), "sia.json")


def swap(rows: list) -> None:
    rows[1], rows[2] = rows[2], rows[1]


GREY = np.zeros(SIZE, np.uint8)
RGB = np.zeros((*SIZE, 3), np.uint8)
HALF = "half-written by a command"
FOREIGN = "does not belong in an SIA folder"
DEEP = np.zeros(SIZE, np.uint16)
PALETTE = Image.fromarray(GREY).convert("P")

BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # files that rows name
    "image missing": (remove(IMAGE), IMAGE, "missing"),
    "mask missing": (remove(MASK), MASK, "missing"),
    "image a folder": (lambda f: (remove(IMAGE)(f), (f / IMAGE).mkdir()), IMAGE, "cannot be read"),
    "image empty": (cut(IMAGE, 0), IMAGE, "empty"),
    "image cut to its start": (cut(IMAGE, 20), IMAGE, "cut short"),
    "image cut in the middle": (cut(IMAGE, 150), IMAGE, "cut short"),
    "image cut by one byte": (cut(IMAGE, -1), IMAGE, "cut short"),
    "mask cut by its last chunk": (cut(MASK, -12), MASK, "cut short"),
    "image damaged inside": (spoil(IMAGE), IMAGE, "damaged"),
    "image no PNG": (put(IMAGE, b"\xff\xd8\xff\xe0 a JPEG"), IMAGE, "not a PNG"),
    "image exchanged": (
        lambda f: shutil.copy(f / "images/000/000002.png", f / IMAGE),
        IMAGE,
        "altered",
    ),
    "mask exchanged": (
        lambda f: shutil.copy(f / "masks/000/000002.png", f / MASK),
        MASK,
        "altered",
    ),
    "image grey": (picture(IMAGE, GREY, "sha256"), IMAGE, "grey, 8 bits; must be RGB, 8 bits"),
    "image with alpha": (
        picture(IMAGE, np.zeros((*SIZE, 4), np.uint8), "sha256"),
        IMAGE,
        "RGB with alpha, 8 bits",
    ),
    "image of 16 bits": (picture(IMAGE, DEEP, "sha256"), IMAGE, "grey, 16 bits"),
    "image of another size": (
        lambda f: (
            picture(IMAGE, RGB[:, :9], "sha256")(f),
            picture(MASK, GREY[:, :9], "mask_sha256")(f),
        ),
        IMAGE,
        r"9x8 px \(width x height\), must be 10x8 as the folder says",
    ),
    "mask of another size than its image": (
        picture(MASK, GREY[:7], "mask_sha256"),
        MASK,
        r"10x7 px \(width x height\), must be 10x8 as its image",
    ),
    "mask in colour": (picture(MASK, RGB, "mask_sha256"), MASK, "RGB, 8 bits; must be grey"),
    "mask with other levels": (
        picture(MASK, GREY + np.uint8(1), "mask_sha256"),
        MASK,
        "other levels than 0 and 255",
    ),
    # files that no row names
    "image without a row": (
        lambda f: shutil.copy(f / IMAGE, f / "images/000/000900.png"),
        "images/000/000900.png",
        "no row names it",
    ),
    "mask without a row": (put("masks/000/x.png", b"?"), "masks/000/x.png", "no row names it"),
    "image in a later thousand": (put("images/007/007000.png", b""), "007000.png", "no row"),
    "image deeper": (put("images/000/a/000001.png", b""), "000/a/000001.png", "no row"),
    "loose image": (put("images/000001.png", b""), "images/000001.png", "no row names it"),
    "image of nobody": (put("cover.png", b""), "cover.png", "no row names it"),
    "stray file": (put("notes.txt", b""), "notes.txt", FOREIGN),
    "stray folder": (put("old/images/x.jpg", b""), "old/images/x.jpg", FOREIGN),
    "stray record": (put("shards/000 (1).json", b"{}"), "shards/000 (1).json", FOREIGN),
    "hidden file": (put("images/.DS_Store", b""), "images/.DS_Store", FOREIGN),
    "half an image": (put("images/000/.000001.png.0a1b.partial", b""), "0a1b.partial", HALF),
    "half a record": (put("shards/.000.json.0a1b.partial", b""), "0a1b.partial", HALF),
    "half the metadata": (put(".metadata.jsonl.0a1b.partial", b""), "0a1b.partial", HALF),
    "a lock": (put("shards/.001.lock", b""), "shards/.001.lock", "the lock of a command"),
    # rows, in record and metadata alike
    "no seed": (drop_field("seed"), RECORD, "index 1: no seed"),
    "no digest": (drop_field("sha256"), RECORD, "index 1: no sha256"),
    "no dataset": (drop_field("dataset"), RECORD, "index 1: no dataset"),
    "no opacity": (drop_field("opacity"), RECORD, "index 1: no opacity"),
    "digest a number": (set_field(sha256=7), RECORD, "sha256 is 7, must be a string"),
    "opacity a string": (set_field(opacity="1"), RECORD, "opacity is '1', must be a number"),
    "quality true": (set_field(quality=True), RECORD, "quality is True, must be a number"),
    "attempt a fraction": (set_field(attempt=0.5), RECORD, "attempt is 0.5, must be an integer"),
    "opacity too high": (set_field(opacity=1.5), RECORD, "opacity is 1.5, sia.json says 0.5 to 1"),
    "opacity no number": (set_field(opacity=float("nan")), RECORD, "opacity is nan"),
    "other dataset": (set_field(dataset="x"), RECORD, "dataset is 'x', sia.json says 'data'"),
    "other category": (set_field(category="x"), RECORD, "category is 'x', sia.json says 'nut'"),
    "other seed": (set_field(seed=4), RECORD, "seed is 4, sia.json says 3"),
    # records
    "record missing": (remove(RECORD), RECORD, "missing; unfinished"),
    "record no JSON": (put(RECORD, b'{"rows": ['), RECORD, "damaged"),
    "record no text": (put(RECORD, b"\xff\xfe\x00"), RECORD, "damaged"),
    "record a list": (put(RECORD, b"[]"), RECORD, "expected a JSON object"),
    "record without rows": (edit_record(lambda r: r.pop("rows")), RECORD, "no rows"),
    "record of another shard": (
        edit_record(lambda r: r.update(shard=7)),
        RECORD,
        "shard is 7, must be 0",
    ),
    "shard open": (
        edit_record(lambda r: r.update(status="open")),
        RECORD,
        "status is 'open', not 'done': unfinished",
    ),
    "rows out of order": (
        lambda f: edit_record(lambda r: swap(r["rows"]))(f),
        RECORD,
        "index 1: comes after index 2",
    ),
    "a row twice": (
        edit_record(lambda r: r["rows"].insert(2, r["rows"][1])),
        RECORD,
        "index 1: a second row",
    ),
    "a row of another shard": (
        edit_record(lambda r: r["rows"].append(r["rows"][0] | {"index": 100})),
        RECORD,
        "index 100: belongs to another shard",
    ),
    "a row that is none": (
        edit_record(lambda r: r["rows"].append(3)),
        RECORD,
        "row 5 has no",
    ),
    # metadata.jsonl
    "metadata missing": (remove("metadata.jsonl"), "metadata.jsonl", "missing; unfinished"),
    "a line no JSON": (
        append("metadata.jsonl", b'{"index": '),
        "metadata.jsonl, line 5",
        "damaged",
    ),
    "a line no text": (
        append("metadata.jsonl", b"\xff\xfe\n"),
        "metadata.jsonl, line 5",
        "damaged",
    ),
    "a line without index": (
        edit_metadata(lambda rows: rows.append({})),
        "metadata.jsonl, line 5",
        "a row without an index",
    ),
    "a line missing": (
        edit_metadata(lambda rows: rows.pop(1)),
        "metadata.jsonl",
        "no row of index 1 in its place",
    ),
    "the last line missing": (
        edit_metadata(lambda rows: rows.pop()),
        "metadata.jsonl",
        "no row of index 3 in its place",
    ),
    "a line twice": (
        edit_metadata(lambda rows: rows.insert(1, rows[1])),
        "metadata.jsonl, line 3",
        "a second row of index 1",
    ),
    "a line too many": (
        edit_metadata(lambda rows: rows.append(rows[0] | {"index": 5000})),
        "metadata.jsonl",
        "index 5000: no record in shards/ has it",
    ),
    "lines out of order": (
        edit_metadata(swap),
        "metadata.jsonl, line 3",
        "index 1 comes after index 2",
    ),
    "another line than the record's": (
        edit_metadata(lambda rows: rows[1].update(opacity=0.8)),
        "metadata.jsonl",
        "index 1: not as in shards/000.json (opacity: 0.7 there, 0.8 here)",
    ),
    # sia.json
    "header missing": (remove("sia.json"), "sia.json", "missing"),
    "header no JSON": (put("sia.json", b"{"), "sia.json", "damaged"),
    "other format": (set_header(format=2), "sia.json", "format 2, this version reads format 1"),
    "no format": (drop_header("format"), "sia.json", "format None, this version reads format 1"),
    "unknown kind": (set_header(kind="x"), "sia.json", "kind is 'x', must be one of source"),
    "config no object": (set_header(config=[]), "sia.json", "config is [], must be an object"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_folder_is_told_with_the_file_and_the_fault(folder: Path, way: str) -> None:
    breaking, file, fault = BROKEN[way]
    breaking(folder)
    lines = faults(folder)
    assert len(lines) == 1, lines
    assert file in lines[0].split(": ")[0], lines
    fault = fault if "\\" in fault else re.escape(fault)
    assert re.search(fault, lines[0].split(": ", 1)[1]), lines


def test_a_valid_folder_has_no_fault(whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert validate_sia(whole, pytest.fail) == (NUM, 0)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_card_belongs_there_and_older_folders_vouch_for_images_only(folder: Path) -> None:
    (folder / "README.md").write_text("# Card")
    edit_rows(lambda rows: [row.pop("mask_sha256", None) for row in rows])(folder)
    assert faults(folder) == []


def test_rows_of_other_makers_need_less(tmp_path: Path) -> None:
    def items(indices: Iterator[int]) -> Iterator[Item]:
        for item in make_items(indices):
            yield Item(item.number, item.image, None, {"author": "somebody"})

    write_sia(tmp_path, SiaHeader("source", "data", "nut", {"method": "painted"}), 2, items)
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("strength", "value", "fault"),
    [
        ([0.1, 0.2], 0.21, "strength is 0.21, sia.json says 0.1 to 0.2"),
        (0.1, 0.2, "strength is 0.2, sia.json says 0.1 to 0.1"),
        ({"in_turn": [0.1, 0.3]}, 0.4, "strength is 0.4, sia.json says 0.1 to 0.3"),
        ({"else": 1}, 0.1, "strength cannot be checked: sia.json gives its range as"),
        ([0.1, 0.2], None, None),
        ([0.1, 0.2], 0.2, None),
    ],
)
def test_strength_lies_in_the_range_of_the_header(
    folder: Path, strength: Any, value: float | None, fault: str | None
) -> None:
    set_header(config=CONFIG | {"strength": strength})(folder)
    set_field(strength=value)(folder)
    told = [line.split(": ", 2)[2] for line in faults(folder)]
    assert len(told) == (fault is not None), told
    assert fault is None or told[0].startswith(fault)


def test_a_name_that_leads_elsewhere_is_not_followed(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(b"")
    set_field(file_name="../secret.png")(folder)
    lines = faults(folder)
    assert [line.removeprefix(f"{folder}/") for line in lines] == [
        "shards/000.json: index 1: file_name is '../secret.png', must be 'images/000/000001.png'",
        "images/000/000001.png: no row names it",
    ]


def test_several_faults_are_all_told(two_shards: Path) -> None:
    """Those that leave a line of their own and do not hide others, all at once."""
    folder = two_shards
    cut("images/000/000007.png", 40)(folder)
    remove("images/000/000008.png")(folder)
    picture(IMAGE, GREY[:7], "sha256")(folder)  # another mode, another size than its folder's
    put("images/000/000002.png", (folder / "images/000/000003.png").read_bytes())(folder)
    remove("masks/000/000102.png")(folder)
    put("notes.txt", b"")(folder)
    put("masks/000/.000001.png.77.partial", b"")(folder)
    edit_rows(lambda rows: rows[5].update(seed="3", opacity=2.0))(folder)
    edit_metadata(lambda rows: rows.pop(50))(folder)
    set_header(kind="new")(folder)
    told = {line.removeprefix(f"{folder}/") for line in faults(folder)}
    begin = {
        "sia.json: kind is 'new'",
        "shards/000.json: index 5: seed is '3', must be an integer",
        "shards/000.json: index 5: seed is '3', sia.json says 3",
        "shards/000.json: index 5: opacity is 2.0, sia.json says",
        "metadata.jsonl: no row of index 50",
        "images/000/000001.png: grey, 8 bits; must be RGB",
        "images/000/000001.png: 10x7 px",
        "masks/000/000001.png: 10x8 px (width x height), must be 10x7 as its image",
        "images/000/000002.png: altered",
        "images/000/000007.png: cut short",
        "images/000/000008.png: missing",
        "masks/000/000102.png: missing",
        "masks/000/.000001.png.77.partial: half-written",
        "notes.txt: does not belong",
    }
    assert {start for start in begin if any(line.startswith(start) for line in told)} == begin
    assert len(told) == len(begin)


def test_a_gap_is_told_with_all_that_follows_from_it(two_shards: Path) -> None:
    folder = two_shards
    edit_rows(lambda rows: rows.pop(5))(folder)
    assert [line.removeprefix(f"{folder}/") for line in faults(folder)] == [
        "shards/000.json: no row of index 5",
        "images/000/000005.png: no row names it",
        "masks/000/000005.png: no row names it",
    ]


def test_the_last_rows_of_a_shard_are_missed_too(two_shards: Path) -> None:
    remove("images/000/000099.png")(two_shards)
    remove("masks/000/000099.png")(two_shards)
    edit_rows(lambda rows: rows.pop(99))(two_shards)
    assert [line.rsplit("/", 1)[1] for line in faults(two_shards)] == [
        "000.json: no row of index 99"
    ]


def test_records_that_are_all_gone_leave_the_metadata_to_check_by(two_shards: Path) -> None:
    folder = two_shards
    shutil.rmtree(folder / "shards")
    cut(IMAGE, 40)(folder)
    assert [line.removeprefix(f"{folder}/").split(":")[0] for line in faults(folder)] == [
        "shards/000.json",
        IMAGE,
        "shards/001.json",
    ]


def test_a_stray_record_of_a_high_number_is_few_lines(two_shards: Path) -> None:
    folder = two_shards
    put("shards/999999.json", b"{}")(folder)
    put("images/050/050000.png", b"")(folder)
    assert [line.removeprefix(f"{folder}/")[:50] for line in faults(folder)] == [
        "shards/001.json: no row of index 103, 104, 105, 106"[:50],
        "shards/002.json to shards/999998.json: missing; unfinished"[:50],
        "shards/999999.json: shard is None, must be 999999"[:50],
        "shards/999999.json: status is None, not 'done': unfinished"[:50],
        "shards/999999.json: damaged (no rows); delete it and run"[:50],
        "images/050/050000.png: no row names it",
    ]


def test_without_opening_images_their_bytes_do_not_matter(folder: Path) -> None:
    cut(IMAGE, 40)(folder)
    assert faults(folder, open_images=False) == []
    remove(MASK)(folder)
    assert [line.split(": ")[1] for line in faults(folder, open_images=False)] == ["missing"]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_neither_the_faults_nor_their_order(
    two_shards: Path, num_threads: int
) -> None:
    folder = two_shards
    for index in (3, 77, 101, 20):
        remove(f"images/000/{index:06d}.png")(folder)
    order = [line.split("/")[-1] for line in faults(folder, num_threads=num_threads)]
    assert order == [f"{index:06d}.png: missing" for index in (3, 20, 77, 101)]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, whole: Path) -> None:
    """Rows alone, of 1,200 and 2,400 images: those of a thousand are held at most."""
    row = json.loads((whole / "metadata.jsonl").read_text().splitlines()[0])

    def peak(num: int) -> int:
        folder = tmp_path / str(num)
        rows = [
            row
            | {"index": i, "file_name": f"images/{i // 1000:03d}/{i:06d}.png"}
            | {"mask_file_name": f"masks/{i // 1000:03d}/{i:06d}.png"}
            for i in range(num)
        ]
        put("sia.json", (whole / "sia.json").read_bytes())(folder)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        put("metadata.jsonl", lines.encode())(folder)
        for shard in range(num // 100):
            record = {"shard": shard, "status": "done", "rows": rows[shard * 100 :][:100]}
            put(f"shards/{shard:03d}.json", json.dumps(record).encode())(folder)
        del rows, lines
        gc.collect()  # what was made here is not what is measured
        tracemalloc.start()
        verdict = validate_sia(folder, lambda line: None, open_images=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert verdict == (num, 2 * num)  # no file is there
        return most

    small, large = peak(1200), min(peak(2400) for _ in range(2))  # threads of others may allocate
    assert large < 1.5 * small, (small, large)  # twice as much would be growth


# The command


def test_what_our_own_commands_write_has_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Command(monkeypatch, capsys)
    data = ("--dataset", "mvtec", "--root", write_product(tmp_path / "data/nut", 5, 1))
    model = ("--model", write_model(tmp_path / "model", dataset="mvtec"))
    few = ("--num", "3", "--out")
    short = ("--num-steps", "4", *few)
    small = ("--size", "16", "24")
    for words in (
        ("generate", *model, *short, tmp_path / "sia/range"),
        ("generate", *model, "--strength", "0.1,0.4", *short, tmp_path / "sia/list"),
        ("generate", *model, "--pair", "0.5", *data, *short, tmp_path / "sia/pairs"),
        ("blend", *data, "--sia", tmp_path / "sia/range", *small, *few, tmp_path / "sia/blended"),
        ("baseline", *data, "--method", "noise", *small, *few, tmp_path / "sia/noise"),
        ("baseline", *data, "--method", "cutpaste", *small, *few, tmp_path / "sia/cutpaste"),
        ("import-textures", tmp_path / "data", *small, "--out", tmp_path / "sia/textures"),
    ):
        ended = run("synth", *words)
        assert ended.code == 0, ended
    ended = run("synth", "validate", tmp_path / "sia")
    assert ended.code == 0, ended
    assert ended.out.startswith("OK: 26 images"), ended  # 6 of 3, and 5 + 2 + 1 pictures


def test_the_command_prints_faults_and_ends_with_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Command(monkeypatch, capsys)
    ended = run("synth", "validate", folder.parent)
    assert (ended.code, ended.out) == (
        0,
        f"OK: {NUM} images in {folder.parent}, every file as its row says\n",
    )
    assert "checking images" in ended.err
    remove(IMAGE)(folder)
    remove(MASK)(folder)
    ended = run("synth", "validate", folder.parent)
    assert ended.code == 2
    assert ended.out == f"{folder / IMAGE}: missing\n{folder / MASK}: missing\n"
    assert ended.line.startswith(f"synth: {folder.parent}: 2 faults in {NUM} images; delete")


def test_broken_folders_are_found_below_a_folder_and_none_is_an_error(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "other/bolt")
    remove("sia.json")(tmp_path / "other/bolt")
    assert sia_folders(tmp_path) == [folder, tmp_path / "other/bolt"]
    assert sia_folders(folder) == [folder]
    with pytest.raises(UserError, match=r"no SIA folder \(with sia\.json\) here or below"):
        sia_folders(folder / "images")
