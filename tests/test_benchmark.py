import json
import runpy
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/benchmark.py"
TINY = shlex.split(
    "--only perlin detectors flows --presets tiny --size-px 128 --repeats 1 --batch-sizes 1 2 "
    "--training-batch 2"
)


def test_its_imports_are_there() -> None:
    assert runpy.run_path(str(SCRIPT), run_name="benchmark")["main"]


@pytest.mark.slow  # a process per measurement
def test_the_benchmark_measures_every_network(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, *TINY, "--out", tmp_path / "speed.json"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=900)
    figures = json.loads((tmp_path / "speed.json").read_text())["figures"]
    measured: dict[str, set[str]] = defaultdict(set)
    for name in [figure["name"] for figure in figures if "tiny" in figure["name"]]:
        network, part, *_ = name.split(", ")
        measured[network].add(part)
    common = {"plain", "fp32", "bf16"}
    flow = common | {"parameters", "training fp32", "training bf16"}
    assert measured.pop("RealNet tiny") == common | {"training", "onnxruntime"}
    assert [measured.pop(f"{network} tiny") for network in ("CS-Flow", "ValidFlow")] == [flow] * 2
    assert set(measured) <= {"anomalib's CS-Flow tiny"}  # where it is installed
    jobs = [figure for figure in figures if "batches of" in figure["name"]]
    memory = [figure["value"] for figure in figures if figure["unit"] == "MiB"]
    assert len(memory) == len(jobs) >= 25
    assert min(memory) > 100
    assert all(figure["value"] > 0 for figure in figures)
