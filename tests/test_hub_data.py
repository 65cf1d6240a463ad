"""Datasets that `datasets` reads become image files, whole, once, with their own bytes."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from synth.base.errors import UserError
from synth.data.catalog import categories, open_category
from synth.images import read_image, read_mask

LABELS = ClassLabel(names=["deep scratch", "good"])
COLUMNS = {"image": ImageFeature(), "label": LABELS, "mask": ImageFeature()}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def encoded(seed: int, kind: str = "PNG") -> dict[str, Any]:
    levels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, kind)
    return {"bytes": data.getvalue(), "path": None}


def write(folder: Path, columns: dict[str, Any], **splits: list[tuple[Any, ...]]) -> Path:
    for split, rows in splits.items():
        values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        table = Dataset.from_dict(values, features=Features(columns))
        table.to_parquet(folder / f"{split}-00000.parquet")
    return folder


def rows(*labels: Any, first: int = 0) -> list[tuple[Any, ...]]:
    return [
        (encoded(first + n), label, encoded(100 + first + n) if label == 0 else None)
        for n, label in enumerate(labels)
    ]


def defects(root: Path, name: str | None = None) -> list[tuple[str, str, bool]]:
    records = open_category("hub", root, name).records
    return [(record.split, record.defect, record.mask_path is not None) for record in records]


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_category("hub", root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_labels_and_masks_of_a_parquet_dataset(tmp_path: Path) -> None:
    root = write(tmp_path / "nuts", COLUMNS, train=rows(1, 1), test=rows(1, 0, first=2))
    category = open_category("hub", root)
    assert (category.dataset, category.name) == ("hub", "nuts")
    assert defects(root) == [
        ("train", "good", False),
        ("train", "good", False),
        ("test", "deep_scratch", True),
        ("test", "good", False),
    ]
    scratch = category.records[2]
    assert scratch.path.read_bytes() == encoded(3)["bytes"]
    assert scratch.mask_path is not None
    assert read_mask(scratch.mask_path, (12, 10)).any()
    assert read_image(category.records[0].path).shape == (12, 10, 3)


def test_a_second_opening_writes_nothing_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    root = write(tmp_path / "nuts", COLUMNS, train=rows(1, 1), test=rows(0, first=2))
    first, second, _ = (record.path for record in open_category("hub", root).records)
    written = first.stat().st_mtime_ns
    second.unlink()
    open_category("hub", root)
    assert not second.exists()
    (first.parents[2] / "done.json").unlink()  # as a killed process leaves it
    open_category("hub", root)
    assert second.read_bytes() == encoded(1)["bytes"]
    assert first.stat().st_mtime_ns == written


def test_changed_files_are_another_dataset(tmp_path: Path) -> None:
    root = write(tmp_path / "nuts", COLUMNS, train=rows(1, 1))
    before = open_category("hub", root)
    write(root, COLUMNS, train=rows(1, 1, 1))
    assert (len(before.train), len(open_category("hub", root).train)) == (2, 3)


def test_defects_of_the_training_split_are_test_images(tmp_path: Path) -> None:
    root = write(tmp_path / "nuts", COLUMNS, train=rows(1, 0, 1))
    assert [split for split, *_ in defects(root)] == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("kind", "normal", "defect"),
    [
        (Value("int64"), 0, 3),
        (Value("bool"), False, True),
        (Value("string"), "OK", "anomalous"),
    ],
)
def test_labels_that_are_numbers_or_text(
    tmp_path: Path, kind: Value, normal: Any, defect: Any
) -> None:
    columns = {"image": ImageFeature(), "label": kind}
    split = [(encoded(0), normal), (encoded(1), defect)]
    assert defects(write(tmp_path / "nuts", columns, everything=split)) == [
        ("train", "good", False),
        ("test", "anomalous", False),
    ]


def test_a_folder_of_images_without_labels_is_normal(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{n}.jpg").write_bytes(encoded(n, "JPEG")["bytes"])
    category = open_category("hub", tmp_path / "photos")
    assert [record.path.suffix for record in category.train] == [".jpeg", ".jpeg"]
    assert category.train[0].path.read_bytes() == encoded(0, "JPEG")["bytes"]


def test_configurations_are_categories(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    write(root / "nut", COLUMNS, train=rows(1, 1))
    write(root / "bolt", COLUMNS, train=rows(1, 1, 1))
    cards = "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("nut", "bolt")
    )
    (root / "README.md").write_text(f"---\nconfigs:\n{cards}---\n")
    assert sorted(categories("hub", root)) == ["bolt", "nut"]
    assert len(open_category("hub", root, "bolt").train) == 3
    assert len(open_category("hub", root, "nut").train) == 2
    assert "holds several" in refusal(root)


@pytest.mark.parametrize(
    ("columns", "splits", "words"),
    [
        ({"text": Value("string")}, {"train": [("a",)]}, "must hold images"),
        (
            {"left": ImageFeature(), "right": ImageFeature()},
            {"train": [(encoded(0), encoded(1))]},
            "got left, right",
        ),
        (
            {"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])},
            {"train": [(encoded(0), 0)]},
            "none of the labels cat, dog is good, normal, ok",
        ),
        (COLUMNS, {"train": rows(1), "test": [(encoded(1), 0, None)]}, "row 0 of split test is"),
        (COLUMNS, {"train": [(encoded(0), -1, None)]}, "has no label"),
        (COLUMNS, {"train": rows(0)}, "no normal image in the split 'train'"),
        (COLUMNS, {"test": rows(1), "validation": rows(1)}, "one must be called train"),
        (COLUMNS, {"train": [(encoded(0, "GIF"), 1, None)]}, "allowed are PNG, JPEG"),
        (COLUMNS, {"train": [(None, 1, None)]}, "train_000000 (split and row) is no image"),
        (
            {"image": ImageFeature(), "mask": ImageFeature()},
            {"train": [(encoded(0), encoded(1))]},
            "no column 'label'",
        ),
        (
            {"image": ImageFeature()}
            | {name: Value("string") for name in ("dataset", "category", "index", "sha256")},
            {"train": [(encoded(0), "mvtec", "bottle", "0", "")]},
            "SIA images, which show anomalies",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, columns: dict[str, Any], splits: dict[str, Any], words: str
) -> None:
    assert words in refusal(write(tmp_path / "nuts", columns, **splits))


def test_an_empty_folder_and_a_missing_root(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not read as a dataset" in refusal(tmp_path / "empty")
    assert "not read as a dataset" in refusal(tmp_path / "absent" / "deep")
    with pytest.raises(UserError, match="give --root ORG/NAME"):
        open_category("hub", None)


SERVER = """
import http.server, logging, sys, threading
from pathlib import Path

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        gated = "gated" in self.path
        self.send_response(401 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *words): pass

import os
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from synth.data.catalog import open_category
from synth.base.errors import UserError

def refusal(name):
    try:
        open_category("hub", Path(name))
    except UserError as error:
        print(error)

refusal("nobody/nothing")
refusal("somebody/gated")
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
import datasets
datasets.config.HF_HUB_OFFLINE = True
refusal("somebody/else")
"""


def test_unknown_gated_and_offline_are_told_apart(tmp_path: Path) -> None:
    caches = {"HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", SERVER],
        env=os.environ | caches,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    unknown, gated, offline = ended.stdout.splitlines()
    assert "nobody/nothing' doesn't exist on the Hub" in unknown
    assert "gated dataset" in gated
    assert "hf auth login" in gated
    assert "cannot be reached" in offline
