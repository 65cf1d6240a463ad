"""Everything that a repository shall hold, made on disk in a staging folder: shards, card, sheet.

All of it is a function of the SIA folders, so that making it again gives the same files and what is
there already is not made twice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub.utils.sha import git_hash

from synth.base.errors import UserError
from synth.base.files import file_digest, write_json, write_text
from synth.base.progress import Bars
from synth.images import write_png
from synth.pictures import SheetRow, contact_sheet
from synth.publishing.card import MARK, SHEET_FILE, Entry, Publication, folder_card, repository_card
from synth.publishing.licence import Licence, SourceCard, choose_licence, load_source_card
from synth.publishing.parquet import Subset, WrittenShard, make_subset, write_shard
from synth.sia.reader import SiaFolder, open_sia
from synth.sia.validate import CARD_FILE, sia_folders, validate_sia

MANIFEST_FILE = "siaforge.json"
MANIFEST_FORMAT = 1
SHEET_IMAGES = 8


class Parcel(NamedTuple):
    """Files for a repository (path there -> file here), and what tells that they are one whole."""

    dataset: str
    kind: str
    categories: tuple[str, ...]
    files: dict[str, Path]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def find_folders(paths: Sequence[Path]) -> list[SiaFolder]:
    """The SIA folders at or below `paths`, which must belong into one repository.

    What an earlier run made for the Hub is left out: a pattern such as sia/* names it too. Raises
    UserError where there is none, where one is unfinished, and where datasets or kinds are mixed.
    """
    own = [path for path in paths if not (path / MANIFEST_FILE).is_file()] or paths
    found = {folder.resolve(): folder for path in own for folder in sia_folders(path)}
    folders = [open_sia(path) for path in found.values()]
    first = folders[0]
    for folder in folders[1:]:
        for what in ("dataset", "kind"):
            one, other = getattr(first, what), getattr(folder, what)
            if one != other:
                raise UserError(
                    f"{folder.path}: its {what} is {other!r}, that of {first.path} is {one!r}; "
                    "publish them apart, each with a --repo of its own"
                )
    return folders


def require_sound(folders: Sequence[SiaFolder], bars: Bars) -> None:
    """Check every file of the folders. Raises UserError with the first fault of one."""
    for folder in folders:
        faults: list[str] = []
        validate_sia(folder.path, faults.append, bars)
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}{more}; `synth validate {folder.path}` tells all")


def make_subsets(folders: Sequence[SiaFolder]) -> list[Subset]:
    """A configuration per folder. Raises UserError for two folders of one category."""
    subsets: dict[str, Subset] = {}
    for folder in folders:
        subset = make_subset(folder)
        if subset.name in subsets:
            other = subsets[subset.name].folder.path
            raise UserError(
                f"{folder.path}: category {folder.category!r}, as {other}; publish one of them, or "
                "each in a --repo of its own"
            )
        subsets[subset.name] = subset
    return list(subsets.values())


def source_cards(folders: Sequence[SiaFolder]) -> list[SourceCard]:
    """What is known of all the data that the images are derived from.

    Blended images derive from their normal images and from those behind their anomaly images.
    """
    names = [folder.dataset for folder in folders]
    names += [str(folder.config.get("sources_of", "")).split("/")[0] for folder in folders]
    return [load_source_card(name) for name in dict.fromkeys(names) if name]


def choose_for(
    folders: Sequence[SiaFolder], asked: str | None, has_rights: bool
) -> tuple[list[SourceCard], Licence]:
    """The source data of the folders and the licence to publish under (see `choose_licence`)."""
    sources = source_cards(folders)
    return sources, choose_licence(sources, asked, has_rights)


def prepare(
    subsets: Sequence[Subset],
    sources: Sequence[SourceCard],
    licence: Licence,
    repo: str,
    staging: Path,
    figures: str,
    bars: Bars,
) -> Parcel:
    """Make all files in `staging`, or find them made. Raises UserError as `write_shard`."""
    entries = [Entry(subset, write_subset(subset, staging, bars)) for subset in subsets]
    publication = Publication(entries, sources, licence, figures)
    write_text(staging / CARD_FILE, repository_card(publication, repo))
    write_png(staging / SHEET_FILE, contact_sheet(sample_rows([s.folder for s in subsets])))
    shards = [shard for entry in entries for shard in entry.shards]
    write_json(staging / MANIFEST_FILE, manifest(publication, shards, staging))
    names = [CARD_FILE, SHEET_FILE, *(shard.path for shard in shards), MANIFEST_FILE]
    folder = subsets[0].folder
    return Parcel(
        folder.dataset,
        folder.kind,
        tuple(subset.folder.category for subset in subsets),
        {name: staging / name for name in names},
    )


def write_subset(subset: Subset, staging: Path, bars: Bars) -> list[WrittenShard]:
    """Write the shards of one configuration, or find them done."""
    with bars(f"writing {subset.name}", "image", continues=True) as update:
        return [write_shard(subset, shard, staging, update) for shard in subset.shards]


def manifest(
    publication: Publication, shards: Sequence[WrittenShard], staging: Path
) -> dict[str, object]:
    """What a later publication tells its own repository by, and what made the images."""
    folders = {entry.subset.name: entry.subset.folder for entry in publication.entries}
    first = publication.entries[0].subset.folder
    return {
        "format": MANIFEST_FORMAT,
        "dataset": first.dataset,
        "kind": first.kind,
        "categories": {
            name: {
                "category": folder.category,
                "images": len(folder.rows),
                "made_by": folder.config,
            }
            for name, folder in folders.items()
        },
        "files": {name: file_digest(staging / name) for name in (CARD_FILE, SHEET_FILE)}
        | {shard.path: shard.sha256 for shard in shards},
        "card_blob": git_hash((staging / CARD_FILE).read_bytes()),
    }


def sample_rows(folders: Sequence[SiaFolder]) -> list[SheetRow]:
    """A few images of each folder from low to high strength, and their masks."""
    rows = []
    for folder in folders:
        numbers = spread_by_strength(folder)
        images = [folder.read_image(number) for number in numbers]
        rows.append(SheetRow(f"{folder.category}{strength_range(folder, numbers)}", images))
        if folder.kind == "blended":
            masks = [folder.read_mask(number) for number in numbers]
            rows.append(SheetRow(f"{folder.category}: their masks", masks))
    return rows


def spread_by_strength(folder: SiaFolder) -> list[int]:
    """Row numbers of up to SHEET_IMAGES images, evenly over the order of strength."""
    order = sorted(range(len(folder.rows)), key=lambda n: (folder.rows[n].get("strength") or 0, n))
    count = min(SHEET_IMAGES, len(order))
    return [order[n] for n in np.linspace(0, len(order) - 1, count).round().astype(int)]


def strength_range(folder: SiaFolder, numbers: Sequence[int]) -> str:
    """The strengths of a row of the sheet, for its label."""
    low, high = (folder.rows[n].get("strength") for n in (numbers[0], numbers[-1]))
    if low is None or high is None:
        return ""
    return f": strength {low:.3g}" + (f" to {high:.3g}" if high > low else "")


def write_folder_cards(
    subsets: Sequence[Subset], sources: Sequence[SourceCard], licence: Licence, figures: str
) -> list[Path]:
    """Write README.md into every SIA folder; the ones that were left, since a person wrote them."""
    left = []
    for subset in subsets:
        path = subset.folder.path / CARD_FILE
        if path.exists() and MARK not in path.read_text(encoding="utf-8"):
            left.append(path)
        else:
            publication = Publication([Entry(subset, ())], sources, licence, figures)
            write_text(path, folder_card(publication))
    return left
