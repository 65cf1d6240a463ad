"""The README's commands run as they stand, on a tiny folder and with sizes and steps made tiny."""

import re
import shlex
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect.cli
import synth.cli
from synth.base.command import run_command

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in (
    "quickstart", "synthesising", "detecting", "on-the-line", "app", "methods",
))]  # fmt: skip
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8"))
]
TINY = {
    ("detect", "fit"): "--method patch-nn",
    ("detect", "app"): "--dry-run",
    ("synth", "train"): "--num-steps 2 --batch-size 2 --size 16 16 --precision fp32",
    ("synth", "generate"): "--num-steps 10",
    ("synth", "blend"): "--size 32 32",
    ("synth", "inspect"): "--num 2 --strengths 0 0.2",
    ("detect", "train"): "--num-steps 2 --batch-size 2 --size 32 32 --precision fp32",
    ("detect", "select"): "--batch-size 2 --size 32 32",
    ("detect", "benchmark"): "--num-steps 1 --batch-size 2 --size 32 32 --seeds 0 --precision fp32",
}
COMMANDS = {
    "synth": dict(synth.cli.COMMANDS),
    "detect": dict(detect.cli.COMMANDS),
}


def readme_commands() -> list[str]:
    """Return the indented lines that call `synth` or `detect`."""
    return re.findall(r"^    ((?:synth|detect) .*)$", TEXT, re.MULTILINE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = cv2.GaussianBlur(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), (0, 0), 3)
    folders = {
        "textures": 2,
        "photos/train": 12,
        "photos/test/good": 4,
        "photos/test/hole": 4,
        "new_photos": 3,
        "defects/images": 2,
        "defects/masks": 2,
    }
    for folder, count in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            y, x = rng.integers(0, 150, 2)
            crop = base[y : y + 48, x : x + 48].copy()
            if "hole" in folder:
                crop[10:20, 10:20] = 0
            if "masks" in folder:
                crop[:] = 0
                crop[10:20, 10:20] = 255
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), crop)
    cv2.imwrite(
        str(tmp_path / "edges.png"), np.pad(np.zeros((40, 40), np.uint8), 4, constant_values=255)
    )
    return tmp_path


def test_readme_names_every_command_of_the_first_hour() -> None:
    named = {tuple(line.split()[:2]) for line in readme_commands()}
    assert named == {(p, c) for p, commands in COMMANDS.items() for c in commands}


def test_the_commands_of_the_readme_work_in_their_order(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(words: list[str], check: bool) -> subprocess.CompletedProcess:
        program, *rest = words[2:]  # tests/test_fit.py starts processes
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", [program, *rest])
            return subprocess.CompletedProcess(words, run_command(program, "", COMMANDS[program]))

    monkeypatch.setattr("detect.fitting.subprocess.run", in_this_process)
    monkeypatch.chdir(photos)
    for line in readme_commands():
        program, command, *arguments = shlex.split(line)
        tiny = shlex.split(TINY.get((program, command), ""))
        arguments = [re.sub(r"^(100|200)$", "4", argument) for argument in arguments]
        monkeypatch.setattr("sys.argv", [program, command, *arguments, *tiny])
        assert run_command(program, "", COMMANDS[program]) == 0, capsys.readouterr().err
    assert (photos / "runs/results/report.html").stat().st_size > 10_000
    assert (photos / "runs/inspect/inspect.html").stat().st_size > 10_000
    assert len((photos / "runs/predictions/scores.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_what_the_pages_link_to_exists(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        names = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert anchor in names
