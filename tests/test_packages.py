"""Which package imports which, and whether the wheel has all of them."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [
    path.relative_to(ROOT) for name in ("synth", "detect") for path in ROOT.glob(f"{name}/**/*.py")
]


def part(words: tuple[str, ...]) -> str:
    """A package or a loose module below synth or detect, as its name."""
    return ".".join(words[:2])


def imported(path: Path) -> set[str]:
    """What a file imports when it is imported itself."""
    nodes = ast.parse((ROOT / path).read_text()).body
    return {
        part(tuple(n.module.split(".")))
        for n in nodes
        if isinstance(n, ast.ImportFrom) and n.module
    }


def test_imports_go_one_way():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = part(path.with_suffix("").parts)
        graph.setdefault(name, set()).update(imported(path) - {name})
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle
    below = set().union(*(names for name, names in graph.items() if name.startswith("synth")))
    assert "synth.base" in below
    assert not [name for name in below if name.startswith("detect")]


def test_the_wheel_has_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {".".join(path.parent.parts) for path in FILES if path.name == "__init__.py"}
    assert {*project["tool"]["setuptools"]["packages"]} - {"synth.data_cards"} == found
