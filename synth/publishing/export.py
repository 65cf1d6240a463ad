"""SIA folders in the layouts that other toolkits read.

A layout is a function that lists files: a path in the export, and what lies there. Images of the
SIA folder are hard-linked where the file system can (else copied); normal images are written at the
folder's image size, so that sharpness does not tell normal from anomalous. Names are zero-padded to
six digits: readers that pair images with masks by sorted path pair them rightly at any count.
"""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.claims import claim_folder
from synth.base.errors import UserError
from synth.base.files import atomic_path, file_digest, write_text
from synth.base.locks import sole_user
from synth.base.progress import Bars, no_bars
from synth.data.normals import Normals
from synth.images import write_png
from synth.pictures import digest
from synth.sia.format import METADATA_FILE
from synth.sia.reader import SiaFolder, open_sia
from synth.sia.rows import Row
from synth.sia.validate import validate_sia

EXPORT_FILE = "export.json"
"""In the exported folder: what it was made from."""

File = tuple[str, Path | NDArray[np.uint8] | str]
"""Path relative to the export; a file to link, uint8 [H, W, 3] RGB to write as PNG, or a text."""


class Layout(NamedTuple):
    """A layout: its files, what it needs of the folder and the normals, and who reads it how."""

    files: Callable[[SiaFolder, Normals | None, Path], Iterator[File]]
    needs_normals: bool
    needs_masks: bool
    usage: str
    """A line of Python for anomalib; {out}: the exported folder; {mask_dir}: where masks exist."""


class Exported(NamedTuple):
    """Where an export lies, its files, how many of them are hard links; how anomalib reads it."""

    folder: Path
    num_files: int
    num_linked: int
    usage: str


def export_sia(
    folder: Path, layout: str, out: Path, normals: Normals | None = None, bars: Bars = no_bars
) -> Exported:
    """Put an SIA folder and, where the layout has any, normal images into `out`/<category>.

    It is made under a hidden name and then renamed; a rerun goes on, and restores missing files of
    an export that is done. normals: of size `image_size(folder)`. Raises UserError for a folder
    with faults (by name, none is opened), for a kind that the layout cannot show, and where `out`/
    <category> is something else, or another command makes it.
    """
    sia, chosen = open_for_export(folder, layout), LAYOUTS[layout]
    assert (normals is not None) == chosen.needs_normals
    made_from = {"layout": layout, "folder": str(sia.path.resolve()), "num_images": len(sia.rows)}
    made_from["metadata"] = file_digest(sia.path / METADATA_FILE)
    if normals is not None:
        made_from["normals"] = normals.to_json()
    target = out / sia.category
    num_linked = 0
    with sole_user(target, out / f".{target.name}.lock"):
        work = claim_export(target, made_from)
        files = list(chosen.files(sia, normals, target.resolve()))
        with bars("exporting", "file") as update:
            for done, (name, content) in enumerate(files, 1):
                num_linked += place(work / name, content)
                update(done, len(files))
        if work != target:
            with_empty_place(target)
            os.replace(work, target)
    mask_dir = ', mask_dir="mask"' if has_masks(sia) else ""
    usage = chosen.usage.format(out=target, mask_dir=mask_dir)
    return Exported(target, len(files), num_linked, usage)


def open_for_export(folder: Path, layout: str) -> SiaFolder:
    """Open an SIA folder that a layout can show. Raises UserError as `export_sia`."""
    sia, chosen = open_sia(folder), LAYOUTS[layout]
    if not chosen.needs_normals and sia.kind != "source":
        raise UserError(
            f"{folder}: the layout {layout!r} takes whole anomaly images, and these are "
            f"{sia.kind}; give what `synth generate` made"
        )
    if chosen.needs_masks and not has_masks(sia):
        raise UserError(
            f"{folder}: the layout {layout!r} needs masks, and this folder has none; "
            "give what `synth blend` made, or take the layout 'folder' or 'tabular'"
        )
    faults: list[str] = []
    validate_sia(sia.path, faults.append, open_images=False)
    if faults:
        raise UserError(
            f"{folder}: {len(faults)} faults, the first: {faults[0]}; `synth validate` lists them"
        )
    return sia


def image_size(sia: SiaFolder) -> tuple[int, int]:
    """(height, width) of the images, by the first one."""
    height, width = sia.read_image(0).shape[:2]
    return height, width


def other_normals(sia: SiaFolder, normals: Normals) -> str | None:
    """Say so where the normal images are not those of the folder."""
    used = sia.config.get("normals")
    if sia.product not in (None, normals.category.name):
        return f"the normal images are of category {normals.category.name}, not {sia.product}"
    if isinstance(used, str) and used != digest(normals.fit):
        return "the normal images are not those that the folder was made from"
    return None


