"""The card as the Hub and `datasets` read it, its tables against numpy, and the licence rules."""

import json
import re

import datasets
import numpy as np
import pytest
from datasets import Features, Image, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from publishing import make_parcel, write_folder

from synth.base.errors import UserError
from synth.publishing.licence import (
    DATA_CARDS,
    LICENCES,
    choose_licence,
    clauses,
    load_source_card,
)
from synth.publishing.publication import find_folders, make_subsets, write_folder_cards
from synth.publishing.tables import figures_section, histogram, settings_tables, table

MVTEC = load_source_card("mvtec")
UNKNOWN = load_source_card("folder")


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def card_of(tmp_path, **options):
    """The repository's card of two categories, as the Hub's client reads it."""
    for category, num in (("nut", 5), ("bolt", 3)):
        write_folder(tmp_path / "sia", category, num, **options)
    parcel = make_parcel(tmp_path / "staging", tmp_path / "sia")
    return parcel, DatasetCard.load(parcel.files["README.md"])


# The card


@pytest.mark.parametrize("kind", ["source", "blended"])
def test_the_front_matter_is_what_the_hub_and_datasets_read(tmp_path, kind):
    parcel, card = card_of(tmp_path, kind=kind)
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.annotations_creators == ["machine-generated"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.source_datasets == ["extended|other-mvtec"]
    tasks = {"source": "unconditional-image-generation", "blended": "image-segmentation"}
    assert card.data.task_categories == [tasks[kind]]
    configs = MetadataConfigs.from_dataset_card_data(card.data)
    assert {name: config["data_files"][0]["path"] for name, config in configs.items()} == {
        "bolt": "bolt/train-*.parquet",
        "nut": "nut/train-*.parquet",
    }
    info = DatasetInfosDict.from_dataset_card_data(card.data)["nut"]
    assert info.splits["train"].num_examples == 5
    assert info.download_size == parcel.files["nut/train-00000.parquet"].stat().st_size
    assert info.features["image"] == Image()
    assert ("mask" in info.features) == (kind == "blended")
    assert isinstance(info.features, Features)
    assert info.features["strength"] == Value("float64")


NUMBERS = ("01", "1e5", "1E5", "2.5e3", "0x1f", "0o17", "12", "on", "null", "no", "1_000")


def test_names_that_yaml_takes_for_something_else_are_quoted(tmp_path):
    """YAML 1.2, which the Hub reads, knows numbers that YAML 1.1 does not: 1e5, 0o17."""
    for name in NUMBERS:
        write_folder(tmp_path / "sia", name, 2)
    text = make_parcel(tmp_path / "staging", tmp_path / "sia").files["README.md"].read_text()
    names = re.findall(r"config_name: (.+)", text)
    assert {f"'{name}'" for name in NUMBERS} <= set(names)
    assert not set(NUMBERS) & set(names)
    (tmp_path / "card.md").write_text(text)
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(tmp_path / "card.md").data)
    assert set(NUMBERS) <= set(configs)


@pytest.mark.parametrize("kind", ["source", "blended"])
def test_the_page_says_what_one_needs_and_leaves_no_gap(tmp_path, kind):
    _, card = card_of(tmp_path, kind=kind)
    text = card.text
    assert not re.search(r"\$\w|\bNone\b|\n\n\n|\{\}", text)
    assert text.count("```") % 2 == 0
    for heading in ("What is in it", "How it was made", "Load it", "Intended use", "Licence"):
        assert f"\n## {heading}" in text
    assert 'load_dataset("me/data", "bolt", split="train")' in text
    assert "SDAS" in text
    assert "**no commercial use**" in text
    assert "Bergmann" in text
    assert "![Samples of each category" in text
    assert ("Draem(dtd_dir=" in text) == (kind == "source")
    assert ("A mask says" in text) == (kind == "blended")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_programs_on_the_page_run(tmp_path, monkeypatch):
    parcel, card = card_of(tmp_path)
    shard = str(parcel.files["bolt/train-00000.parquet"])

    def load(repo, name, split):
        assert (repo, name, split) == ("me/data", "bolt", "train")
        return datasets.Dataset.from_parquet(shard, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})
    written = sorted((tmp_path / "anomaly_source").iterdir())
    originals = sorted((tmp_path / "sia/mvtec/bolt/images/000").iterdir())
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in originals]


