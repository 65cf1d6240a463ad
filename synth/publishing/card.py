"""The dataset card: its front matter, and the page that data_cards/TEMPLATE.md lays out."""

import re
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any, NamedTuple

import yaml
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from synth.data.baselines import IMPORTED
from synth.publishing.licence import DATA_CARDS, OTHER, Licence, SourceCard, readable
from synth.publishing.parquet import Subset, WrittenShard, totals
from synth.publishing.tables import (
    columns_table,
    contents_table,
    settings_tables,
    strength_section,
)

MARK = "Written by synth publish, which replaces this file while this line is in it."
SHEET_FILE = "sheet.png"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
METHODS = {
    "sdas": "SDAS (strength-controllable diffusion anomaly synthesis): a diffusion model learns "
    "the normal images of a category, and draws with more noise in every reverse step than it was "
    "trained for, so that what it draws departs from normal.",
    "sdas-pair": "SDAS into a normal image: the image is noised part of the way and drawn again, "
    "with more noise than the model was trained for in a region of it, so that each anomaly has "
    "its normal image and an exact mask.",
    "blend": "Synthetic anomalies P pasted into normal images I where a Perlin mask M meets the "
    "product's foreground, at opacity δ: A = (1 − M) I + M (δ P + (1 − δ) I).",
    "textures": "Photographs of textures, unrelated to the product, brought to one size.",
    "noise": "Independent uniform noise in every pixel: a baseline to compare with.",
    "shifted": "Normal images with jittered colours, shifted round their edges: a baseline to "
    "compare with.",
    "cutpaste": "CutPaste (Li et al., CVPR 2021): a rectangle of the normal image, its colours "
    "jittered, pasted elsewhere in it.",
}
DRAEM_USE = """\
DRAEM and others that paste anomalies into normal images take a folder of pictures. The original
PNG files come out so:

```python
from pathlib import Path
from datasets import Image

Path("anomaly_source").mkdir()
for number, row in enumerate(data.cast_column("image", Image(decode=False))):
    Path(f"anomaly_source/{number:06d}.png").write_bytes(row["image"]["bytes"])
```

In anomalib, give that folder as `Draem(dtd_dir="anomaly_source")` or
`PerlinAnomalyGenerator(anomaly_source_path="anomaly_source")`; its random colour and geometry
changes to anomaly sources alter these images, so empty `model.augmenter.augmenters` first."""
MASK_USE = """\
Each `image` is a training sample with its `mask` (255 where the anomaly is): a segmentation network
can be trained on them as they are, together with the normal images of the source data."""
MASK_LIMIT = """\
- A mask says where pixels were changed; within it the visible change can be faint.
"""


class Entry(NamedTuple):
    """One configuration as it is on disk."""

    subset: Subset
    shards: Sequence[WrittenShard]


class Publication(NamedTuple):
    """What a card speaks of; one dataset, one kind of image, an entry per category."""

    entries: Sequence[Entry]
    sources: Sequence[SourceCard]
    licence: Licence
    figures: str

    @property
    def num_images(self) -> int:
        """Over all categories."""
        return sum(len(entry.subset.folder.rows) for entry in self.entries)

    @property
    def has_masks(self) -> bool:
        """Whether any configuration has masks."""
        return any(entry.subset.has_masks for entry in self.entries)

    @property
    def kind(self) -> str:
        """`source` or `blended`."""
        return self.entries[0].subset.folder.kind

    @property
    def title(self) -> str:
        """As the page's heading and the dataset's readable name."""
        names = [entry.subset.folder.category for entry in self.entries]
        some = ", ".join(names) if len(names) <= 3 else f"{len(names)} categories"
        source = self.sources[0]
        return f"Synthetic anomalies: {some if source.is_own else f'{source.title} ({some})'}"


def repository_card(publication: Publication, repo: str) -> str:
    """The card of the repository, with its front matter."""
    name = publication.entries[0].subset.name
    load = (
        "from datasets import load_dataset\n\n"
        f'data = load_dataset("{repo}", "{name}", split="train")\n'
        'data[0]["image"]  # a PIL image; the row\'s other fields are columns'
    )
    picture = f"![{picture_caption(publication)}]({SHEET_FILE})"
    front = front_matter(publication, with_files=True)
    return f"---\n{front}\n---\n\n{page(publication, picture, load)}"


def folder_card(publication: Publication) -> str:
    """The card of one SIA folder on disk, which `load_dataset` reads as an image folder."""
    load = (
        "from datasets import load_dataset\n\n"
        'data = load_dataset("imagefolder", data_dir="path/to/this/folder", split="train")\n'
        'data[0]["image"]  # a PIL image; the row\'s other fields are columns'
    )
    front = front_matter(publication, with_files=False)
    return f"---\n{front}\n---\n\n{page(publication, '', load)}"


