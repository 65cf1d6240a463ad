"""Faults at random, on small inputs: python scripts/fault_campaign.py --minutes 10

Every round takes one of the commands and does one thing to it: kills it, gives it a disk that fills
up, runs it twice at once, or damages a file that it made. It has to end with 0 or with 2 and one
line, never with a traceback; run again, it has to give what it gives undisturbed. A full disk needs
root on Linux (a small file system is mounted). Writes a table; ends with 1 if anything failed.
"""

import argparse
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synth.images import write_png

SMALL = ("--size", "32", "32", "--seed", "3", "--precision", "fp32")
SECONDS = 300.0


class Work(NamedTuple):
    """A command, and the patterns of the files whose bytes it repeats exactly.

    folder: what it writes; needs: the folders of commands that come before.
    """

    words: tuple[str, ...]
    folder: str
    exact: tuple[str, ...]
    needs: tuple[str, ...] = ()


WORKS = {
    "synth train": Work(
        ("synth train --root widget --out model --preset tiny --num-steps 6", *SMALL),
        "model",
        ("unet/*.safetensors",),
    ),
    "synth generate": Work(
        ("synth generate --model model --num 4 --num-steps 4 --strength 0.3 --seed 3 --out sia",),
        "sia",
        ("**/images/**/*.png", "**/metadata.jsonl"),
        ("model",),
    ),
    "synth blend": Work(
        ("synth blend --sia sia/folder/widget --root widget --num 4 --seed 3 --out blended",),
        "blended",
        ("**/images/**/*.png", "**/masks/**/*.png", "**/metadata.jsonl"),
        ("sia",),
    ),
    "detect train": Work(
        (
            "detect train --root widget --source noise --backbone resnet10t --out detector",
            "--backbone-weights random --batch-size 2 --num-steps 6",
            *SMALL,
        ),
        "detector",
        ("model.safetensors", "calibration.json"),
    ),
    "detect predict": Work(
        ("detect predict widget/test --model detector --out found",),
        "found",
        ("overlays/*.png", "masks/*.png"),
        ("detector",),
    ),
    "detect evaluate": Work(
        ("detect evaluate --root widget --model detector --out report",),
        "report",
        ("scores.csv",),
        ("detector",),
    ),
}


class Ended(NamedTuple):
    """How a command ended: negative where a signal ended it."""

    code: int
    err: str

    @property
    def fault(self) -> str:
        """What is wrong with it, if anything."""
        if "Traceback" in self.err:
            return "traceback: " + self.err.strip().splitlines()[-1]
        return "" if self.code in (0, 2) else f"exit code {self.code}"


def write_widget(folder: Path) -> None:
    """Photographs of a striped thing, some of them with a spot."""
    rng = np.random.default_rng(0)
    stripes = np.linspace(60, 190, 48)[None, :, None] + np.zeros((40, 1, 3))
    for name, count in (("train/good", 10), ("test/good", 4), ("test/spot", 4)):
        for number in range(count):
            image = stripes + rng.normal(0, 6, stripes.shape)
            mask = np.zeros((40, 48), np.uint8)
            if name == "test/spot":
                mask[10:20, 8 + number : 20 + number] = 255
                image[mask > 0] = 240
            write_png(folder / name / f"{number}.png", np.clip(image, 0, 255).astype(np.uint8))
            if mask.any():
                write_png(folder / f"ground_truth/spot/{number}_mask.png", mask)


# Running


def start(work: Work, place: Path) -> "subprocess.Popen[bytes]":
    """Start a command in a folder."""
    package, *words = " ".join(work.words).split()
    return subprocess.Popen(
        [sys.executable, "-m", package, *words],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[bytes]") -> Ended:
    """Wait for a command; one that hangs is killed."""
    try:
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)
        return Ended(1, f"hung for {SECONDS:.0f} s")
    return Ended(process.returncode, err.decode(errors="replace"))


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command and its children at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def digest(work: Work, place: Path) -> str:
    """A fingerprint of what a command repeats exactly."""
    sha = hashlib.sha256()
    for pattern in work.exact:
        for path in sorted((place / work.folder).glob(pattern)):
            sha.update(str(path.relative_to(place)).encode() + path.read_bytes())
    return sha.hexdigest()


def again(work: Work, place: Path, want: str) -> str:
    """Run a command to its end; what is wrong, if anything."""
    ended = finish(start(work, place))
    if ended.code:
        return f"does not go on: {ended.fault or ended.err.strip().splitlines()[-1]}"
    return "" if digest(work, place) == want else "other results"


# Faults: (rng, work, a folder with what it needs, its digest, its seconds) -> what is wrong


def killed(rng: random.Random, work: Work, place: Path, want: str, seconds: float) -> str:
    """Kill it at a random moment, up to three times."""
    for _ in range(rng.randint(1, 3)):
        process = start(work, place)
        time.sleep(rng.uniform(0.3, 1.1) * seconds)
        kill(process)
    return again(work, place, want)