def test_the_sheet_and_the_manifest_lie_beside_the_card(tmp_path):
    parcel, _ = card_of(tmp_path)
    manifest = json.loads(parcel.files["siaforge.json"].read_text())
    assert manifest["categories"]["nut"]["images"] == 5
    assert manifest["categories"]["nut"]["made_by"]["num_steps"] == 20
    assert set(manifest["files"]) == set(parcel.files) - {"siaforge.json"}
    assert parcel.files["sheet.png"].read_bytes().startswith(b"\x89PNG")


def test_the_card_in_a_folder_leaves_it_an_image_folder(tmp_path):
    folder = write_folder(tmp_path / "sia")
    subsets = make_subsets(find_folders([folder]))
    assert write_folder_cards(subsets, [MVTEC], choose_licence([MVTEC], None), "") == []
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "configs" not in card.data.to_dict()
    assert "imagefolder" in card.text
    assert "sheet.png" not in card.text


def test_own_images_are_not_called_a_dataset(tmp_path):
    folder = write_folder(tmp_path / "sia", dataset="folder")
    parcel = make_parcel(tmp_path / "staging", folder, licence="cc-by-4.0")
    card = DatasetCard.load(parcel.files["README.md"])
    assert card.data.source_datasets == ["original"]
    assert card.data.pretty_name == "Synthetic anomalies: nut"
    assert "normal images of the publisher's own" in card.text
    assert "answers for the right" not in card.text


# Its tables


def test_the_histogram_counts_as_numpy_does():
    values = np.random.default_rng(0).uniform(0.1, 0.2, 500).tolist()
    counts, edges = np.histogram(values, 10, (min(values), max(values)))
    rows = rows_of(histogram(values))
    assert [int(row[1]) for row in rows] == counts.tolist()
    assert rows[0][0].startswith(f"{edges[0]:.3g} to")
    longest = max(rows, key=lambda row: len(row[2]))
    assert int(longest[1]) == counts.max()
    assert rows_of(histogram([0.1] * 7)) == [["0.1", "7"]]


def test_settings_that_differ_stand_in_a_table_of_their_own():
    configs = {
        "nut": {"method": "sdas", "strength": [0.1, 0.2], "checkpoint": "aaaa"},
        "bolt": {"method": "sdas", "strength": [0.1, 0.2], "checkpoint": "bbbb", "extra": {"k": 1}},
    }
    shared, differing = settings_tables(configs).split("\n\n")
    assert rows_of(shared) == [
        ["method", "`sdas`"],
        ["strength s", "0.1 to 0.2, drawn evenly"],
    ]
    assert rows_of(differing) == [["`nut`", "`aaaa`", "–"], ["`bolt`", "`bbbb`", "1"]]


def test_a_bar_in_a_cell_does_not_split_it():
    assert table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


# Figures


def quality(category="nut"):
    group = {
        "name": "SDAS s = 0.1",
        "strength": 0.1,
        "num_images": 100,
        "diversity": None,
        "grain": 1.25,
    }
    group |= {"kid": {"value": 1.23, "error": 0.1}, "share_far": 0.25, "share_copies": 0.0}
    group |= {"quality": {"value": 1.525, "error": None}}
    by = {"backbone": "resnet10t", "weights": "bundled"}
    by |= {"num_training_images": 216, "num_held_out_images": 24}
    check = {"sentence": "model fits: as it should"}
    return {"category": category, "measured_by": by, "groups": [group], "check": check}


def test_figures_of_inspect_and_of_the_model_go_into_the_card(tmp_path):
    (tmp_path / "quality.json").write_text(json.dumps(quality()))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/check.json").write_text(json.dumps({"sentence": "model under-fit: look"}))
    (tmp_path / "model/config.json").write_text(json.dumps({"category": "bolt"}))
    text = figures_section(tmp_path, ["nut", "bolt"])
    assert rows_of(text) == [
        ["SDAS s = 0.1", "0.1", "100", "1.52", "1.230 ± 0.100", "25 %", "0 %", "–", "1.25"]
    ]
    assert "### nut\n\nSamples at strength 0: model fits" in text
    assert "### bolt\n\nSamples at strength 0: model under-fit" in text
    assert "216 normal training images" in text