def page(publication: Publication, picture: str, load: str) -> str:
    """The page below the front matter."""
    template = Template((DATA_CARDS / "TEMPLATE.md").read_text(encoding="utf-8"))
    folders = {entry.subset.name: entry.subset.folder for entry in publication.entries}
    text = template.substitute(
        title=publication.title,
        mark=MARK,
        summary=summary(publication),
        picture=picture,
        contents=contents_table(folders),
        columns=columns_table([entry.subset.features for entry in publication.entries]),
        method="\n\n".join(methods(publication)),
        settings=settings_tables({name: folder.config for name, folder in folders.items()}),
        strengths=strength_section([row for folder in folders.values() for row in folder.rows]),
        figures=publication.figures,
        load=load,
        use=MASK_USE if publication.kind == "blended" else DRAEM_USE,
        mask_limit=MASK_LIMIT if publication.has_masks else "",
        licence=licence_text(publication),
        citation=citation_text(publication.sources),
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def front_matter(publication: Publication, *, with_files: bool) -> str:
    """The YAML that the Hub and `datasets` read.

    with_files: also the configurations with their Parquet files, which a folder on disk lacks.
    """
    licence, sources = publication.licence, publication.sources
    other = {"license_name": slug(licence.name), "license_link": licence.url}
    data = DatasetCardData(
        license=licence.id,
        pretty_name=publication.title,
        task_categories=tasks(publication),
        tags=tags(publication),
        size_categories=[size_category(publication.num_images)],
        source_datasets=source_datasets(sources),
        annotations_creators=["machine-generated"],
        **({key: value for key, value in other.items() if value} if licence.id == OTHER else {}),
    )
    if with_files:
        infos = {entry.subset.name: dataset_info(entry) for entry in publication.entries}
        DatasetInfosDict(infos).to_dataset_card_data(data)
        names = [entry.subset.name for entry in publication.entries]
        MetadataConfigs({name: data_files(name) for name in names}).to_dataset_card_data(data)
    return yaml.dump(data.to_dict(), Dumper=Yaml, sort_keys=False, allow_unicode=True).strip()


class Yaml(yaml.SafeDumper):
    """Quotes what any reader of YAML, 1.1 or 1.2, would take for a number, such as `1e5`."""


NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")
"""Source: YAML 1.2, section 10.3.2."""
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^({NUMBER.pattern})$"), list("-+.0123456789")
)


def data_files(name: str) -> dict[str, Any]:
    """Where a configuration's shards lie."""
    return {"data_files": [{"split": "train", "path": f"{name}/train-*.parquet"}]}


def dataset_info(entry: Entry) -> DatasetInfo:
    """Columns and sizes of one configuration."""
    num_rows, num_bytes, file_bytes = totals(entry.shards)
    split = SplitInfo("train", num_bytes=num_bytes, num_examples=num_rows)
    return DatasetInfo(
        features=entry.subset.features,
        splits=SplitDict({"train": split}),
        download_size=file_bytes,
        dataset_size=num_bytes,
    )


def tasks(publication: Publication) -> list[str]:
    """The Hub's names of what the images serve."""
    whole = ["unconditional-image-generation"] if publication.kind == "source" else []
    return whole + (["image-segmentation"] if publication.has_masks else [])


def tags(publication: Publication) -> list[str]:
    """Words to find the dataset by."""
    methods = {str(entry.subset.folder.config.get("method", "")) for entry in publication.entries}
    words = ["anomaly-detection", "defect-detection", "industrial-inspection", "synthetic"]
    return [*words, "siaforge", *sorted(slug(method) for method in methods if method)]


def size_category(num_images: int) -> str:
    """The Hub's name of a number of rows."""
    return next((name for limit, name in SIZES if num_images < limit), "1M<n<10M")


def source_datasets(sources: Sequence[SourceCard]) -> list[str]:
    """The data that the images are derived from, as the Hub writes it."""
    named = [source.dataset for source in sources if source.homepage]
    return [f"extended|other-{slug(name)}" for name in named] or ["original"]


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def summary(publication: Publication) -> str:
    """What it is, in two sentences."""
    what = (
        "whole images of synthetic anomalies"
        if publication.kind == "source"
        else "normal images with a synthetic anomaly in each, and its mask"
    )
    count = len(publication.entries)
    where = "one category" if count == 1 else f"{count} categories"
    source = publication.sources[0]
    whose = f"[{source.title}]({source.homepage})" if source.homepage else f"`{source.title}`"
    if source.dataset == IMPORTED:
        what, made_from = "textures to take anomalies from", "images of the publisher's choice"
    elif source.is_own:
        made_from = "normal images of the publisher's own"
    else:
        made_from = f"the normal images of {whose}"
    return (
        f"{publication.num_images:,} {what}, in {where}, made from {made_from}. "
        "No real defect was used. A row says what made its image."
    )


def picture_caption(publication: Publication) -> str:
    """What the sample sheet shows."""
    order = "from low to high strength" if publication.kind == "source" else "and their masks"
    return f"Samples of each category, {order}"


def methods(publication: Publication) -> list[str]:
    """A sentence for each method that the images were made by, sources of blended ones included."""
    configs: list[Mapping[str, Any]] = [e.subset.folder.config for e in publication.entries]
    configs += [config["sources"] for config in configs if isinstance(config.get("sources"), dict)]
    names = dict.fromkeys(str(config["method"]) for config in configs if "method" in config)
    return [METHODS.get(name, f"Method: `{name}`.") for name in names]


def licence_text(publication: Publication) -> str:
    """Under which licence, why, and what it asks for."""
    licence, sources = publication.licence, publication.sources
    name = f"[{licence.name}]({licence.url})" if licence.url else licence.name
    lines = [f"The images are published under {name}."]
    for source in (source for source in sources if source.licence):
        own = source.licence_name or readable(source.licence or OTHER)
        lines.append(f"They are derived from {source.title}, which is under {own}.")
    if licence.chosen and any(source.licence for source in sources):
        lines.append(
            "This licence was chosen by the publisher, who answers for the right to do so."
        )
    elif any("nc" in source.clauses for source in sources):
        lines.append(
            "Its terms hold for the images and for what is trained on them: **no commercial use**."
        )
    return " ".join(lines)


def citation_text(sources: Sequence[SourceCard]) -> str:
    """The source data, and the program."""
    cited = [f"- {source.title}: {source.citation}" for source in sources if source.citation]
    if not cited:
        return "The images were made with siaforge."
    return "\n".join(["The source data:", "", *cited, "", "The images were made with siaforge."])