def has_masks(sia: SiaFolder) -> bool:
    """Whether every image has a mask."""
    return all("mask_file_name" in row for row in sia.rows)


# Layouts


def mvtec(sia: SiaFolder, normals: Normals | None, out: Path) -> Iterator[File]:
    """MVTec AD's: train/good, test/good (held-out normals), test/synthetic, ground_truth."""
    yield from normal_files(normals, "train/good", "test/good")
    for row in sia.rows:
        yield f"test/synthetic/{stem_of(row)}.png", sia.path / row["file_name"]
        yield f"ground_truth/synthetic/{stem_of(row)}_mask.png", sia.path / row["mask_file_name"]


def folders(sia: SiaFolder, normals: Normals | None, out: Path) -> Iterator[File]:
    """One folder each for normal, normal_test (held-out normals), abnormal and mask."""
    yield from normal_files(normals, "normal", "normal_test")
    for row in sia.rows:
        yield f"abnormal/{stem_of(row)}.png", sia.path / row["file_name"]
        if has_masks(sia):
            yield f"mask/{stem_of(row)}.png", sia.path / row["mask_file_name"]


def tabular(sia: SiaFolder, normals: Normals | None, out: Path) -> Iterator[File]:
    """samples.csv with absolute paths, of the SIA folder's own files and of written normals."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    masks = has_masks(sia)
    table.writerow(["image_path", "label_index", "split", *["mask_path"] * masks])
    for name, image in normal_files(normals, "normal", "normal_test"):
        yield name, image
        split = "train" if name.startswith("normal/") else "test"
        table.writerow([out / name, 0, split, *[""] * masks])
    folder = sia.path.resolve()
    for row in sia.rows:
        mask = [folder / row["mask_file_name"]] if masks else []
        table.writerow([folder / row["file_name"], 1, "test", *mask])
    yield "samples.csv", text.getvalue()


def dtd(sia: SiaFolder, normals: Normals | None, out: Path) -> Iterator[File]:
    """Images alone, 1,000 to a folder, as a texture database."""
    for row in sia.rows:
        yield row["file_name"].removeprefix("images/"), sia.path / row["file_name"]


LAYOUTS: dict[str, Layout] = {
    "mvtec": Layout(mvtec, True, True, 'MVTecAD(root="{out.parent}", category="{out.name}")'),
    "folder": Layout(
        folders,
        True,
        False,
        'Folder(name="{out.name}", root="{out}", normal_dir="normal", '
        'normal_test_dir="normal_test", abnormal_dir="abnormal"{mask_dir})',
    ),
    "tabular": Layout(
        tabular,
        True,
        False,
        'Tabular.from_file(name="{out.name}", file_path="{out}/samples.csv")',
    ),
    "dtd": Layout(
        dtd, False, False, 'Draem(dtd_dir="{out}") or Glass(anomaly_source_path="{out}")'
    ),
}


def normal_files(
    normals: Normals | None, fit: str, held: str
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The training normals and the held-out ones, numbered, in folders of these names."""
    assert normals is not None
    for folder, images in ((fit, normals.fit), (held, normals.held)):
        for n, image in enumerate(images):
            yield f"{folder}/{n:06d}.png", image


def stem_of(row: Row) -> str:
    """The index of a row, zero-padded."""
    return f"{row['index']:06d}"


# Files


def claim_export(target: Path, made_from: dict[str, object]) -> Path:
    """The folder to work in: `target` if it is this export, else a hidden one beside it.

    Raises UserError where `target` is another export, or anything but an empty folder.
    """
    work = target.with_name(f".{target.name}.partial")
    if (target / EXPORT_FILE).exists():
        work = target
    elif target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: not empty, and no export of ours; give another --out")
    claim_folder(work, made_from, EXPORT_FILE)
    return work


def place(path: Path, content: Path | NDArray[np.uint8] | str) -> bool:
    """Put a file there unless it is; a text always. Whether it is a hard link."""
    if isinstance(content, str):
        write_text(path, content)
    elif isinstance(content, Path):
        return link_or_copy(content, path)
    elif not path.exists():
        write_png(path, content)
    return False


def link_or_copy(source: Path, path: Path) -> bool:
    """Hard-link a file, or copy it where that cannot be; whether it is linked."""
    if path.exists():
        return path.samefile(source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, path)
    except OSError:  # another file system, or one without links
        with atomic_path(path) as partial:
            shutil.copyfile(source, partial)
    return path.samefile(source)


def with_empty_place(target: Path) -> None:
    """Remove the empty folder that may lie where the export goes."""
    if target.is_dir():
        target.rmdir()
