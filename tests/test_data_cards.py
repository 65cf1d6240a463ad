"""What is known of each dataset stands once, in its card, and agrees with tables and catalog."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

from synth.data import textures
from synth.data.catalog import open_category
from synth.data.foreground import RULES
from synth.data.layouts import READERS

CARDS = Path(__file__).parent.parent / "data_cards"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
NAMED = [name for name in READERS if name not in ("folder", "hub")]
KEYS = ["dataset", "title", "licence", "non_commercial", "homepage", "citation", "categories"]
COUNTS = ["train", "test_good", "test_defective"]
REALNET = {  # train, good and defective test images in RealNet's own lists (specs A8)
    "mvtec": (15, 3629, 467, 1258),
    "visa": (12, 8659, 962, 1200),
    "mpdd": (6, 888, 176, 282),
    "btad": (3, 1799, 451, 290),
}
OTHERS = {
    "mtd": (1, 761, 191, 392),
    "dagm": (10, 7004, 6996, 1054),
    "loco": (5, 1778 + 305, 575, 561 + 432),  # of the unpacked archive, 7 more than published
    "textures": (3, 720, 180, 300),
}
NUM_UNCOUNTED = {"mvtec-ad-2": 8, "real-iad": 30}  # counts per category: see their cards
COUNTED = [name for name in NAMED if name not in NUM_UNCOUNTED]
TEST_SIZES = {  # per category, from the same lists: good and defective together
    "mvtec": "83 150 132 117 78 110 124 115 167 160 117 42 100 79 151",
    "visa": "200 160 150 150 150 200 200 200 200 201 201 150",
    "mpdd": "79 77 60 44 97 101",
    "btad": "70 230 441",
}


def front(dataset: str) -> dict[str, Any]:
    about = metadata_load(CARDS / f"{dataset}.md")
    assert about is not None
    return about


@pytest.mark.parametrize("dataset", NAMED)
def test_every_named_dataset_has_a_whole_card(dataset: str) -> None:
    about = front(dataset)
    assert list(about) == KEYS
    assert about["dataset"] == dataset
    assert about["non_commercial"] in (True, False, "unknown")
    assert about["homepage"].startswith("https://")
    assert "\n" not in about["citation"]
    assert ("-nc-" in about["licence"]) == (about["non_commercial"] is True)


@pytest.mark.parametrize("dataset", COUNTED)
def test_every_category_is_counted(dataset: str) -> None:
    for counts in front(dataset)["categories"].values():
        assert list(counts) == COUNTS
        assert all(type(count) is int and count > 0 for count in counts.values())


@pytest.mark.parametrize("dataset", NUM_UNCOUNTED)
def test_categories_without_counts_are_named(dataset: str) -> None:
    names = front(dataset)["categories"]
    assert names == sorted(set(names))
    assert len(names) == NUM_UNCOUNTED[dataset]


@pytest.mark.parametrize("dataset", COUNTED)
def test_the_counts_add_up(dataset: str) -> None:
    categories = front(dataset)["categories"]
    sums = [sum(counts[name] for counts in categories.values()) for name in COUNTS]
    assert (len(categories), *sums) == (REALNET | OTHERS)[dataset]


@pytest.mark.parametrize("dataset", TEST_SIZES)
def test_each_category_has_as_many_test_images_as_in_the_published_lists(dataset: str) -> None:
    categories = front(dataset)["categories"].values()
    sizes = [counts["test_good"] + counts["test_defective"] for counts in categories]
    assert sizes == [int(size) for size in TEST_SIZES[dataset].split()]


def test_the_foreground_table_has_the_categories_of_realnet_and_each_can_be_opened() -> None:
    listed = {(name, category) for name in REALNET for category in front(name)["categories"]}
    assert set(RULES) == listed
    assert len(listed) == 36
    assert set(REALNET) <= set(READERS)


def test_the_textures_are_as_their_card_says() -> None:
    counts = {"train": textures.NUM_TRAIN, "test_good": textures.NUM_TEST_GOOD}
    counts["test_defective"] = textures.NUM_PER_DEFECT * len(textures.PAINTERS)
    assert front("textures")["categories"] == dict.fromkeys(textures.PHOTOGRAPHS, counts)


@pytest.mark.parametrize(("dataset", "category"), [("mtd", "magnetic_tile"), ("mvtec", "bottle")])
def test_the_data_beside_the_checkout_is_as_its_card_says(dataset: str, category: str) -> None:
    if not (DATA / dataset).is_dir():
        pytest.skip(f"no {dataset} data beside the checkout")
    records = open_category(dataset, DATA / dataset, category)
    defective = sum(record.is_anomalous for record in records.test)
    got = (len(records.train), len(records.test) - defective, defective)
    assert got == tuple(front(dataset)["categories"][category].values())