def full_disk(rng: random.Random, work: Work, place: Path, want: str, seconds: float) -> str:
    """Let its disk fill up, then give it room."""
    with small_disk(place / work.folder, rng.choice((8, 16, 32, 64, 128, 256, 512, 1024))):
        ended = finish(start(work, place))
        if fault := ended.fault:
            return fault
    return again(work, place, want)


def twice(rng: random.Random, work: Work, place: Path, want: str, seconds: float) -> str:
    """Run it twice at once: shared or refused."""
    processes = [start(work, place)]
    time.sleep(rng.uniform(0, 0.8) * seconds)
    processes.append(start(work, place))
    faults = [ended.fault for ended in map(finish, processes)]
    return next(filter(None, faults), "") or again(work, place, want)


def damaged(rng: random.Random, work: Work, place: Path, want: str, seconds: float) -> str:
    """Damage a file that it made or reads, and run it again."""
    if fault := again(work, place, want):
        return fault
    folder = place / rng.choice([work.folder, *work.needs])
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "bytes", "empty", "nested", "folder", "gone"))
    path.unlink()
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "bytes":
        for _ in range(min(len(data), 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
    elif kind == "nested":
        path.write_bytes(b"[" * 10_000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    fault = finish(start(work, place)).fault
    return f"{path.relative_to(place)}, {kind}: {fault}" if fault else ""


Fault = Callable[[random.Random, Work, Path, str, float], str]
FAULTS: dict[str, Fault] = {
    "killed": killed,
    "full disk": full_disk,
    "twice at once": twice,
    "damaged file": damaged,
}


@contextmanager
def small_disk(disk: Path, kib: int) -> Iterator[None]:
    """Mount an empty file system; what was written on it stays when it is gone."""
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], check=True)
    kept = disk.with_name(f"{disk.name}.kept")
    try:
        yield
        shutil.copytree(disk, kept)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    disk.rmdir()
    kept.rename(disk)


# The campaign


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds until the time is over, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: 0")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        rounds, failures = campaign(rng, Path(name), options.minutes)
    text = "\n".join(table(rounds, failures, options.seed, options.minutes)) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return 1 if failures else 0


Cell = tuple[str, str]
"""Names of a command and a fault."""


def campaign(
    rng: random.Random, folder: Path, minutes: float
) -> tuple[Counter[Cell], dict[Cell, list[str]]]:
    """How often each fault was tried on each command, and what went wrong."""
    good = folder / "good"
    write_widget(good / "widget")
    wants, lengths = {}, {}
    for name, work in WORKS.items():
        begin = time.monotonic()
        ended = finish(start(work, good))
        if ended.code:
            raise SystemExit(f"{name}: {ended.err}")
        lengths[name], wants[name] = time.monotonic() - begin, digest(work, good)
    can_mount = platform.system() == "Linux" and os.geteuid() == 0
    cells = [(w, f) for w in WORKS for f in FAULTS if can_mount or f != "full disk"]
    rounds: Counter[Cell] = Counter()
    failures: dict[Cell, list[str]] = {}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        least = min(rounds[cell] for cell in cells)
        cell = rng.choice([cell for cell in cells if rounds[cell] == least])
        work = WORKS[cell[0]]
        place = folder / "round"
        shutil.copytree(good / "widget", place / "widget")
        for need in needed(work):
            shutil.copytree(good / need, place / need)
        wrong = FAULTS[cell[1]](rng, work, place, wants[cell[0]], lengths[cell[0]])
        rounds[cell] += 1
        if wrong:
            failures.setdefault(cell, []).append(wrong)
        print(f"{sum(rounds.values())}: {', '.join(cell)}: {wrong or 'held'}", file=sys.stderr)
        shutil.rmtree(place)
    return rounds, failures


def needed(work: Work) -> list[str]:
    """The folders that a command reads, and those that these came from."""
    found = list(work.needs)
    for other in WORKS.values():
        if other.folder in work.needs:
            found += needed(other)
    return found


def table(
    rounds: Counter[Cell], failures: dict[Cell, list[str]], seed: int, minutes: float
) -> Iterator[str]:
    """Rounds that held of those that were tried, and every failure, as Markdown."""
    yield "# Faults"
    yield ""
    yield (
        f"`python scripts/fault_campaign.py --minutes {minutes:g} --seed {seed}`, {date.today()}, "
        f"siaforge {version('siaforge')}. A cell: rounds that held of those tried. Held: exit code "
        "0, or 2 and one line, no traceback; after a kill, a full disk and two at once the same "
        "command then gives, byte for byte, what it gives undisturbed."
    )
    yield ""
    yield "| | " + " | ".join(FAULTS) + " |"
    yield "| --- |" + " ---: |" * len(FAULTS)
    for name in WORKS:
        cells = [
            f"{rounds[name, fault] - len(failures.get((name, fault), []))} of {rounds[name, fault]}"
            for fault in FAULTS
        ]
        yield f"| `{name}` | " + " | ".join(cells) + " |"
    for (name, fault), wrong in sorted(failures.items()):
        yield ""
        yield from (f"- `{name}`, {fault}: {each}" for each in wrong)


if __name__ == "__main__":
    sys.exit(main())
