"""Faults at random, on small inputs: python scripts/fault_campaign.py --minutes 10

Every round takes one of the commands and does one thing to it: kills it, gives it a disk that fills
up, runs it twice at once, or damages a file that it made. It has to end with 0, or with 2 and one
line, never with a traceback; run again, it has to give what it gives undisturbed. A full disk needs
root on Linux (a small file system is mounted). Prints a table; ends with 1 if anything failed.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synth.images import write_png

SMALL = "--size 32 32 --seed 3 --precision fp32"
NOISE = "--source noise --backbone resnet10t --backbone-weights random"
SECONDS = 300.0


class Work(NamedTuple):
    """A command, where it writes, which files it repeats byte for byte, and what it reads."""

    words: str
    folder: str
    exact: tuple[str, ...]
    needs: tuple[str, ...] = ()


WORKS = {
    "synth train": Work(
        f"--root widget --out model --preset tiny --num-steps 6 {SMALL}",
        "model", ("unet/*.safetensors",),
    ),
    "synth generate": Work(
        "--model model --num 4 --num-steps 4 --strength 0.3 --seed 3 --out sia",
        "sia", ("**/*.png", "**/metadata.jsonl"), ("model",),
    ),
    "synth blend": Work(
        "--sia sia/folder/widget --root widget --num 4 --seed 3 --out blended",
        "blended", ("**/*.png", "**/metadata.jsonl"), ("sia", "model"),
    ),
    "detect train": Work(
        f"--root widget {NOISE} --batch-size 2 --num-steps 6 --out detector {SMALL}",
        "detector", ("model.safetensors", "calibration.json"),
    ),
    "detect predict": Work(
        "widget/test --model detector --out found",
        "found", ("overlays/*.png", "masks/*.png"), ("detector",),
    ),
    "detect evaluate": Work(
        "--root widget --model detector --out report", "report", ("scores.csv",), ("detector",)
    ),
}  # fmt: skip


class Trial(NamedTuple):
    """A command in a folder with what it needs, what it gives undisturbed, and its seconds."""

    name: str
    place: Path
    want: dict[str, bytes]
    seconds: float

    @property
    def work(self) -> Work:
        """The command."""
        return WORKS[self.name]

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it."""
        return subprocess.Popen(
            [sys.executable, "-m", *self.name.split(), *self.work.words.split()],
            cwd=self.place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            start_new_session=True,
        )

    def results(self) -> dict[str, bytes]:
        """The files that it repeats exactly."""
        folder = self.place / self.work.folder
        paths = [path for pattern in self.work.exact for path in sorted(folder.glob(pattern))]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def again(self) -> str:
        """Run it to its end; what is wrong, if anything."""
        code, err = finish(self.start())
        if code:
            return f"does not go on: {fault(code, err) or err.strip().splitlines()[-1]}"
        return "" if self.results() == self.want else "other results"


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Exit code and messages of a command, once it has ended; one that hangs is killed."""
    try:
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)
        return 1, f"hung for {SECONDS:.0f} s"
    return process.returncode, err.decode(errors="replace")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command and its children at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def fault(code: int, err: str) -> str:
    """What is wrong with the way that a command ended, if anything."""
    if "Traceback" in err:
        return "traceback: " + err.strip().splitlines()[-1]
    return "" if code in (0, 2) else f"exit code {code}"


# Faults: each returns what is wrong, if anything


def killed(rng: random.Random, trial: Trial) -> str:
    """Kill it at a random moment, up to three times."""
    for _ in range(rng.randint(1, 3)):
        process = trial.start()
        time.sleep(rng.uniform(0.3, 1.1) * trial.seconds)
        kill(process)
    return trial.again()


def full_disk(rng: random.Random, trial: Trial) -> str:
    """Let its disk fill up, then give it room: what was written is moved to the large disk."""
    disk, kib = trial.place / trial.work.folder, rng.choice((8, 16, 32, 64, 128, 256, 512, 1024))
    kept = disk.with_name("kept")
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], check=True)
    try:
        wrong = fault(*finish(trial.start()))
        shutil.copytree(disk, kept)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    disk.rmdir()
    kept.rename(disk)
    return wrong or trial.again()


def twice(rng: random.Random, trial: Trial) -> str:
    """Run it twice at once: shared or refused."""
    first = trial.start()
    time.sleep(rng.uniform(0, 0.8) * trial.seconds)
    faults = [fault(*finish(process)) for process in (first, trial.start())]
    return "".join(faults) or trial.again()


def damaged(rng: random.Random, trial: Trial) -> str:
    """Damage a file that it made or reads, and run it again."""
    if wrong := trial.again():
        return wrong
    folder = trial.place / rng.choice([trial.work.folder, *trial.work.needs])
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data, kind = path.read_bytes(), rng.choice(("cut", "bytes", "nested", "folder", "gone"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        start = rng.randrange(len(data) + 1)
        end = {"cut": b"", "bytes": rng.randbytes(8) + data[start + 8 :], "nested": b"[" * 10_000}
        path.write_bytes(data[:start] + end[kind])
    wrong = fault(*finish(trial.start()))
    return f"{path.relative_to(trial.place)}, {kind}: {wrong}" if wrong else ""


FAULTS: dict[str, Callable[[random.Random, Trial], str]] = {
    "killed": killed,
    "full disk": full_disk,
    "twice at once": twice,
    "damaged file": damaged,
}
Cell = tuple[str, str]
"""Names of a command and a fault."""


# The campaign


def write_widget(folder: Path) -> None:
    """Photographs of a striped thing, some of them with a spot."""
    rng = np.random.default_rng(0)
    for name, count in (("train/good", 10), ("test/good", 4), ("test/spot", 4)):
        for number in range(count):
            image = np.linspace(60, 190, 48)[None, :, None] + rng.normal(0, 6, (40, 48, 3))
            if name == "test/spot":
                mask = np.zeros((40, 48), np.uint8)
                mask[10:20, 8 + number : 20 + number] = 255
                image[mask > 0] = 240
                write_png(folder / f"ground_truth/spot/{number}_mask.png", mask)
            write_png(folder / name / f"{number}.png", image.clip(0, 255).astype(np.uint8))


def campaign(rng: random.Random, folder: Path, minutes: float) -> dict[Cell, list[str]]:
    """What went wrong in each round, nothing where it held, by command and fault."""
    good = folder / "good"
    write_widget(good / "widget")
    trials = {}
    for name in WORKS:
        begin, trial = time.monotonic(), Trial(name, good, {}, 0)
        code, err = finish(trial.start())
        if code:
            raise SystemExit(f"{name} fails undisturbed: {err}")
        seconds = time.monotonic() - begin
        trials[name] = Trial(name, folder / "round", trial.results(), seconds)
    can_mount = sys.platform == "linux" and os.geteuid() == 0
    rounds: dict[Cell, list[str]] = {
        (name, kind): [] for name in WORKS for kind in FAULTS if can_mount or kind != "full disk"
    }
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        least = min(map(len, rounds.values()))
        name, kind = rng.choice([cell for cell, done in rounds.items() if len(done) == least])
        trial = trials[name]
        for need in ("widget", *trial.work.needs):
            shutil.copytree(good / need, trial.place / need)
        rounds[name, kind].append(FAULTS[kind](rng, trial))
        print(f"{name}, {kind}: {rounds[name, kind][-1] or 'held'}", file=sys.stderr)
        shutil.rmtree(trial.place)
    return rounds


def table(rounds: dict[Cell, list[str]], how: str) -> Iterator[str]:
    """Rounds that held of those that were tried, and every failure, as Markdown."""
    yield (
        f"# Faults\n\n`{how}`, {date.today()}. A cell: rounds that held of those tried. Held: exit "
        "code 0, or 2 and one line, no traceback; after a kill, a full disk and two at once the "
        "same command then gives, byte for byte, what it gives undisturbed.\n"
    )
    yield "| | " + " | ".join(FAULTS) + " |"
    yield "| --- |" + " ---: |" * len(FAULTS)
    for name in WORKS:
        cells = [rounds.get((name, kind), []) for kind in FAULTS]
        held = (f"{Counter(cell)['']} of {len(cell)}" for cell in cells)
        yield f"| `{name}` | " + " | ".join(held) + " |"
    for (name, kind), done in rounds.items():
        yield from (f"\n- `{name}`, {kind}: {wrong}" for wrong in done if wrong)


def main() -> int:
    """Run rounds until the time is over, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: 0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        rounds = campaign(random.Random(options.seed), Path(name), options.minutes)
    how = f"python scripts/fault_campaign.py --minutes {options.minutes:g} --seed {options.seed}"
    print("\n".join(table(rounds, how)))
    return 1 if any(map(any, rounds.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
