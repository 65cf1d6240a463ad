"""Textures, noise and CutPaste are what they say, drawn by index, and go where SDAS images go."""

from pathlib import Path

import numpy as np
import pytest
from commands import Command
from PIL import Image
from products import write_product

from detect.data.sources import TEXTURE_OPACITY, Part, open_source
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.data import baselines
from synth.data.baselines import (
    BASELINES,
    cutpaste,
    import_textures,
    jittered,
    noise,
    patch_size,
    shifted,
    write_baseline,
)
from synth.data.catalog import open_category
from synth.data.normals import Normals, load_normals
from synth.images import write_png
from synth.sia.reader import open_sia


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return write_product(tmp_path / "widget")


@pytest.fixture
def normals(product: Path) -> Normals:
    return load_normals(open_category("folder", product), (32, 32), no_bars)


# Textures


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """The tree of the Describable Textures Dataset, with the files that lie beside its images."""
    for n, name in enumerate(("banded/banded_0002", "banded/banded_0011", "woven/woven_0001")):
        path = tmp_path / f"dtd/images/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(n)).save(path)
    (tmp_path / "dtd/images/.directory").touch()
    return tmp_path / "dtd/images"


def test_dtd_becomes_an_sia_folder_of_no_product(dtd: Path, tmp_path: Path) -> None:
    written = import_textures(dtd, tmp_path / "sia", (16, 16))
    assert written.folder == tmp_path / "sia/imported-textures/dtd"
    folder = open_sia(tmp_path / "sia", kind="source")
    assert [row["texture_file"] for row in folder.rows] == [
        "banded/banded_0002.jpg",
        "banded/banded_0011.jpg",
        "woven/woven_0001.jpg",
    ]
    assert folder.read_image(2).shape == (16, 16, 3)
    assert (folder.category, folder.product) == ("dtd", None)
    (part,) = open_source([Part("sia", tmp_path / "sia")]).parts
    assert (part.category, part.opacity) == (None, TEXTURE_OPACITY)
    assert part.config["method"] == "textures"


def test_textures_keep_their_pixels_where_nothing_is_squeezed(tmp_path: Path) -> None:
    for n in range(3):
        write_png(tmp_path / f"cloth/deep/{n}.png", picture(n))
    import_textures(tmp_path / "cloth", tmp_path / "sia", (20, 24))
    folder = open_sia(tmp_path / "sia")
    assert folder.category == "cloth"
    for n in range(3):
        np.testing.assert_array_equal(folder.read_image(n), picture(n))


def test_other_files_are_another_folder(dtd: Path, tmp_path: Path) -> None:
    import_textures(dtd, tmp_path / "sia", (16, 16))
    assert import_textures(dtd, tmp_path / "sia", (16, 16)).num_images == 0
    write_png(dtd / "woven/more.png", picture(9))
    with pytest.raises(UserError, match="num_files: 3 there, 4 here"):
        import_textures(dtd, tmp_path / "sia", (16, 16))


def test_import_textures_from_the_shell(run: Command, dtd: Path, product: Path) -> None:
    out = dtd.parent.parent / "sia"
    ended = run("synth", "import-textures", dtd, "--out", out, "--size", 16, 16)
    assert (ended.code, ended.out) == (0, f"SIA folder: {out}/imported-textures/dtd\n")
    words = ("--sia", out, "--num", 2, "--size", 16, 16, "--foreground", "everything")
    ended = run("synth", "blend", "--root", product, *words, "--out", out.parent / "blended")
    assert ended.code == 0
    assert "warning" not in ended.err
    (dtd / "woven/woven_0002.jpg").write_bytes(b"no image")
    other = out.with_name("other")
    line = run.refused("synth", "import-textures", dtd, "--out", other)
    assert "1 of 4 images cannot be read" in line
    assert not list(other.rglob("*.json"))
    assert "no image files below" in run.refused(
        "synth", "import-textures", out / "imported-textures/dtd/shards", "--out", other
    )
    (dtd / "woven/woven_0002.jpg").unlink()
    assert "is inside" in run.refused("synth", "import-textures", dtd, "--out", dtd / "sia")


# Noise


@pytest.mark.parametrize("grey", [False, True])
def test_noise_is_uniform_and_as_grey_as_the_product(grey: bool) -> None:
    image, mask = noise(picture(0, (128, 128)), generator(0), grey)
    assert mask is None
    assert (image[..., 0] == image[..., 1]).all() == grey
    counts = np.bincount(image[..., 0].ravel(), minlength=256)
    expected = image[..., 0].size / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 150 < chi_squared < 370  # 255 degrees of freedom: mean 255, deviation 22.6


# CutPaste


