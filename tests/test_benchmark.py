import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/benchmark.py"
TINY = shlex.split(
    "--only perlin detectors --presets tiny --size-px 64 --repeats 1 --batch-sizes 1 2 "
    "--training-batch 2"
)


@pytest.mark.slow  # a process per measurement
def test_the_benchmark_measures_every_network(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, *TINY, "--out", tmp_path / "speed.json"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    figures = json.loads((tmp_path / "speed.json").read_text())["figures"]
    parts = {figure["name"].split(", ")[1] for figure in figures if "tiny" in figure["name"]}
    assert parts == {"training", "plain", "fp32", "bf16", "onnxruntime"}
    memory = [figure["value"] for figure in figures if figure["unit"] == "MiB"]
    assert len(memory) == 9
    assert min(memory) > 100
    assert all(figure["value"] > 0 for figure in figures)
