"""The stages of the demo, one command after another, each timed; scripts/demo.sh calls it."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

NUM_SAMPLES = "12"  # of each strength: enough to look at, too few for KID, which is said


class Stage(NamedTuple):
    """A line of the timing table and the command behind it."""

    title: str
    command: list[str]


class Timing(NamedTuple):
    """What a stage took: seconds, and the largest memory of its process in MiB."""

    title: str
    seconds: float
    peak_mib: float


def stages(category: str, out: Path) -> list[Stage]:
    """The chain in order. All of it are the commands that the README explains."""
    data = ["--dataset", "textures", "--category", category]
    sia, blended = str(out / "sia"), str(out / "blended")
    model, detector, on_noise = (
        str(out / "model"),
        str(out / "detector"),
        str(out / "detector_noise"),
    )
    looked_at = ["--model", model, "--folder", blended, "--out", str(out / "inspect")]
    results = ["--model", detector, "--compare", on_noise, "--out", str(out / "results")]
    return [
        Stage("train diffusion model", ["synth", "train", *data, "--out", model]),
        Stage("generate anomaly images", ["synth", "generate", "--model", model, "--out", sia]),
        Stage(
            "blend examples",
            ["synth", "blend", *data, "--sia", sia, "--out", blended, "--num", "100"],
        ),
        Stage("inspect", ["synth", "inspect", *data, *looked_at, "--num", NUM_SAMPLES]),
        Stage("train RealNet", ["detect", "train", *data, "--sia", sia, "--out", detector]),
        Stage(
            "train RealNet on noise",
            ["detect", "train", *data, "--source", "noise", "--out", on_noise],
        ),
        Stage("evaluate", ["detect", "evaluate", *data, *results]),
    ]


def run(stage: Stage) -> Timing:
    """Run one stage in this environment; ends the demo with the stage's exit code when it fails."""
    print(f"\n== {stage.title}: {' '.join(stage.command)}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *stage.command])
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.wait()
        sys.exit(130)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return Timing(stage.title, time.perf_counter() - start, max_rss_mib(usage))


def max_rss_mib(usage: resource.struct_rusage) -> float:
    """Peak memory in MiB; macOS counts bytes where Linux counts KiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Run all stages, then print what was made and what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--category", default="brick")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    timings = [run(stage) for stage in stages(options.category, options.out)]

    print(f"\n{'stage':26} {'time':>8} {'peak memory':>12}")
    for timing in timings:
        print(f"{timing.title:26} {timing.seconds:6.0f} s {timing.peak_mib:8.0f} MiB")
    total, peak = sum(t.seconds for t in timings), max(t.peak_mib for t in timings)
    print(f"{'all':26} {total:6.0f} s {peak:8.0f} MiB")
    check = json.loads((options.out / "model" / "check.json").read_text())
    print(f"\n{check['sentence']}")
    print(f"images and figures: {options.out / 'inspect' / 'inspect.html'}")
    print(f"report: {options.out / 'results' / 'report.html'}")


if __name__ == "__main__":
    main()
