import json

import numpy as np
import pytest

from synth.base.errors import UserError
from synth.diffusion.config import SdasConfig
from synth.sia.strength import PAPER, Strength


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("uniform:0.1,0.2", [0.1, 0.2]),  # as format 1 always had it
        ("uniform:0,0", [0.0, 0.0]),
        ("0.15", 0.15),
        ("0.1,0.2,0.5", {"in_turn": [0.1, 0.2, 0.5]}),
    ],
)
def test_rules_come_back_from_text_and_json(text: str, written: object) -> None:
    rule = Strength.parse(text)
    assert rule.to_json() == written
    assert Strength.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert Strength.parse(rule.text) == rule


def test_the_default_is_the_papers_range_and_keeps_folders_of_the_first_format() -> None:
    assert SdasConfig().strength == PAPER == Strength.parse("uniform:0.1,0.2")
    assert SdasConfig().to_json() == {"strength": [0.1, 0.2], "num_steps": 20, "seed": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "strong",
        "0.1;0.2",
        "0.1,",
        "-0.1",
        "nan",
        "0.1,inf",
        "normal:0.1,0.2",
        "uniform:0.1",
        "uniform:0.2,0.1",
        "uniform:-0.1,0.1",
        "uniform:1,2,3",
    ],
)
def test_what_is_no_rule_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UserError, match="strength: got"):
        Strength.parse(text)


def test_a_list_is_taken_in_turn() -> None:
    rule, rng = Strength.parse("0.1,0.2,0.5"), np.random.default_rng(0)
    assert [rule.draw(index, rng) for index in range(5)] == [0.1, 0.2, 0.5, 0.1, 0.2]
    assert Strength.parse("0.3").draw(17, rng) == 0.3
