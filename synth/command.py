"""What the `synth` and `detect` commands share: options, progress, one line for a user's mistake."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from synth.catalog import READERS, Category, open_category
from synth.errors import UserError
from synth.images import require_images


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images."""

    dataset: str = "folder"
    """Layout of the data: folder (any folder of normal images), mvtec, mtd, or textures (embedded)."""
    root: Path | None = None
    """Folder of the data; textures needs none."""
    category: str | None = None
    """Category below the root; may be left out where there is only one."""

    def open(self) -> Category:
        """Read the layout. Raises UserError (see `open_category`)."""
        if self.dataset not in READERS:
            raise UserError(f"--dataset: got {self.dataset!r}, allowed are {', '.join(READERS)}")
        return open_category(self.dataset, self.root, self.category)

    def open_checked(self) -> Category:
        """Read the layout and every image once, so that a broken one is named before long work begins."""
        category = self.open()
        with progress_bar("checking images", "image") as update:
            require_images([record.path for record in category.records], update)
        return category


@contextlib.contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, told (done, total, terms to show) each time; silent on all processes but the first."""
    with tqdm(
        desc=title, unit=unit, disable=int(os.environ.get("RANK", "0")) > 0, dynamic_ncols=True
    ) as bar:

        def update(done: int, total: int, terms: Mapping[str, float] | None = None) -> None:
            if bar.total != total:
                bar.total = total
                bar.initial = bar.n = done - 1
                bar.reset(total) if done == 1 else bar.refresh()
            if terms:
                bar.set_postfix(
                    {name: f"{value:.4f}" for name, value in terms.items()}, refresh=False
                )
            bar.update(done - bar.n)

        yield update


def say(line: str) -> None:
    """One line of result on stdout, from the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def warn(line: str) -> None:
    """One line of warning on stderr, from the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        tqdm.write(f"warning: {line}", file=sys.stderr)


def run_command(name: str, description: str, commands: Mapping[str, Callable[..., Any]]) -> int:
    """Parse the command line, run the chosen command, return the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    quiet_libraries()
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog=name, description=description, config=(tyro.conf.OmitArgPrefixes,)
        )
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; the same command continues where it stopped", file=sys.stderr
        )
        return 130
    return 0


def quiet_libraries() -> None:
    """Keep libraries' remarks to developers off a user's screen."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module="torch.utils.data.dataloader", message=".*pin_memory.*"
    )
