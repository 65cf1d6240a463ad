"""The `detect` command."""

import sys

from detect.commands.app import app
from detect.commands.benchmark import benchmark
from detect.commands.drift import drift
from detect.commands.evaluate import evaluate
from detect.commands.export import export
from detect.commands.fit import fit
from detect.commands.predict import predict
from detect.commands.select import select
from detect.commands.train import train
from synth.base.command import run_command

COMMANDS = {
    "fit": fit,
    "train": train,
    "select": select,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "predict": predict,
    "export": export,
    "drift": drift,
    "app": app,
}


def main() -> None:
    """Run the `detect` command line."""
    if sys.argv[1:2] == ["compare-sources"]:
        print("detect: `compare-sources` is now `detect benchmark --sources ...`", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_command("detect", "Train anomaly detectors, measure and use them.", COMMANDS))