def test_the_check_of_a_model_of_several_categories_goes_into_their_card(tmp_path):
    checks = {name: {"sentence": f"model fits {name}"} for name in ("nut", "bolt", "screw")}
    (tmp_path / "check.json").write_text(json.dumps({"categories": checks}))
    text = figures_section(tmp_path, ["nut", "bolt"])
    assert "### nut\n\nSamples at strength 0: model fits nut." in text
    assert "### bolt\n\nSamples at strength 0: model fits bolt." in text
    assert "screw" not in text
    with pytest.raises(UserError, match="nut, bolt, screw"):
        figures_section(tmp_path, ["washer"])


def test_figures_that_are_absent_damaged_or_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no quality\.json or check\.json"):
        figures_section(tmp_path, ["nut"])
    (tmp_path / "quality.json").write_text(json.dumps(quality("screw")))
    with pytest.raises(UserError, match="is of category 'screw'; published are nut"):
        figures_section(tmp_path, ["nut"])
    broken = quality()
    del broken["groups"][0]["share_far"]
    (tmp_path / "quality.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="damaged"):
        figures_section(tmp_path, ["nut"])


# Licences


def test_the_source_datas_licence_is_the_default():
    licence = choose_licence([MVTEC], None)
    assert (licence.id, licence.name, licence.chosen) == (
        "cc-by-nc-sa-4.0",
        "CC BY-NC-SA 4.0",
        False,
    )
    assert licence.url == "https://creativecommons.org/licenses/by-nc-sa/4.0/"
    assert choose_licence([MVTEC], "CC-BY-NC-SA-4.0") == licence


@pytest.mark.parametrize(
    ("asked", "terms"),
    [
        ("mit", "attribution, non-commercial use only, share alike"),
        ("apache-2.0", "attribution, non-commercial use only, share alike"),
        ("cc-by-4.0", "non-commercial use only, share alike"),
        ("cc-by-nc-4.0", "share alike"),
        ("cc0-1.0", "attribution, non-commercial use only, share alike"),
        ("other", "attribution, non-commercial use only, share alike"),
    ],
)
def test_a_condition_is_not_dropped_without_the_rights(asked, terms):
    with pytest.raises(UserError, match=re.escape(f"(CC BY-NC-SA 4.0: {terms})")):
        choose_licence([MVTEC], asked)
    licence = choose_licence([MVTEC], asked, has_rights=True)
    assert licence.id == asked
    assert licence.chosen


def test_a_licence_that_keeps_all_conditions_needs_no_rights():
    assert choose_licence([MVTEC], "cc-by-nc-sa-3.0").id == "cc-by-nc-sa-3.0"


def test_unknown_mixed_and_misspelt_licences_are_asked_for():
    with pytest.raises(UserError, match="of dataset 'folder' is not known here; say"):
        choose_licence([UNKNOWN], None)
    assert choose_licence([UNKNOWN], "cc-by-4.0").chosen
    textures = load_source_card("textures")
    with pytest.raises(UserError, match="several licences"):
        choose_licence([textures, MVTEC], None)
    with pytest.raises(UserError, match="drops what MVTec AD asks for"):
        choose_licence([textures, MVTEC], "cc0-1.0")
    with pytest.raises(UserError, match=r"allowed are cc0-1\.0"):
        choose_licence([UNKNOWN], "cc-by-nc")


def test_a_named_licence_of_its_own_keeps_its_clause():
    own = MVTEC._replace(licence="other", licence_name="Terms of X", licence_url="https://x.org")
    assert choose_licence([own], None)[:3] == ("other", "Terms of X", "https://x.org")
    with pytest.raises(UserError, match=r"\(a licence of its own: non-commercial use only\)"):
        choose_licence([own._replace(licence_name=None)], "cc-by-4.0")


def test_every_data_card_has_what_publishing_reads():
    cards = [path for path in DATA_CARDS.glob("*.md") if path.stem.islower()]  # documents are not
    assert cards
    for path in cards:
        card = load_source_card(path.stem)
        assert card.title
        assert card.homepage
        assert card.citation
        assert card.licence in (*LICENCES, "other", None), path
        if card.licence and "nc" in clauses(card.licence):
            assert card.non_commercial, path


def test_a_name_of_a_dataset_is_no_path():
    assert load_source_card("../data_cards/mvtec").licence is None