def test_patches_have_the_published_sizes() -> None:
    rng = generator(0)
    sizes = np.array([patch_size(1000, 1000, rng) for _ in range(4000)])
    areas, aspects = sizes.prod(axis=1) / 1e6, sizes[:, 1] / sizes[:, 0]
    assert 0.0195 < areas.min() < 0.021
    assert 0.149 < areas.max() < 0.1505
    assert areas.mean() == pytest.approx(0.085, abs=0.003)
    assert 1 / 3.32 < aspects.min() < 0.31
    assert 3.2 < aspects.max() < 3.32
    assert (aspects > 1).mean() == pytest.approx(0.5, abs=0.03)


def test_a_patch_fits_into_a_narrow_image() -> None:
    rng = generator(0)
    for _ in range(200):
        h, w = patch_size(8, 100, rng)
        assert 1 <= h <= 8
        assert 1 <= w <= 100


def test_cutpaste_changes_its_mask_only_and_pastes_a_part_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "JITTER", 0.0)
    for seed in range(20):
        normal = picture(seed)
        image, mask = cutpaste(normal, generator(seed), False)
        assert mask is not None
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)
        np.testing.assert_array_equal(image[~mask], normal[~mask])
        patch = image[top:bottom, left:right]
        windows = np.lib.stride_tricks.sliding_window_view(normal, patch.shape)[:, :, 0]
        assert (windows == patch).all(axis=(2, 3, 4)).any()


def test_cutpaste_of_one_colour_says_so() -> None:
    with pytest.raises(UserError, match="changed nothing"):
        cutpaste(np.zeros((16, 16, 3), np.uint8), generator(0), False)


def test_a_shifted_image_is_rolled_round_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "JITTER", 0.0)
    normal, offsets = picture(1, (6, 5)), set()
    for seed in range(60):
        image, mask = shifted(normal, generator(seed), False)
        assert mask is None
        found = [
            (y, x)
            for y in range(6)
            for x in range(5)
            if (image == np.roll(np.roll(normal, y, axis=0), x, axis=1)).all()
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert (0, 0) not in offsets
    assert len(offsets) > 20


def test_jitter_is_small_keeps_grey_and_changes_colours() -> None:
    grey = np.repeat(picture(2)[..., :1], 3, axis=2)
    for seed in range(10):
        changed = jittered(grey, generator(seed))
        assert (changed[..., :1] == changed).all()
        assert np.abs(changed.astype(int) - grey).max() <= 0.1 * 255 + 0.1 * 140 + 1
    colour = np.full((8, 8, 3), (200, 80, 80), np.uint8)
    hues = [jittered(colour, generator(seed))[0, 0].astype(int) for seed in range(20)]
    assert min(g - b for _, g, b in hues) < -20  # towards violet
    assert max(g - b for _, g, b in hues) > 20  # towards orange
    assert all(red > max(g, b) for red, g, b in hues)


def test_no_jitter_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "JITTER", 0.0)
    image = picture(3, (64, 64))
    np.testing.assert_array_equal(jittered(image, generator(0)), image)


# Folders


@pytest.mark.parametrize("method", BASELINES)
def test_a_folder_grows_and_its_images_hang_on_seed_and_index(
    normals: Normals, tmp_path: Path, method: str
) -> None:
    write_baseline(normals, method, tmp_path / "a", 3, seed=5)
    grown = write_baseline(normals, method, tmp_path / "a", 12, seed=5).folder
    whole = write_baseline(normals, method, tmp_path / "b", 12, seed=5).folder
    other = write_baseline(normals, method, tmp_path / "c", 12, seed=6).folder
    assert [row["sha256"] for row in open_sia(grown).rows] == [
        row["sha256"] for row in open_sia(whole).rows
    ]
    assert len({row["sha256"] for path in (whole, other) for row in open_sia(path).rows}) == 24
    folder = open_sia(whole, kind=BASELINES[method].kind)
    assert (folder.dataset, folder.category, folder.product) == ("folder", "widget", "widget")
    assert folder.config["method"] == method
    shown = None if method == "noise" else normals.fit_records[1].path.name  # of 8 to train on
    assert folder.rows[9].get("normal_file") == shown
    if method == "cutpaste":
        changed = (folder.read_image(9) != normals.fit[1]).any(axis=2)
        assert not (changed & ~folder.read_mask(9)).any()


def test_baseline_from_the_shell(run: Command, product: Path, tmp_path: Path) -> None:
    words = ("--root", product, "--out", tmp_path / "sia", "--num", 2, "--size", 16, 16)
    ended = run("synth", "baseline", "--method", "shifted", *words)
    assert (ended.code, ended.out) == (0, f"SIA folder: {tmp_path}/sia/folder/widget\n")
    assert run("synth", "validate", tmp_path / "sia/folder/widget").code == 0
    assert "method" in run.refused("synth", "baseline", "--method", "noise", *words)
    (part,) = open_source([Part("sia", tmp_path / "sia")]).parts
    assert part.category == "widget"
