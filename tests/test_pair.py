from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny import UNET, write_model

from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.base.seeding import generator
from synth.data.catalog import open_category
from synth.data.foreground import EVERYTHING, ForegroundRule
from synth.data.normals import Normals, load_normals
from synth.diffusion.config import SdasConfig
from synth.diffusion.model import DiffusionModel, load_model
from synth.diffusion.pair import (
    Pairing,
    chain_position,
    make_pairing,
    make_start,
    timestep,
)
from synth.diffusion.sampling import sample_images
from synth.images import read_image, write_png
from synth.making.generate import generate_sia, remake_image
from synth.pictures import Images
from synth.sia.reader import open_sia
from synth.sia.strength import Strength
from synth.sia.validate import validate_sia

SIZE = (16, 24)
CONFIG = SdasConfig(strength=Strength((0.5,)), num_steps=4)
DEPTH = 0.5


def noise_images(num: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Images:
    rng = np.random.default_rng(seed)
    return rng.integers(60, 200, (num, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    about = {"dataset": "folder", "category": "nut", "data": {"digest": "of other images"}}
    return write_model(folder, UNET, **about)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> DiffusionModel:
    return load_model(model_folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of equal names in nested folders."""
    folder = tmp_path_factory.mktemp("data") / "nut"
    for number, image in enumerate(noise_images(6)):
        write_png(folder / "ab"[number % 2] / f"{number // 2}.png", image)
    return folder


@pytest.fixture(scope="module")
def normals(root: Path) -> Normals:
    return load_normals(open_category("folder", root), SIZE, no_bars)


@pytest.fixture(scope="module")
def pairing(model: DiffusionModel, normals: Normals, root: Path) -> Pairing:
    return make_pairing(model, normals, DEPTH, CONFIG.seed, CONFIG.num_steps, EVERYTHING, root)


# Depth


@pytest.mark.parametrize(
    ("depth", "num_steps", "k", "t"),
    [
        (0.1, 20, 1, 50),
        (0.35, 20, 6, 300),
        (0.5, 20, 9, 450),
        (0.95, 20, 18, 900),
        (0.5, 4, 1, 250),
    ],
)
def test_depth_is_the_share_of_the_steps_that_remain(
    depth: float, num_steps: int, k: int, t: int
) -> None:
    assert chain_position(depth, num_steps) == k
    assert timestep(depth, num_steps) == t


@pytest.mark.parametrize("depth", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_depth_out_of_range_is_refused(depth: float) -> None:
    with pytest.raises(UserError, match=r"depth .*must lie between 0 .* and 1"):
        chain_position(depth, 20)


def test_a_single_step_is_refused_with_the_least_depth() -> None:
    with pytest.raises(UserError, match=r"1 of 20 steps.*give 0\.1 or more"):
        chain_position(0.05, 20)


# Images


def pair_images(
    model: DiffusionModel,
    normals: Images,
    depth: float,
    strengths: list[float],
    seed: int,
    indices: Sequence[int],
    num_steps: int,
    regions: np.ndarray | None = None,
) -> Images:
    start = make_start(model, normals, depth, num_steps, regions)
    return sample_images(model, strengths, seed, indices, num_steps, start=start)


def test_a_pair_at_strength_0_is_diffusers_noising_and_denoising(model: DiffusionModel) -> None:
    normals, depth = noise_images(1), 0.4
    ours = pair_images(model, normals, depth, [0.0], 5, [7], 20)
    reference = DDPMScheduler(
        1000, 1e-4, 0.02, variance_type="learned_range", timestep_spacing="leading"
    )
    reference.set_timesteps(20)
    g = generator(5, 7)
    x_0 = torch.from_numpy(normals).permute(0, 3, 1, 2).float() / 127.5 - 1
    timesteps = [t for t in reference.timesteps if t <= 350]  # 8 of 20 steps
    assert len(timesteps) == 8
    eps = torch.randn(x_0.shape[1:], generator=g)[None]
    x = reference.add_noise(x_0, eps, torch.tensor([350]))
    for t in timesteps:
        x = reference.step(model.unet(x, t).sample, int(t), x, generator=g, return_dict=False)[0]
    theirs = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() <= 1


def test_a_pair_depends_on_its_own_normal_image_strength_and_index(model: DiffusionModel) -> None:
    normals = noise_images(3)

    def draw(strengths: list[float], *indices: int) -> np.ndarray:
        few = normals[list(indices)]
        return pair_images(model, few, 0.5, strengths, 1, indices, 10).astype(int)

    batch = draw([0.0, 0.2, 0.5], 0, 1, 2)
    # Batched convolutions round differently, which may tip a grey level.
    assert np.abs(draw([0.5, 0.0], 2, 0) - batch[[2, 0]]).max() <= 1
    assert np.abs(draw([0.0], 2) - batch[2]).max() > 1
    others = pair_images(model, normals[[1]], 0.5, [0.0], 1, [0], 10).astype(int)
    assert np.abs(others - batch[0]).max() > 1


def test_normal_images_that_the_model_cannot_draw_are_refused(
    model: DiffusionModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="got 8x24 pixels, the model draws 16x24"):
        make_start(model, noise_images(1)[:, :8], 0.5, 20)
    grey = load_model(write_model(tmp_path, replace(UNET, num_channels=1)), torch.device("cpu"))
    with pytest.raises(UserError, match="got colours, the model draws grey"):
        make_start(grey, noise_images(1), 0.5, 20)
    one = np.repeat(noise_images(1)[..., :1], 3, axis=3)
    start = make_start(grey, one, 0.5, 20)
    assert start.images.shape == (1, 1, *SIZE)
    torch.testing.assert_close(
        (start.images[0, 0] + 1) * 127.5, torch.from_numpy(one[0, ..., 0]).float()
    )


def test_outside_its_region_a_pair_is_its_normal_image(model: DiffusionModel) -> None:
    normals, regions = noise_images(2), np.zeros((2, *SIZE), np.bool_)
    regions[0, 3:9, 4:20] = True
    pairs = pair_images(model, normals, 0.5, [0.5, 0.5], 0, [0, 1], 10, regions=regions)
    np.testing.assert_array_equal(pairs[~regions], normals[~regions])
    assert (pairs[regions] != normals[regions]).mean() > 0.5


# Folders


def test_rows_name_the_normal_image_that_surrounds_the_anomaly(
    model: DiffusionModel, pairing: Pairing, root: Path, tmp_path: Path
) -> None:
    path = generate_sia(model, CONFIG, tmp_path, 9, batch_size=4, pairing=pairing).folder
    folder = open_sia(path, kind="blended")
    assert folder.config["method"] == "sdas-pair"
    assert folder.config["pair"]["depth"] == DEPTH
    for number, row in enumerate(folder.rows):
        normal, mask = read_image(root / row["normal_file"]), folder.read_mask(number)
        image = folder.read_image(number)
        assert mask.any()
        np.testing.assert_array_equal(image[~mask], normal[~mask])
        assert (image[mask] != normal[mask]).mean() > 0.5
        assert (row["strength"], row["depth"]) == (0.5, 250)
    used = {row["normal_file"] for row in folder.rows}
    assert used == set(pairing.files)
    assert len(used) == len(pairing.images) < 9
    assert all(name[:2] in ("a/", "b/") for name in used)
    lines: list[str] = []
    validate_sia(path, lines.append)
    assert lines == []


class Killed(BaseException):
    pass


def test_a_stopped_folder_of_pairs_goes_on_to_the_same_bytes(
    model: DiffusionModel, pairing: Pairing, tmp_path: Path
) -> None:
    def generate(name: str, on_image: Callable[[int, int], None] | None = None) -> Path:
        about = {"batch_size": 2, "pairing": pairing, "on_image": on_image}
        return generate_sia(model, CONFIG, tmp_path / name, 7, **about).folder

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    def contents(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    with pytest.raises(Killed):
        generate("parts", stop)
    assert contents(generate("parts")) == contents(generate("whole"))


def test_a_pair_is_made_again_from_its_row_and_its_normal_images(
    model: DiffusionModel, normals: Normals, pairing: Pairing, tmp_path: Path
) -> None:
    made = generate_sia(model, CONFIG, tmp_path, 3, batch_size=1, pairing=pairing).folder
    folder = open_sia(made)
    assert remake_image(model, folder, 2, tmp_path / "again", pairing).identical
    with pytest.raises(UserError, match=r"made from other normal images .*give the --dataset"):
        remake_image(model, folder, 2, tmp_path / "again")
    others = pairing._replace(images=pairing.images + np.uint8(1))
    with pytest.raises(UserError, match=r"other normal images \(normals: .* there, .* here\)"):
        remake_image(model, folder, 2, tmp_path / "again", others)
    with pytest.raises(UserError, match=r"config\.pair\.normals: .* there, .* here"):
        generate_sia(model, CONFIG, tmp_path, 4, batch_size=1, pairing=others)


def test_regions_lie_on_the_foreground_and_belong_to_the_number(pairing: Pairing) -> None:
    half = noise_images(2)
    half[:, :, 12:] = 0
    bright = ForegroundRule(method="otsu", polarity="bright")
    product = pairing._replace(images=half, files=["0.png", "1.png"], foreground=bright)
    regions = np.stack([product.region(number) for number in range(20)])
    assert regions.any((1, 2)).all()
    assert not regions[:, :, 13:].any()
    assert len({region.tobytes() for region in regions}) > 10
    np.testing.assert_array_equal(product.region(7), regions[7])


def test_an_image_without_foreground_is_named(pairing: Pairing) -> None:
    class Nothing(ForegroundRule):
        def apply(self, image: np.ndarray) -> np.ndarray:
            return np.zeros(image.shape[:2], np.bool_)

    bare = pairing._replace(foreground=Nothing(method="everything"))
    with pytest.raises(UserError, match=r"[ab]/\d\.png: its foreground .*0\.0% .*--foreground"):
        bare.region(0)


def test_normal_images_of_another_category_are_refused(
    model: DiffusionModel, normals: Normals
) -> None:
    other = normals._replace(category=replace(normals.category, name="bolt"))
    with pytest.raises(UserError, match="got folder/bolt, the model is of folder/nut"):
        make_pairing(model, other, DEPTH, 0, 4, EVERYTHING)


# The command


def test_pairs_from_the_command_line(
    monkeypatch, capsys, model_folder: Path, root: Path, tmp_path: Path
) -> None:
    run = Command(monkeypatch, capsys)
    words = ("synth", "generate", "--model", model_folder, "--out", tmp_path / "sia")
    words += ("--num", 3, "--num-steps", 4)
    pairs = ("--pair", 0.5, "--root", root, "--foreground", "everything")
    made = run(*words, *pairs)
    assert made.code == 0, made
    assert made.out == f"SIA folder: {tmp_path / 'sia/folder/nut'}\n"
    assert "normal images of nut are not the ones that the model was trained on" in made.err
    folder = open_sia(tmp_path / "sia", kind="blended")
    row = ("--row", tmp_path / "sia/folder/nut", 1, "--root", root)
    again = run(*words, *row)
    assert again.out.startswith("image 1: identical")

    assert "needs a folder; give --root" in run.refused(*words, "--pair", 0.5)
    assert "got depth 1.5, must lie between" in run.refused(*words, "--pair", 1.5, *pairs[2:])
    assert "without --pair" in run.refused(*words, "--root", root)
    assert "not used with --row" in run.refused(*words, *row, *pairs)
    assert "made from other normal images" in run.refused(*words, *row[:3], "--root", root / "a")
    assert folder.rows == open_sia(tmp_path / "sia").rows


def test_a_model_of_several_categories_draws_into_the_images_of_each(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    names = ["bolt", "nut"]
    for name in names:
        for number, image in enumerate(noise_images(4, seed=len(name))):
            write_png(tmp_path / "data" / name / f"train/good/{number}.png", image)
    unet = replace(UNET, num_categories=2)
    about = {"dataset": "mvtec", "category": None, "categories": names}
    model_folder = write_model(tmp_path / "model", unet, **about)
    run = Command(monkeypatch, capsys)
    words = ("synth", "generate", "--model", model_folder, "--out", tmp_path / "sia")
    words += ("--num", 2, "--num-steps", 4, "--pair", 0.5, "--root", tmp_path / "data")
    ended = run(*words, "--foreground", "everything")
    assert ended.code == 0, ended
    for name in names:
        folder = open_sia(tmp_path / "sia/mvtec" / name, kind="blended")
        for number, row in enumerate(folder.rows):
            assert row["normal_file"].startswith(f"{name}/train/good/")
            normal, mask = (
                read_image(tmp_path / "data" / row["normal_file"]),
                folder.read_mask(number),
            )
            np.testing.assert_array_equal(folder.read_image(number)[~mask], normal[~mask])
