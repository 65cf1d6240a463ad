"""Glancing at the Patch as a detector: holes, stains, stages, scores, and what it refuses."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from products import normal_image

from detect.calibration import calibrate
from detect.checkpoint import TrainedDetector
from detect.data.samples import BlendedDataset
from detect.exporting.run import export_detector
from detect.images import to_chw, to_unit
from detect.methods.glancing import detector as module
from detect.methods.glancing.detector import PRESETS, Glancing, GlancingConfig, Teacher
from detect.methods.glancing.global_net import REACH_PX, around
from detect.methods.glancing.holes import Grid, Hole
from detect.methods.glancing.local import LAYERS, receptive_field
from detect.methods.glancing.patches import grid_patches, random_patches, stained
from detect.packing import packed
from detect.training.loop import Feed, train_stages
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.data.foreground import EVERYTHING

SIDE = 64
CONFIG = GlancingConfig(
    image_size=(SIDE, SIDE + 24),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2), weights="random"),
    num_features=6,
    widths=(4, 6, 8),
    patches_per_image=3,
    period=3,
    batch_size=2,
    distil_steps=2,
    tune_steps=2,
    num_steps=2,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, config: GlancingConfig = CONFIG) -> torch.Tensor:
    return to_unit(torch.stack([to_chw(normal_image(n, config.image_size)) for n in range(count)]))


def opened(config: GlancingConfig = CONFIG) -> Glancing:
    """A detector whose networks do something: some begin as a skip."""
    detector = Glancing(config, torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.2), 5)
    generator = rng(1)
    for parameter in detector.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return detector.eval()


# Holes


@pytest.mark.parametrize("mode", ["lattice", "exact"])
@pytest.mark.parametrize("patch", LAYERS)
@pytest.mark.parametrize("per_hole", [1, 2, 3])
def test_every_patch_is_hidden_once_and_wholly(mode, patch, per_hole):
    field = receptive_field(patch)
    grid = Grid((150, 131), field, 8, per_hole, 3)
    whole = Hole(0, 0, 150, 131)
    seen = torch.zeros(grid.shape)
    for hidden in grid.sets(mode):
        assert mode == "lattice" or len(hidden.holes) == 1
        mask = hidden.mask(whole)[0, 0]
        covered = torch.zeros_like(mask)
        for row, column in hidden.patches.tolist():
            seen[row, column] += 1
            box = slice(8 * row, 8 * row + field.size), slice(8 * column, 8 * column + field.size)
            assert mask[box].sum() == 0
            covered[box] = 1
        assert torch.equal(covered, 1 - mask)  # and nothing else is hidden
    assert seen.eq(1).all()
    R, S = grid.shape
    assert (R - 1) * 8 + field.size <= 150 < R * 8 + field.size
    assert (S - 1) * 8 + field.size <= 131 < S * 8 + field.size


@pytest.mark.parametrize("size", [(256, 256), (300, 217), (64, 256)])
def test_the_window_round_a_hole_tells_what_the_whole_image_tells(size):
    config = replace(CONFIG, image_size=size, period=2)
    net = opened(config).surroundings.double()
    image = torch.randn(1, 3, *size, generator=rng(), dtype=torch.float64)
    whole, sets = Hole(0, 0, *size), [*config.grid.sets("exact")]
    for hidden in (sets[0], sets[-1], sets[len(sets) // 2], sets[len(sets) // 3]):
        w = config.grid.context(hidden)
        assert w.top >= 0 <= w.left
        assert w.bottom <= size[0]
        assert w.right <= size[1]
        told = [
            around(
                net(image[..., h.top : h.bottom, h.left : h.right], hidden.mask(h).double()),
                config.grid.cells(hidden.patches, h),
            )
            for h in (whole, w)
        ]
        torch.testing.assert_close(told[1], told[0], rtol=1e-5, atol=1e-5)


def test_no_pixel_beyond_the_reach_matters_and_some_within_do():
    config = replace(CONFIG, image_size=(320, 320))
    detector = opened(config)
    hidden = [*config.grid.sets("exact")][len([*config.grid.sets("exact")]) // 2]
    (hole,) = hidden.holes
    whole = Hole(0, 0, 320, 320)
    image = torch.randn(1, 3, 320, 320, generator=rng()).requires_grad_()
    cells = config.grid.cells(hidden.patches, whole)
    around(detector.surroundings(image, hidden.mask(whole)), cells).square().sum().backward()
    assert image.grad is not None
    touched = image.grad[0].abs().sum(0).nonzero()
    first, last = touched.min(0).values, touched.max(0).values
    assert (first >= torch.tensor(hole[:2]) - REACH_PX).all()
    assert (last < torch.tensor(hole[2:]) + REACH_PX).all()
    assert (first < torch.tensor(hole[:2]) - REACH_PX // 2).all()


def test_what_a_patch_shows_never_reaches_what_is_told_of_it():
    detector, image = opened(), images(1)
    told = {mode: detector.described(image, mode)[1] for mode in ("lattice", "exact")}
    size = CONFIG.grid.field.size
    other = image.clone()
    other[..., 16 : 16 + size, 24 : 24 + size] = torch.rand(3, size, size, generator=rng())
    local, _ = detector.described(image)
    changed, _ = detector.described(other)
    assert not torch.equal(changed[:, 2, 3], local[:, 2, 3])
    for mode, before in told.items():
        after = detector.described(other, mode)[1]
        assert torch.equal(after[:, 2, 3], before[:, 2, 3])
        assert not torch.equal(after, before)


def test_scoring_patch_by_patch_gives_the_same():
    """As the paper describes it: each patch cut out, and masked in the whole image."""
    config = replace(CONFIG, mode="exact", patches_per_hole=1)
    detector, image = opened(config), images(1, config)
    local, told = detector.described(image)
    normalised = (image - detector.mean) / detector.std
    size, stride = config.grid.field.size, config.stride
    for row, column in ((0, 0), (2, 3), (4, 7)):
        top, left = row * stride, column * stride
        patch = normalised[..., top : top + size, left : left + size]
        torch.testing.assert_close(detector.local(patch)[..., 0, 0], local[:, row, column])
        mask = torch.ones(1, 1, *config.image_size)
        mask[..., top : top + size, left : left + size] = 0
        seen = detector.surroundings(normalised * mask, mask)
        centre = [round((x + (size - 1) / 2) / 8) for x in (top, left)]
        wanted = around(seen, torch.tensor([centre]))[:, 0]
        torch.testing.assert_close(told[:, row, column], wanted, rtol=1e-4, atol=1e-5)


def test_a_lattice_needs_a_fiftieth_of_the_passes_of_single_patches():
    grid = PRESETS["compact"].grid
    num_patches = grid.shape[0] * grid.shape[1]
    assert num_patches == 29 * 29
    assert num_patches >= 50 * len([*grid.sets("lattice")])


# Patches


def test_grid_patches_are_pixels_of_the_image():
    x = images(2)
    cut = grid_patches(x, torch.tensor([[0, 0], [3, 1]]), 30, 8)
    assert torch.equal(cut[1, 1], x[1, :, 24:54, 8:38])
    assert torch.equal(cut[0, 0], x[0, :, :30, :30])


def test_random_patches_are_turned_scaled_and_mirrored_but_nothing_else():
    """Of an image whose pixels tell their place, what a patch shows tells how it was made."""
    side = 200
    row, column = torch.meshgrid(*[torch.linspace(0.3, 0.7, side)] * 2, indexing="ij")
    image = torch.stack([row, column, torch.full_like(row, 0.5)])[None]
    patches = random_patches(image, 400, 9, rng())
    assert patches.shape == (400, 3, 9, 9)
    inner = patches[:, :2, 3:6, 3:6]
    gain_offset = patches[:, 2].mean((1, 2)) - 0.5
    assert gain_offset.abs().max() <= 0.15 + 1e-6
    down = (inner[..., 2, 1] - inner[..., 0, 1]) / 2 * (side - 1) / 0.4  # [400, 2] pixels
    right = (inner[..., 1, 2] - inner[..., 1, 0]) / 2 * (side - 1) / 0.4
    regular = (down.norm(dim=1) - right.norm(dim=1)).abs() < 0.02  # not across a mirrored border
    assert regular.float().mean() > 0.9
    scale = down[regular].norm(dim=1)
    assert 0.5 * 0.7 - 0.01 <= scale.min() < 0.6
    assert 1.8 < scale.max() <= 2 * 1.3 + 0.01
    assert ((down * right).sum(1)[regular].abs() < 0.02).float().mean() > 0.98
    turns = torch.sign(down[regular, 0] * right[regular, 1] - down[regular, 1] * right[regular, 0])
    assert 0.4 < (turns > 0).float().mean() < 0.6


def test_stains_are_small_of_the_images_kind_and_inside_the_patch():
    x = images(2)
    x[0, 2] *= 0.5  # no longer grey
    patches = grid_patches(x, torch.tensor([[0, 0], [2, 2], [3, 4], [4, 7]]).repeat(30, 1), 30, 8)
    before = patches.clone()
    out = stained(patches, rng())
    assert torch.equal(patches, before)
    assert out.shape == patches.shape
    assert out.min() >= 0
    assert out.max() <= 1
    changed = (out - patches).abs().amax(2) > 1e-4  # [2, 120, 30, 30]
    share = changed.float().mean((2, 3))
    assert (share > 0).float().mean() > 0.95
    assert 0.02 < share.mean() < 0.25
    assert share.max() < 3 * 0.2 + 0.15
    assert (out[1].amax(1) - out[1].amin(1)).max() < 1e-6
    assert (out[0].amax(1) - out[0].amin(1)).max() > 0.1


def test_draws_of_an_image_do_not_depend_on_the_others_draws():
    x = images(2)
    assert torch.equal(random_patches(x, 3, 9, rng())[:3], random_patches(x[:1], 3, 9, rng()))


# Training

NORMALS = np.stack([normal_image(n, CONFIG.image_size) for n in range(4)])
DATA = BlendedDataset(NORMALS, EVERYTHING, None, seed=0)


def in_training(config: GlancingConfig = CONFIG) -> Glancing:
    backbone = build_backbone(config.backbone)
    detector = Glancing(config, backbone.mean, backbone.std, sum(backbone.channels))
    usual = random_patches(images(4, config), 4, config.grid.field.size, rng())
    detector.teacher = Teacher(backbone, 32, usual)
    return detector


def trained(folder: Path, config: GlancingConfig = CONFIG, **options) -> Glancing:
    detector = in_training(config)
    feed = Feed(Accelerator(cpu=True), DATA, config.batch_size)
    train_stages(feed, detector, folder, checkpoint_steps=1, **options)
    return detector


class Killed(BaseException):
    pass


def test_killed_in_any_stage_it_ends_with_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole").state_dict()
    for last in range(1, 7):

        def kill(done, total, terms, last=last):
            assert total == 6
            if done == last:
                raise Killed

        folder = tmp_path / str(last)
        with pytest.raises(Killed):
            trained(folder, on_step=kill)
        again = trained(folder).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    fresh = in_training().state_dict()
    moved = {name.split(".")[0] for name, tensor in whole.items() if tensor.ne(fresh[name]).any()}
    assert moved == {"local", "surroundings", "dad", "usual"}


def test_usual_distances_are_those_of_the_training_images(tmp_path):
    detector = trained(tmp_path)
    local, told = detector.described(to_unit(torch.stack([to_chw(x) for x in NORMALS])))
    logs = (local - told).square().mean(-1).log()
    assert detector.usual.running_mean is not None
    assert detector.usual.running_mean.item() == pytest.approx(logs.mean().item(), abs=1e-3)
    assert detector.usual.running_var is not None
    assert detector.usual.running_var.item() == pytest.approx(logs.var().item(), rel=0.1)


def test_the_teachers_numbers_are_standardised():
    backbone = build_backbone(CONFIG.backbone)
    usual = random_patches(images(8), 16, 30, rng())
    described = Teacher(backbone, 64, usual)(usual)
    assert described.shape == (128, sum(backbone.channels))
    torch.testing.assert_close(
        described.mean(0), torch.zeros(described.shape[1]), atol=1e-2, rtol=0
    )
    spread = described.std(0)
    assert spread.max() == pytest.approx(1, abs=1e-3)  # none is made larger than usual
    assert spread.median() == pytest.approx(1, abs=1e-3)


def test_the_comparison_reaches_global_net_by_l_iad_alone():
    detector = in_training()
    batch = next(iter(Feed(Accelerator(cpu=True), DATA, 2).batches(0, 1)))
    terms = detector.comparison_losses(batch, rng())
    terms["l_dad"].backward()
    assert all(p.grad is None for p in detector.surroundings.parameters())
    assert all(p.grad is not None for p in detector.dad.parameters())
    detector.comparison_losses(batch, rng())["l_iad"].backward()
    assert any(p.grad is not None for p in detector.surroundings.parameters())
    assert all(p.grad is None for p in detector.local.parameters())


TRAINED = """
    import sys
    import torch
    from pathlib import Path
    sys.path.insert(0, "tests")
    from detect.training import loop
    from test_glancing_detector import trained

    torch.set_num_threads(1)
    loop.NUM_NORM_BATCHES = 2
    torch.save(trained(Path(sys.argv[1])).state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(TRAINED)]
    root = Path(__file__).parents[1]
    subprocess.run(
        [*program, str(tmp_path / "one"), str(tmp_path / "one.pt")],
        cwd=root,
        check=True,
        timeout=300,
    )
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29581"}
    both = [
        subprocess.Popen(
            [*program, str(tmp_path / "two"), str(tmp_path / f"two{rank}.pt")],
            cwd=root,
            env={**os.environ, **launch, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    alone = torch.load(tmp_path / "one.pt", weights_only=True)
    for rank in "01":
        other = torch.load(tmp_path / f"two{rank}.pt", weights_only=True)
        for name, tensor in alone.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


# Scores


def test_a_score_is_that_of_both_heads_blurred():
    detector, x = opened(), images(2)
    detector.usual.running_mean.fill_(-1.5)
    detector.usual.running_var.fill_(4.0)
    local, told = detector.described(x)
    z = ((local - told).square().mean(-1).log() + 1.5) / (4 + 1e-5) ** 0.5
    real = detector.dad(torch.cat([local, told], -1)).sigmoid()[..., 0]
    iad, dad = detector.head_scores(local, told)
    torch.testing.assert_close(iad[:, 0], z.sigmoid())
    torch.testing.assert_close(dad[:, 0], 1 - real)
    scores = detector.predict(x)
    maps = detector.to_pixels(0.5 * iad + 0.5 * dad)
    assert maps.shape == (2, 1, *CONFIG.image_size)
    assert scores.maps.mean() == pytest.approx(maps.mean().item(), rel=1e-2)
    other = replace(CONFIG, balance=1.0, blur_px=0.01)
    alone = Glancing.from_state(other, detector.state_dict()).eval().predict(x)
    torch.testing.assert_close(alone.maps, detector.to_pixels(iad)[:, 0])


@pytest.mark.parametrize("patch", LAYERS)
def test_a_patchs_score_lies_at_the_centre_of_what_it_shows(patch):
    config = replace(CONFIG, image_size=(160, 136), patch=patch, period=3)
    detector = opened(config)
    R, S = config.grid.shape
    scores = torch.zeros(1, 1, R, S)
    scores[0, 0, 3, 2] = 1
    weights = detector.to_pixels(scores)[0, 0]
    assert weights.shape == (160, 136)
    rows, columns = torch.arange(160.0), torch.arange(136.0)
    centre = (weights.sum(1) @ rows / weights.sum(), weights.sum(0) @ columns / weights.sum())
    half = (config.grid.field.size - 1) / 2
    assert abs(centre[0].item() - (3 * 8 + half)) <= 0.5
    assert abs(centre[1].item() - (2 * 8 + half)) <= 0.5
    scores.fill_(0.25)
    assert torch.equal(detector.to_pixels(scores), torch.full((1, 1, 160, 136), 0.25))


@pytest.mark.parametrize("mode", ["lattice", "exact"])
def test_scores_depend_on_neither_batch_nor_object(mode):
    config = replace(CONFIG, mode=mode)
    detector, x = opened(config), images(3)
    scores = detector.predict(x)
    fresh = Glancing.from_state(config, detector.state_dict()).eval()
    torch.testing.assert_close(fresh.predict(x), scores, rtol=0, atol=0)
    fast = packed(detector)
    for n in range(3):
        alone = fast.predict(x[n : n + 1])
        torch.testing.assert_close(alone.image[0], scores.image[n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.maps[0], scores.maps[n], rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("teacher") for name in detector.state_dict())


@pytest.mark.parametrize("mode", ["lattice", "exact"])
def test_exported_it_scores_as_torch(mode, tmp_path):
    pytest.importorskip("onnxruntime")
    config = replace(CONFIG, mode=mode, image_size=(SIDE, SIDE), period=2)
    about = {"method": "glancing", "dataset": "folder", "category": "widget"}
    about["detector"] = config.to_json()
    detector = opened(config)
    product = TrainedDetector(detector, about, 1, config.image_size, calibrate([1.0], 0.5))
    made = export_detector(product, tmp_path, "onnx")
    assert made.parity.is_allowed
    assert made.parity.score < 1e-4 * made.parity.largest_score


# What is refused


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"stride": 32}, "stride: got 32; allowed are multiples of 4, Local-Net's own, up to 28"),
        ({"stride": 6}, "stride: got 6; allowed are multiples of 4"),
        ({"stride": 0}, "stride: got 0"),
        ({"patch": 20}, "patch: got 20; allowed are 17, 33, 65"),
        ({"image_size": (64, 48)}, "--size: got 64 48; a hole of 38 px and 8 px of context on each "
            "side need 54 px: give a larger --size"),
        ({"image_size": (64, 64), "patch": 65}, "a hole of 68 px"),
        ({"balance": 1.5}, "balance: got 1.5; allowed is 0 to 1"),
        ({"period": 1}, "period: got 1; a lattice needs 2"),
        ({"distil_steps": 0}, "distil_steps: got 0, must be greater than 0"),
        ({"patches_per_image": 0}, "patches_per_image: got 0"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(change, line):
    with pytest.raises(UserError) as refused:
        replace(CONFIG, **change)
    assert line in str(refused.value)


def test_the_presets_are_the_papers_and_the_processors():
    paper = module.RECIPE.presets["paper"]
    assert (paper.backbone.name, paper.mode, paper.patches_per_hole) == ("resnet18", "exact", 1)
    for config in module.RECIPE.presets.values():
        assert config.image_size[0] in (128, 256)
        R, S = config.grid.shape
        assert R * 8 + 22 <= config.image_size[0] < (R + 1) * 8 + 22
        assert S == R
