import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from synth.config import TrainConfig, UNetConfig
from synth.errors import UserError
from synth.resume import STATE_FILE, TRACE_FILE
from synth.training import draw_batch, train_ddpm

TINY = UNetConfig(image_size=(16, 16), block_channels=(8, 16), head_channels=8, norm_groups=4)
CONFIG = TrainConfig(
    unet=TINY, num_steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=3, precision="fp32"
)

PROGRAM = """
    import json, sys, time
    from pathlib import Path
    import numpy as np
    import torch
    from accelerate import Accelerator
    from synth.config import TrainConfig, UNetConfig
    from synth.training import train_ddpm

    torch.set_num_threads(1)
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    values = json.loads(sys.argv[3])
    config = TrainConfig(**values | {"unet": UNetConfig.from_json(values["unet"])})
    accelerator = Accelerator(cpu=True)
    images = np.load(sys.argv[4])
    unet = train_ddpm(
        accelerator, config, images, out, lambda *_: time.sleep(seconds), checkpoint_steps=3
    )
    if accelerator.is_main_process:
        torch.save(unet.state_dict(), out / "weights.pt")
"""


def some_images(num: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)


def run_here(
    folder: Path, config: TrainConfig = CONFIG, images: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    images = some_images() if images is None else images
    unet = train_ddpm(Accelerator(cpu=True), config, images, folder, checkpoint_steps=3)
    return {name: value.clone() for name, value in unet.state_dict().items()}


def trace(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / TRACE_FILE).read_text().splitlines()]


def command(folder: Path, *launcher: str, seconds: float = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    program, images = folder / "program.py", folder / "images.npy"
    program.write_text(textwrap.dedent(PROGRAM))
    np.save(images, some_images())
    arguments = [str(folder), str(seconds), json.dumps(CONFIG.to_json()), str(images)]
    return [sys.executable, *launcher, str(program), *arguments]


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
    deadline = time.monotonic() + 120
    while not (killed / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_the_trace_of_one(tmp_path: Path) -> None:
    run_here(tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    subprocess.run(command(tmp_path / "two", *launcher), env=ENVIRONMENT, check=True, timeout=300)
    one, two = trace(tmp_path / "one"), trace(tmp_path / "two")
    assert [row["step"] for row in two] == list(range(1, CONFIG.num_steps + 1))
    for name in ("loss", "mse", "vlb", "gradient_norm"):
        # The gradients are summed in another order.
        np.testing.assert_allclose(
            [row[name] for row in two], [row[name] for row in one], rtol=1e-3, atol=1e-4
        )


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
    whole = draw_batch(CONFIG, images, step=3)
    shares = [draw_batch(CONFIG, images, 3, rank, num_processes) for rank in range(num_processes)]
    for position, tensor in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[position], tensor[rank::num_processes])


def test_every_image_is_drawn_once_an_epoch() -> None:
    images = np.repeat(np.arange(8, dtype=np.uint8), 16 * 16 * 3).reshape(8, 16, 16, 3)
    epochs = []
    for first in (0, 2):
        x_0 = torch.cat([draw_batch(CONFIG, images, step)[0] for step in (first, first + 1)])
        epochs.append(((x_0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_noise_and_timesteps_have_their_distributions() -> None:
    config = replace(CONFIG, batch_size=64)
    draws = [draw_batch(config, some_images(), step) for step in range(8)]
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
        x_0, _, _ = draw_batch(config, image, 0)
        places = x_0[:, 0].flatten(1).argmax(dim=1).tolist()
        assert {divmod(place, 16) for place in places} == expected


def test_grey_networks_get_one_channel() -> None:
    config = replace(CONFIG, unet=replace(TINY, num_channels=1))
    x_0, eps, _ = draw_batch(config, some_images(), 0)
    assert x_0.shape == eps.shape == (4, 1, 16, 16)


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(UserError, match="batch_size: got 4, must be a multiple of the 3"):
        train_ddpm(Accelerator(cpu=True), CONFIG, some_images(), tmp_path)
