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
    assert not campaign.fault(0, "")
    assert not campaign.fault(2, "detect: no such file")
    assert campaign.fault(2, "Traceback (most recent call last):\nOSError: x").endswith("x")
    assert campaign.fault(1, "") == "exit code 1"
    assert campaign.fault(-6, "") == "exit code -6"


def test_other_bytes_are_other_results(campaign, tmp_path):
    trial = campaign.Trial("detect predict", tmp_path, {}, 0)
    (tmp_path / "found/masks").mkdir(parents=True)
    (tmp_path / "found/masks/a.png").write_bytes(b"1")
    before = trial.results()
    (tmp_path / "found/log.txt").write_text("other")
    assert trial.results() == before
    (tmp_path / "found/masks/a.png").write_bytes(b"2")
    assert trial.results() != before


@pytest.mark.slow
def test_a_campaign_runs_and_tells_what_failed(campaign, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "FAULTS", {"nothing": lambda *_: "it failed"})
    monkeypatch.setattr(campaign, "WORKS", {"detect train": campaign.WORKS["detect train"]})
    rounds = campaign.campaign(random.Random(0), tmp_path, 0.001)
    assert set(rounds) == {("detect train", "nothing")}
    (told,) = rounds.values()
    assert set(told) == {"it failed"}
    text = "\n".join(campaign.table(rounds, "python x.py"))
    assert "it failed" in text
    assert f"| `detect train` | 0 of {len(told)} |" in text
