"""Which images a command reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from synth.base.command import progress_bar
from synth.base.errors import UserError
from synth.base.options import OptionalFolder
from synth.data.catalog import Category, open_category
from synth.data.catalog import categories as category_names

Foreground = Literal["auto", "everything"]
DATASET_NAMES = Literal[
    "folder", "mvtec", "visa", "mpdd", "btad", "mtd", "dagm", "loco", "mvtec-ad-2", "real-iad",
    "textures", "hub",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images."""

    dataset: DATASET_NAMES = "folder"
    """Layout: any folder of normal images; a published dataset as it is unpacked (mvtec to
    real-iad); textures: embedded photographs; hub: a dataset of the Hugging Face Hub."""
    root: OptionalFolder = None
    """Folder of the data; textures needs none; ORG/NAME with hub."""
    category: Annotated[
        str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: the only one)")
    ] = None
    """Category below the root; where there is none, a name of your choice for its images."""

    def open_all(self, out: Path) -> list[Category]:
        """List the images of every category, for results in `out`.

        Raises UserError where one is named, for less than two, and as `open_category`.
        """
        if self.category is not None:
            raise UserError("--category: not used with --multi-class, which takes all categories")
        names = category_names(self.dataset, self.root)
        if len(names) < 2:
            raise UserError(
                f"--multi-class: categories in {self.root}: {', '.join(names) or 'none'}; give a "
                "folder of two or more, each with its normal images in train/good, train or good, "
                "or leave --multi-class out"
            )
        return [open_category(self.dataset, self.root, name, progress_bar, out) for name in names]

    def open(self, out: Path) -> Category:
        """List the images, for results in `out`; none is opened.

        Raises UserError as `open_category`.
        """
        return open_category(self.dataset, self.root, self.category, progress_bar, out)
