"""scripts/make_sia.py as a user runs it, on two tiny categories in MVTec AD's layout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from products import write_product

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_sia.py"
TINY = ("--preset", "tiny", "--size", "32", "32", "--num-steps", "2", "--batch-size", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    for name in ("bolt", "nut"):
        write_product(root / name)
    return root


def start(root: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, SCRIPT, "mvtec", root, out, *TINY, "--num", "3", *words]
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


def test_dry_run_estimates_and_makes_nothing(root, tmp_path):
    code, out, err = ended(start(root, tmp_path / "out", "--dry-run"))
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["bolt", "nut", "all"]
    assert lines[3].split()[1] == "20"  # normal images of both
    assert not list((tmp_path / "out").iterdir())


def test_unknown_category_is_one_line(root, tmp_path):
    code, out, err = ended(start(root, tmp_path, "--categories", "screw"))
    assert (code, out) == (2, "")
    assert err == f"make_sia: --categories: no screw in {root}; there are: bolt, nut\n"


@pytest.mark.slow
def test_killed_in_the_middle_and_continued(root, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = ended(start(root, whole))
    assert code == 0, err
    process = start(root, broken)
    while not (broken / "models" / "nut" / "config.json").exists():  # the second category's
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (broken / "summary.md").exists()
    code, out, err = ended(start(root, broken))
    assert code == 0, err
    assert "== bolt" not in out  # it was done
    assert images(broken) == images(whole)
    assert len(images(whole)) == 6
    for name in ("bolt", "nut"):
        assert json.loads((broken / "models" / name / "check.json").read_text())["verdict"]
        assert f"| {name} |" in (broken / "summary.md").read_text()
        assert (broken / "sia" / "mvtec" / name / "README.md").read_text().startswith("---\n")
