"""The campaign of faults: its own parts, and one round of it."""

import importlib.util
import random
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/fault_campaign.py"


@pytest.fixture(scope="module")
def campaign():
    spec = importlib.util.spec_from_file_location("fault_campaign", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tracebacks_and_other_codes_are_faults(campaign):
    assert not campaign.Ended(0, "").fault
    assert not campaign.Ended(2, "detect: no such file").fault
    assert campaign.Ended(2, "Traceback (most recent call last):\nOSError: x").fault.endswith("x")
    assert campaign.Ended(1, "").fault == "exit code 1"
    assert campaign.Ended(-6, "").fault == "exit code -6"


def test_other_bytes_are_other_results(campaign, tmp_path):
    work = campaign.Work(("python -c pass",), "out", ("*.png",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"1")
    before = campaign.digest(work, tmp_path)
    (tmp_path / "out/log.txt").write_text("other")
    assert campaign.digest(work, tmp_path) == before
    (tmp_path / "out/a.png").write_bytes(b"2")
    assert campaign.digest(work, tmp_path) != before


@pytest.mark.slow
def test_a_campaign_runs_and_tells_what_failed(campaign, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "FAULTS", {"nothing": lambda *_: "it failed"})
    monkeypatch.setattr(campaign, "WORKS", {"detect train": campaign.WORKS["detect train"]})
    rounds, failures = campaign.campaign(random.Random(0), tmp_path, 0.001)
    assert set(rounds) == {("detect train", "nothing")}
    text = "\n".join(campaign.table(rounds, failures, 0, 0.001))
    assert "it failed" in text
    assert "| `detect train` | 0 of " in text
