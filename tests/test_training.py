import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel

from synth.base.errors import UserError
from synth.base.resume import STATE_FILE, TRACE_FILE
from synth.diffusion.config import RunConfig, TrainConfig, UNetConfig
from synth.diffusion.options import DiffusionOptions
from synth.diffusion.training import draw_batch, draw_timestep, train_ddpm

TINY = UNetConfig(
    image_size=(16, 16),
    block_channels=(8, 16),
    attention_levels=(1,),
    head_channels=8,
    norm_groups=4,
)
CONFIG = TrainConfig(
    unet=TINY, num_steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=3, precision="fp32"
)

PROGRAM = """
    import json, sys, time
    from pathlib import Path
    import numpy as np
    import torch
    from accelerate import Accelerator
    from synth.diffusion.config import RunConfig, TrainConfig
    from synth.diffusion.training import train_ddpm

    torch.set_num_threads(1)
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    values = json.loads(sys.argv[3])
    config = TrainConfig.from_json(values)
    accelerator = Accelerator(cpu=True)
    images = np.load(sys.argv[4])
    unet = train_ddpm(
        accelerator, config, list(images), out, lambda *_: time.sleep(seconds),
        run=RunConfig(**json.loads(sys.argv[5])), checkpoint_steps=3
    )
    if accelerator.is_main_process:
        torch.save(unet.state_dict(), out / "weights.pt")
"""


def some_images(num: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)


def run_here(
    folder: Path, config: TrainConfig = CONFIG, images: np.ndarray | None = None, **how: Any
) -> dict[str, torch.Tensor]:
    images = some_images() if images is None else images
    accelerator = Accelerator(cpu=True)
    unet = train_ddpm(accelerator, config, [images], folder, checkpoint_steps=3, **how)
    return {name: value.clone() for name, value in unet.state_dict().items()}


def trace(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / TRACE_FILE).read_text().splitlines()]


