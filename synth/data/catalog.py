"""Datasets on disk, read into records: path, split, defect, mask.

Listing opens no image; `synth.images.require_images` checks the files before long work.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from synth.base.errors import UserError
from synth.base.files import printable
from synth.base.progress import Bars, no_bars
from synth.data.layouts import READERS, folders_read
from synth.data.records import Category, Reader, Record

# Opening


def categories(dataset: str, root: Path | None) -> list[str]:
    """List the categories below `root` by name. Raises UserError as `open_category`."""
    reader = _reader(dataset)
    return reader.categories(reader.find_root(root))


def choose_categories(dataset: str, root: Path | None, chosen: Sequence[str]) -> list[str]:
    """Return those of --categories, or all where none is chosen.

    Raises UserError as `open_category`, and for one that is not there.
    """
    names = categories(dataset, root)
    for name in chosen:
        if name not in names:
            raise UserError(
                f"--categories: no {name!r} in {root}; there are: {', '.join(names) or 'none'}"
            )
    return list(dict.fromkeys(chosen)) or names


def open_category(
    dataset: str,
    root: Path | None,
    category: str | None = None,
    bars: Bars = no_bars,
    out: Path | None = None,
) -> Category:
    """List the images of one category.

    `dataset` is a key of READERS; `root` may be None for "textures" only; `category` may be None
    where there is only one. For "folder" without folders of products, `category` is a name of your
    choice (default: the folder's). "textures" and "hub" are written to a cache folder first, which
    `bars` tell of. out: where results will go. Raises UserError for an unknown dataset, a missing
    root or category, no training images, a missing mask ("folder" may have no masks at all for a
    defect), images or folders in places where the layout has no meaning for them, and for an `out`
    whose pictures would be taken for images of the category the next time.
    """
    reader = _reader(dataset)
    root = reader.find_root(root)
    names = reader.categories(root)
    if category is None and len(names) > 1:
        raise UserError(f"category: {root} holds several; choose one of {', '.join(names)}")
    free_name = dataset == "folder" and names == [root.resolve().name]
    if category is not None and category not in names and not free_name:
        raise UserError(
            f"category: no {category!r} in {root}; there are: {', '.join(names) or 'none'}"
        )
    if not names:
        raise UserError(
            f"{root}: no category of layout {dataset!r}; check --root, or use the layout 'folder'"
        )
    name = names[0] if category is None else category
    root = reader.prepare(root, name, bars)
    records = reader.records(root, name)
    if out is not None:
        require_outside(out, folders_read(dataset, root, records))
    named = (replace(record, defect=printable(record.defect)) for record in records)
    return Category(dataset, name, tuple(named))


def require_outside(out: Path, folders: Iterable[Path]) -> None:
    """Raise UserError where `out` lies in one of the folders, whose images are read."""
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out: {out} lies in {folder}, whose images are read: its own pictures would be "
                "taken for some of them; give a folder outside"
            )


def held_out(
    category: Category, fraction: float = 0.1, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Split the training normals into (fit, held-out), each in the category's order.

    Where the layout has a split of its own ("textures", "loco", "mvtec-ad-2"), that is it.
    Elsewhere membership follows a hash of (seed, file name): moving the root changes nothing, and
    new files move few. Held out are round(fraction * N), at least 2 where N >= 4 (1 where N is 2 or
    3), and never all. Raises UserError for a fraction outside (0, 1) and for fewer than 2 images.
    """
    train = category.train
    if not 0 < fraction < 1:
        raise UserError(f"fraction: got {fraction}; choose a number between 0 and 1, such as 0.1")
    if len(train) < 2:
        raise UserError(
            f"{category.name}: got {len(train)} training image; 2 or more are needed, to hold one "
            "out: add normal images"
        )
    own = [record for record in train if record.split == "held_out"]
    if own:
        return [record for record in train if record.split == "train"], own
    count = min(max(round(fraction * len(train)), 2 if len(train) >= 4 else 1), len(train) - 1)
    held = set(sorted(train, key=lambda record: _rank(seed, record.path.name))[:count])
    return [r for r in train if r not in held], [r for r in train if r in held]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()


def _reader(dataset: str) -> Reader:
    if dataset not in READERS:
        raise UserError(f"dataset: no layout {dataset!r}; allowed: {', '.join(READERS)}")
    return READERS[dataset]
