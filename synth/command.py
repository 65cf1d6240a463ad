"""What the `synth` and `detect` commands share: options, bars, one line for a user's mistake.

Nothing here imports torch, so that `--help` comes at once; commands import their work when run.
"""

import contextlib
import errno
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from synth.data.catalog import Category, open_category
from synth.data.catalog import categories as category_names
from synth.errors import DataWarning, ImageWarning, SharedError, UserError
from synth.memory import is_out_of_memory, steady_malloc
from synth.progress import Update
from synth.usage import parse

OF_PRESET = "(default: the preset's)"
PresetInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OF_PRESET)]
PresetFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OF_PRESET)]
PresetStr = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint=OF_PRESET)]
PresetSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint=OF_PRESET),
]
Size = Annotated[tuple[int, int], tyro.conf.arg(metavar="HEIGHT WIDTH")]
Folder = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
OptionalFolder = Annotated[
    Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")
]

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
"""As tqdm's own, but always in units per second, never in seconds per unit."""

DATASET_NAMES = Literal["folder", "mvtec", "visa", "mpdd", "btad", "mtd", "dagm", "textures", "hub"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images."""

    dataset: DATASET_NAMES = "folder"
    """Layout: any folder of normal images; a published dataset as it is unpacked (mvtec to dagm);
    textures: embedded photographs; hub: a dataset of the Hugging Face Hub."""
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


# Checks of options


def require_output(folder: Path) -> None:
    """Raise UserError before long work where no results can go; nothing is made for this."""
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--out: {folder} is no folder that can be written to ({error.strerror}); "
            "give another one"
        ) from error


def require_positive(**options: float | None) -> None:
    """Raise UserError for the first option that is given and not greater than 0."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise UserError(f"{option_name(name)}: got {value}, must be greater than 0")


def require_not_negative(**options: int | None) -> None:
    """Raise UserError for the first option that is given and below 0."""
    for name, value in options.items():
        if value is not None and value < 0:
            raise UserError(f"{option_name(name)}: got {value}, must be 0 or more")


def require_size(size: tuple[int, int] | None) -> None:
    """Raise UserError for a height or width below 8 pixels."""
    if size is not None and min(size) < 8:
        raise UserError(f"--size: got {size[0]} {size[1]}, both must be 8 pixels or more")


def option_name(name: str) -> str:
    """`batch_size` as it is typed: `--batch-size`."""
    return "--" + name.replace("_", "-")


# Progress and lines


@contextlib.contextmanager
def progress_bar(title: str, unit: str, *, continues: bool = False) -> Iterator[Update]:
    """Show a bar on stderr, on the first process only (see `synth.progress.Bars`).

    The title stands alone until the first unit is done. Where work continues, what was done before
    counts in the percentage but not in the rate.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
    with tqdm(
        desc=title,
        unit=unit,
        bar_format="{desc} ...",
        mininterval=interval,
        maxinterval=interval,
        disable=not is_first_process(),
        dynamic_ncols=True,
    ) as bar:

        def update(done: int, total: int, terms: Mapping[str, float] | None = None, /) -> None:
            if bar.total is None:
                bar.bar_format = BAR_FORMAT
                bar.initial = bar.n = bar.last_print_n = done - 1 if continues else 0
            bar.total = total  # it falls when other processes share the work
            if terms:
                name, value = next(iter(terms.items()))  # the trace has the others
                bar.set_postfix({name: f"{value:.4f}"}, refresh=False)
            bar.update(done - bar.n)

        yield update
        bar.leave = bar.total is not None  # nothing was left to do: no bar remains


def say(line: str) -> None:
    """Print a result on stdout, from the first process only."""
    if is_first_process():
        print(line, flush=True)


def warn(line: str) -> None:
    """Print one line of warning on stderr, from the first process only; an open bar makes way."""
    if not is_first_process():
        return
    if sys.stderr.isatty():
        tqdm.write(f"warning: {line}", file=sys.stderr)
    else:
        start = "\n" if len(getattr(tqdm, "_instances", ())) else ""  # the open bars
        print(f"{start}warning: {line}", file=sys.stderr)


def is_first_process() -> bool:
    """Whether this process speaks; `accelerate launch` and `torchrun` number them."""
    return process_number() == 0


def process_number() -> int:
    """Which process of a launch this is, known before anything is set up."""
    return int(os.environ.get("RANK", "0"))


def refuse(line: str) -> None:
    """Print on stderr why nothing more is done: once, although all processes come to it.

    The launcher ends the others when the first has given up. One that gives up alone is heard, too.
    """
    if not is_first_process():
        time.sleep(LAUNCHER_SECONDS)
        line = f"{line} (process {process_number()})"
    print(line, file=sys.stderr)


# Running

REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS})
"""What the system answers to a path that the user may not reach: never our own fault."""

LAUNCHER_SECONDS = 5.0
"""After these a launcher has noticed that the first process ended, if it did."""

OUT_OF_MEMORY = {
    ("synth", "train"): "raise --accumulate, give --gradient-checkpointing, or lower --size",
    ("synth", "generate"): "lower --batch-size",
    ("detect", "train"): "lower --batch-size or --size, or give a smaller --preset",
    **{("synth", each): "lower --size" for each in ("blend", "baseline", "import-textures")},
    **{("detect", each): "lower --batch-size" for each in ("evaluate", "predict", "drift")},
    **{
        ("detect", each): "lower --batch-size or --size"
        for each in ("select", "compare-sources", "benchmark")
    },
}
"""Advice for the commands with options for it."""
MORE_MEMORY = "end other programs, or run it where there is more memory"


def run_command(name: str, description: str, commands: Mapping[str, Callable[..., Any]]) -> int:
    """Parse the command line, run the chosen command and return the exit code.

    0: done; 2: a user's mistake, in one line on stderr; 130: Ctrl-C; 141: nobody reads the output
    any more. Other errors pass through.
    """
    if sys.argv[1:] == ["--version"]:
        say(f"{name} (siaforge) {version('siaforge')}")
        return 0
    quiet_libraries()
    show_data_warnings()
    steady_malloc()
    try:
        parse(name, description, commands, sys.argv[1:], is_first_process())()
    except SharedError:
        return 2
    except UserError as error:
        refuse(f"{name}: {error}")
        return 2
    except KeyboardInterrupt:
        if is_first_process():
            print(
                f"{name}: interrupted; run the same command again to go on from what is saved",
                file=sys.stderr,
            )
        return 130
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None:
            raise
        refuse(f"{name}: {error.filename}: {error.strerror}; check the path and its rights")
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = OUT_OF_MEMORY.get((name, sys.argv[1]), MORE_MEMORY)
        refuse(f"{name}: out of memory; {advice}")
        return 2
    return 0


def show_data_warnings() -> None:
    """Print a DataWarning as one line, which does not come twice; of an ImageWarning the first.

    Other warnings stay as they are.
    """
    show = warnings.showwarning
    shown: set[str | type[Warning]] = set()

    def show_line(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if not issubclass(category, DataWarning):
            show(message, category, *place)
            return
        what = category if issubclass(category, ImageWarning) else str(message)
        if what not in shown:
            shown.add(what)
            warn(str(message))

    warnings.showwarning = show_line
    warnings.simplefilter("always", DataWarning)


def quiet_libraries() -> None:
    """Keep libraries' remarks to developers off a user's screen."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # tells of each retry
    warnings.filterwarnings(
        "ignore", module="torch.utils.data.dataloader", message=".*pin_memory.*"
    )