def command(
    folder: Path,
    *launcher: str,
    seconds: float = 0,
    config: TrainConfig = CONFIG,
    images: Sequence[np.ndarray] = (),
    **run: Any,
) -> list[str]:
    folder.mkdir(exist_ok=True)
    program, pixels = folder / "program.py", folder / "images.npy"
    program.write_text(textwrap.dedent(PROGRAM))
    np.save(pixels, np.stack(images or [some_images()]))
    values = [json.dumps(config.to_json()), str(pixels), json.dumps(run)]
    return [sys.executable, *launcher, str(program), str(folder), str(seconds), *values]


ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture
def one_thread():
    """Sums of one thread, as in the processes that are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_trace_and_weights(tmp_path: Path) -> None:
    whole = run_here(tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed, seconds=0.3), env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while not (killed / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (killed / "weights.pt").exists()
    assert 3 <= len(trace(killed)) < CONFIG.num_steps
    continued = run_here(killed)
    assert trace(killed) == trace(tmp_path / "whole")
    assert all(torch.equal(continued[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("one_thread")
def test_a_finished_run_trains_on_as_one_that_was_longer_from_the_start(tmp_path: Path) -> None:
    run_here(tmp_path / "parts", replace(CONFIG, num_steps=5))
    parts = run_here(tmp_path / "parts")
    whole = run_here(tmp_path / "whole")
    assert trace(tmp_path / "parts") == trace(tmp_path / "whole")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def assert_same_weights(
    some: dict[str, torch.Tensor], others: dict[str, torch.Tensor], atol: float
) -> None:
    """Equal but for the order of sums.

    Keys' biases are left out: softmax cancels them, so that their gradient is rounding alone, and
    Adam makes whole steps of it.
    """
    assert some.keys() == others.keys()
    for name in some:
        if not name.endswith("to_k.bias"):
            torch.testing.assert_close(some[name], others[name], rtol=0, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_give_the_weights_of_one(tmp_path: Path, accumulate: int) -> None:
    config = replace(CONFIG, unet=replace(TINY, num_categories=2), learning_rate=1e-3)
    images = [some_images(), some_images()[:, ::-1]]
    accelerator, out = Accelerator(cpu=True), tmp_path / "one"
    one = train_ddpm(accelerator, config, images, out).state_dict()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = command(
        tmp_path / "two", *launcher, config=config, images=images, accumulate=accumulate
    )
    subprocess.run(words, env=ENVIRONMENT, check=True, timeout=300)
    two = torch.load(tmp_path / "two/weights.pt", weights_only=True)
    assert_same_weights(two, one, atol=2e-5)
    traces = [trace(folder) for folder in (tmp_path / "two", out)]
    assert [row["step"] for row in traces[0]] == list(range(1, CONFIG.num_steps + 1))
    for name in ("loss", "mse", "vlb", "gradient_norm"):
        got, expected = ([row[name] for row in rows] for rows in traces)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("accumulate", [2, 4])
def test_an_accumulated_batch_gives_the_weights_of_a_whole_one(
    tmp_path: Path, accumulate: int
) -> None:
    config = replace(CONFIG, num_steps=6, learning_rate=1e-3)
    whole = run_here(tmp_path / "whole", config)
    parts = run_here(tmp_path / "parts", config, run=RunConfig(accumulate=accumulate))
    assert_same_weights(parts, whole, atol=2e-5)
    moved = run_here(tmp_path / "other", replace(config, seed=1))
    with pytest.raises(AssertionError):
        assert_same_weights(moved, whole, atol=2e-5)
    for got, expected in zip(trace(tmp_path / "parts"), trace(tmp_path / "whole"), strict=True):
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_gradient_checkpointing_computes_twice_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = list[bool]()
    forward = ResnetBlock2D.forward

    def counted(self: ResnetBlock2D, *args: Any, **kwargs: Any) -> torch.Tensor:
        passes.append(True)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    config = replace(CONFIG, num_steps=3)
    usual = run_here(tmp_path / "usual", config)
    once = len(passes)
    saving = run_here(tmp_path / "saving", config, run=RunConfig(gradient_checkpointing=True))
    assert len(passes) - once > 1.5 * once
    assert all(torch.equal(saving[name], usual[name]) for name in usual)
    assert trace(tmp_path / "saving") == trace(tmp_path / "usual")


@pytest.mark.usefixtures("one_thread")
def test_looks_see_averaged_weights_and_leave_no_mark(tmp_path: Path) -> None:
    plain = run_here(tmp_path / "plain")
    seen = dict[int, dict[str, torch.Tensor]]()

    def look(done: int, unet: UNet2DModel) -> None:
        assert not unet.training
        torch.randn(3)  # what a look draws globally, training does not notice
        seen[done] = {name: value.clone() for name, value in unet.state_dict().items()}

    looked = run_here(tmp_path / "looked", run=RunConfig(sample_every=5), look=look)
    assert all(torch.equal(looked[name], plain[name]) for name in plain)
    assert trace(tmp_path / "looked") == trace(tmp_path / "plain")
    assert sorted(seen) == [5, 10]
    five = run_here(tmp_path / "five", replace(CONFIG, num_steps=5))
    assert all(torch.equal(seen[5][name], five[name]) for name in five)


def test_given_weights_take_the_place_of_random_ones(tmp_path: Path) -> None:
    config = replace(CONFIG, num_steps=1, learning_rate=1e-12)
    initial = {"conv_in.weight": torch.full((8, 3, 3, 3), 0.25)}
    started = run_here(tmp_path / "started", config, initial=initial)
    usual = run_here(tmp_path / "usual", config)
    torch.testing.assert_close(started["conv_in.weight"], initial["conv_in.weight"])
    name = "time_embedding.linear_1.weight"
    torch.testing.assert_close(started[name], usual[name])


def test_the_weights_do_not_touch_the_global_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run_here(tmp_path, replace(CONFIG, num_steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_falls_on_one_flat_colour(tmp_path: Path) -> None:
    images = np.full((4, 16, 16, 3), 200, np.uint8)
    run_here(tmp_path, replace(CONFIG, num_steps=60), images)
    losses = [row["mse"] for row in trace(tmp_path)]
    assert losses[0] == pytest.approx(1, abs=0.1)  # eps = 0 is the network's first answer
    assert np.mean(losses[-20:]) < 0.6


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    run_here(tmp_path, replace(CONFIG, num_steps=2))
    with pytest.raises(UserError, match=r"num_steps: got 1, but .* has done 2 already"):
        run_here(tmp_path, replace(CONFIG, num_steps=1))


# Batches


@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_processes_shares_make_up_the_batch_of_one(num_processes: int) -> None:
    images = some_images()
    whole = draw_batch(CONFIG, [images], step=3)
    shares = [draw_batch(CONFIG, [images], 3, rank, num_processes) for rank in range(num_processes)]
    for position, tensor in enumerate(whole[:3]):
        assert tensor is not None
        for rank, share in enumerate(shares):
            assert torch.equal(share[position], tensor[rank::num_processes])


def test_every_image_is_drawn_once_an_epoch() -> None:
    images = np.repeat(np.arange(8, dtype=np.uint8), 16 * 16 * 3).reshape(8, 16, 16, 3)
    epochs = []
    for first in (0, 2):
        x_0 = torch.cat([draw_batch(CONFIG, [images], step)[0] for step in (first, first + 1)])
        epochs.append(((x_0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_noise_and_timesteps_have_their_distributions() -> None:
    config = replace(CONFIG, batch_size=64)
    draws = [draw_batch(config, [some_images()], step) for step in range(8)]
    eps, t = torch.cat([d[1] for d in draws]), torch.cat([d[2] for d in draws]).double()
    assert eps.mean().item() == pytest.approx(0, abs=6 / eps.numel() ** 0.5)
    assert eps.std().item() == pytest.approx(1, abs=6 / (2 * eps.numel()) ** 0.5)
    assert t.mean().item() == pytest.approx(499.5, abs=6 * 288.7 / len(t) ** 0.5)
    assert t.min() >= 0
    assert 950 < t.max() <= 999


def test_flips_are_drawn_only_where_they_are_allowed() -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, 0, 0] = 255
    corners = {
        "none": {(0, 0)},
        "flip_horizontal": {(0, 0), (0, 15)},
        "flip_vertical": {(0, 0), (15, 0)},
    }
    for name, expected in corners.items():
        config = replace(CONFIG, batch_size=32, **({} if name == "none" else {name: True}))
        x_0 = draw_batch(config, [image], 0).x_0
        places = x_0[:, 0].flatten(1).argmax(dim=1).tolist()
        assert {divmod(place, 16) for place in places} == expected


def test_quarter_turns_are_drawn_evenly() -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, 0, 1] = 255
    config = replace(CONFIG, batch_size=64, rotate=True)
    places = draw_batch(config, [image], 0).x_0[:, 0].flatten(1).argmax(dim=1).tolist()
    counts = Counter(divmod(place, 16) for place in places)
    assert set(counts) == {(0, 1), (14, 0), (15, 14), (1, 15)}
    assert min(counts.values()) >= 6  # 16 are expected of each; fewer than 6 has odds of 1 in 1000


def test_categories_take_turns_whatever_their_numbers_of_images() -> None:
    config = replace(CONFIG, unet=replace(TINY, num_categories=3))
    images = [np.full((num, 16, 16, 3), 100 * k, np.uint8) for k, num in enumerate((2, 9, 3))]
    for number in range(3):
        images[0][:, :, :, 0], images[2][number] = 0, 200 + number
    batches = [draw_batch(config, images, step) for step in range(9)]
    labels = torch.cat([b.label for b in batches if b.label is not None]).tolist()
    x_0 = torch.cat([batch.x_0 for batch in batches])[:, 0, 0, 0]
    levels = ((x_0 + 1) * 127.5).round().int().tolist()
    assert labels == [n % 3 for n in range(36)]
    assert [min(level // 100, 2) for level in levels] == labels
    for epoch in range(4):  # of the third category: each of its images once
        drawn = [level for level, label in zip(levels, labels, strict=True) if label == 2]
        assert sorted(drawn[3 * epoch : 3 * epoch + 3]) == [200, 201, 202]


def test_grey_networks_get_one_channel() -> None:
    config = replace(CONFIG, unet=replace(TINY, num_channels=1))
    x_0, eps, _, label = draw_batch(config, [some_images()], 0)
    assert label is None
    assert x_0.shape == eps.shape == (4, 1, 16, 16)


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(UserError, match="batch_size: got 4, must be a multiple of 3: 3 processes"):
        train_ddpm(Accelerator(cpu=True), CONFIG, [some_images()], tmp_path)


def test_a_share_that_cannot_be_cut_into_parts_is_refused(tmp_path: Path) -> None:
    run = RunConfig(accumulate=3)
    with pytest.raises(UserError, match="must be a multiple of 3: 1 processes times --accumulate"):
        train_ddpm(Accelerator(cpu=True), CONFIG, [some_images()], tmp_path, run=run)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_timesteps_are_those_of_a_power_of_a_uniform_number(power):
    config = replace(CONFIG, timestep_power=power)
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_timestep(config, g) for _ in range(4000)]).numpy()
    assert drawn.dtype == np.int64
    assert 0 <= drawn.min() <= drawn.max() <= 999
    for t in (100, 400, 800):  # P(T u^p < t) = (t / T)^(1 / p)
        assert np.mean(drawn < t) == pytest.approx((t / 1000) ** (1 / power), abs=0.03)


def test_uniform_timesteps_are_drawn_as_ever():
    g, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert draw_timestep(CONFIG, g) == torch.randint(1000, (), generator=other)


def test_a_power_that_draws_nothing_is_refused():
    for power in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="timestep_power: got"):
            replace(CONFIG, timestep_power=power)


def test_only_networks_that_predict_more_than_noise_are_trained_on_little_noise():
    assert DiffusionOptions().config().timestep_power == 2
    assert DiffusionOptions(prediction="epsilon").config().timestep_power == 1
    assert DiffusionOptions(preset="adm").config().timestep_power == 1
    older = DiffusionOptions().config().to_json()
    del older["timestep_power"]
    assert TrainConfig.from_json(older).timestep_power == 1
