"""The scripts that reproduce tables: their commands are understood, and those of the flows run."""

import csv
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from products import write_product
from test_usage import parsed

SCRIPTS = Path(__file__).parent.parent / "scripts"
SPOKEN = {
    "BASH_FUNC_bash%%": "() { :; }",  # the environment is there
    "BASH_FUNC_synth%%": '() { echo synth "$@"; }',
    "BASH_FUNC_detect%%": '() { echo detect "$@"; }',
}
"""Functions of the shell that say the commands instead of running them."""


def run(recipe: str, *words: object, **environment: str) -> str:
    """What a recipe prints."""
    command = ["bash", SCRIPTS / recipe, *words]
    return subprocess.run(
        [str(word) for word in command],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **environment},
    ).stdout


def understood(recipe: str, *words: object, **environment: str) -> list[Any]:
    """The arguments of each command of a recipe."""
    lines = run(recipe, *words, **SPOKEN, **environment).splitlines()
    return [parsed(line).keywords for line in lines]


def test_the_flows_commands_are_those_of_the_papers(tmp_path: Path) -> None:
    for name in ("mvtec", "mtd", "dagm"):
        (tmp_path / name).mkdir()
    made = understood("reproduce_flows.sh", tmp_path, tmp_path / "out", SEEDS="3")
    lengths = [(m["training"].size, m["more"].num_epochs) for m in made]
    assert lengths == [(None, None), ((384, 384), 60), (None, 60)]
    assert [m["dataset"] for m in made] == ["mvtec", "mtd", "dagm"]
    assert {m["methods"] for m in made} == {("csflow:paper", "validflow:paper")}
    assert {m["seeds"] for m in made} == {(3,)}
    (tmp_path / "mtd").rmdir()
    words = ("--backbone-weights", "b5.safetensors")
    made = understood("reproduce_flows.sh", tmp_path, tmp_path / "out", *words)
    assert [m["out"].name for m in made] == ["mvtec", "dagm"]
    assert {m["more"].backbone_weights for m in made} == {"b5.safetensors"}


def test_the_commands_for_magnetic_tiles_are_understood(tmp_path: Path) -> None:
    made = understood("reproduce_mtd.sh", tmp_path, tmp_path / "out")
    assert [m["out"].name for m in made] == ["model", "sia", "benchmark", "patches"]


@pytest.mark.slow  # two trainings
def test_the_flows_recipe_runs(tmp_path: Path) -> None:
    write_product(tmp_path / "mvtec/widget", num_train=6)
    tiny = shlex.split("--size 64 64 --num-epochs 1 --batch-size 4 --precision fp32")
    run("reproduce_flows.sh", tmp_path, tmp_path / "out", *tiny, PRESET="tiny", SEEDS="0")
    with (tmp_path / "out/mvtec/benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2, rows
