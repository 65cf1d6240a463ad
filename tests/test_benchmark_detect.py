import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/benchmark_detect.py"


@pytest.mark.slow  # a process per measurement
def test_the_benchmark_measures_every_part(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--quick", "--out", tmp_path / "speed.json"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    figures = json.loads((tmp_path / "speed.json").read_text())["figures"]
    parts = {figure["part"] for figure in figures}
    assert parts == {"loading", "training", "plain", "fp32", "bf16", "onnxruntime"}
    assert all(figure["value"] > 0 and figure["peak_mib"] > 100 for figure in figures)
    table = (tmp_path / "speed.md").read_text().splitlines()
    assert len(table) == 2 + len(figures)
