"""scripts/make_sia.sh as a user runs it, on two tiny categories in MVTec AD's layout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from products import write_product

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_sia.sh"
TINY = ("--preset", "tiny", "--size", "32", "32", "--num-steps", "2", "--batch-size", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    for name in ("bolt", "nut"):
        write_product(root / name)
    return root


def start(root: Path, out: Path, **variables: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SCRIPT, "mvtec", root, out, *TINY],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "NUM": "3", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def images(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "sia").rglob("*.png"))}


def test_unknown_category_ends_it(root, tmp_path):
    code, out, err = ended(start(root, tmp_path / "out", CATEGORIES="screw nut"))
    assert (code, out) == (2, "== screw\n")
    assert "bolt, nut" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_in_the_middle_and_continued(root, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = ended(start(root, whole))
    assert code == 0, err
    assert f"SIA dataset: {whole}/sia/mvtec" in out
    process = start(root, broken)
    deadline = time.monotonic() + 600
    while not (broken / "models" / "nut" / "config.json").exists():  # the second category's
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    code, out, err = ended(start(root, broken))
    assert code == 0, err
    assert images(broken) == images(whole)
    assert len(images(whole)) == 6
    for name in ("bolt", "nut"):
        assert json.loads((broken / "models" / name / "check.json").read_text())["verdict"]
        assert (broken / "inspect" / name / "quality.json").exists()
