"""What the `synth` and `detect` commands share: options, bars, one line for a user's mistake.

Nothing here imports torch, so that `--help` comes at once; commands import their work when run.
"""

import contextlib
import errno
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from synth.base.errors import DataWarning, ImageWarning, SharedError, UserError
from synth.base.memory import is_out_of_memory, steady_malloc
from synth.base.progress import Update
from synth.base.usage import parse

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
"""As tqdm's own, but always in units per second, never in seconds per unit."""

# Progress and lines


@contextlib.contextmanager
def progress_bar(title: str, unit: str, *, continues: bool = False) -> Iterator[Update]:
    """Show a bar on stderr, on the first process only (see `synth.base.progress.Bars`).

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
    """Print a result on stdout, from the first process only.

    Raises UserError where it cannot be written, such as on a full disk.
    """
    if not is_first_process():
        return
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise UserError(
            f"standard output: cannot be written ({error.strerror}); send it elsewhere and run the "
            "same command again: files that are written are kept"
        ) from error


def forget_stdout() -> None:
    """Let what is still to be printed go nowhere: the end of Python would try again, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    Bars that are still open are shown for the last time before, so that the line is the last one.
    """
    for bar in [*getattr(tqdm, "_instances", ())]:
        bar.close()
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
    **{("detect", each): "lower --batch-size or --size" for each in ("select", "benchmark")},
}
"""Advice for the commands with options for it."""
MORE_MEMORY = "end other programs, or run it where there is more memory"


def run_command(name: str, description: str, commands: Mapping[str, Callable[..., Any]]) -> int:
    """Parse the command line, run the chosen command and return the exit code.

    0: done; 2: a user's mistake, in one line on stderr; 130: Ctrl-C; 141: nobody reads the output
    any more. Other errors pass through.
    """
    mend_streams()
    quiet_libraries()
    show_data_warnings()
    steady_malloc()
    try:
        if sys.argv[1:] == ["--version"]:
            say(f"{name} (siaforge) {version('siaforge')}")
            return 0
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
        forget_stdout()
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


def mend_streams() -> None:
    """Let closed streams be empty, and no remark end the work.

    A file opened later must not take the number of a closed stream. What an encoding lacks is shown
    by escapes.
    """
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(Remarks(sys.stderr.fileno(), "wb", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            write_through=True,
        )


class Remarks(io.FileIO):
    """Stderr: what cannot be written, such as on a full disk, is left out."""

    def write(self, data: Any) -> int:
        """Write as much as can be; all counts as written."""
        with contextlib.suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


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
