"""Training on two processes: the choice, the weights and the threshold of one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from products import write_product
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
BATCH_NORM = """
    import sys
    import torch
    import torch.distributed as dist
    from detect.batch_norm import GlobalBatchNorm2d

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt", weights_only=True)
    norm = GlobalBatchNorm2d(3, momentum=None)
    norm.weight.data.copy_(given["weight"])
    for x, wanted in zip(given["x"], given["wanted"]):
        x = x[rank::2].clone().requires_grad_()
        loss = (norm(x) - wanted[rank::2]).square().mean()
        norm.zero_grad()
        loss.backward()
    torch.save({"x": x.grad, "weight": norm.weight.grad, **norm.state_dict(prefix="norm.")},
        f"{folder}/{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_batch_statistics_and_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 4, 3, 5, 6, generator=g) + 20
    given = {"x": x, "wanted": torch.randn(x.shape, generator=g), "weight": torch.rand(3)}
    torch.save(given, tmp_path / "given.pt")
    program = [sys.executable, "-c", textwrap.dedent(BATCH_NORM)]
    both = [subprocess.Popen([*program, str(r), str(tmp_path)], cwd=ROOT) for r in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    one, other = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))

    norm = torch.nn.BatchNorm2d(3, momentum=None)
    norm.weight.data.copy_(given["weight"])
    for batch, wanted in zip(x, given["wanted"], strict=True):
        whole = batch.clone().requires_grad_()
        norm.zero_grad()
        (norm(whole) - wanted).square().mean().backward()
    assert whole.grad is not None
    for rank, share in enumerate((one, other)):
        torch.testing.assert_close(share["x"] / 2, whole.grad[rank::2], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close((one["weight"] + other["weight"]) / 2, norm.weight.grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(one[f"norm.{name}"], norm.state_dict()[name])
        assert torch.equal(one[f"norm.{name}"], other[f"norm.{name}"])


# The command

CANCELLED = ("qkv.bias", "head.narrow.0.bias", "head.narrow.1.running_mean")
"""A softmax or a normalisation cancels these biases: Adam makes whole steps of rounding alone."""


@pytest.fixture
def one_thread():
    """Sums of one thread, as in the processes that are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_many_norm_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as in the processes that are compared with."""
    monkeypatch.setattr("detect.training.loop.NUM_NORM_BATCHES", 32)


def words(product: Path, out: Path, *more: object) -> list[str]:
    options = {
        "--root": product,
        "--backbone": "resnet10t",
        "--backbone-weights": "random",
        "--size": "32 32",
        "--batch-size": 4,
        "--precision": "fp32",
        "--num-steps": 6,
        "--out": out,
    }
    given = [word for name, value in options.items() for word in f"{name} {value}".split()]
    return ["detect", "train", *given, *map(str, more)]


def on_two(command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(out: Path) -> np.ndarray:
    (trace,) = out.rglob("trace.jsonl")
    rows = [json.loads(row) for row in trace.read_text().splitlines()]
    return np.array([[row[name] for name in sorted(row)] for row in rows])


METHODS = {
    "realnet": ("--source", "noise"),
    "csflow": ("--backbone-layers", "1", "--size", "32", "32"),
    "validflow": ("--backbone-layers", "1", "--size", "32", "32"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "as_many_norm_batches")
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_make_the_detector_of_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    method: str,
) -> None:
    product = write_product(tmp_path / "widget")
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("--method", method, *METHODS[method])
    assert Command(monkeypatch, capsys)(*words(product, one, *more)).code == 0
    ended = on_two(words(product, two, *more), tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("detector: ") == 1

    if method == "realnet":
        assert (two / "afs.json").read_bytes() == (one / "afs.json").read_bytes()
    assert (two / "config.json").read_bytes() == (one / "config.json").read_bytes()
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4, atol=1e-6)
    weights = load_file(one / "model.safetensors")
    for name, value in load_file(two / "model.safetensors").items():
        if name.endswith(CANCELLED):
            continue
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=2e-5, msg=name)
    thresholds = [json.loads((out / "calibration.json").read_text()) for out in (two, one)]
    assert thresholds[0]["scores"] == pytest.approx(thresholds[1]["scores"], rel=1e-4)

    if method != "realnet":
        return
    refused = on_two([*words(product, two, *more), "--seed", "5"], tmp_path / "cache")
    assert refused.returncode != 0
    assert refused.stderr.count("detector.seed: 0 there, 5 here") == 1
    assert "Signal 15" not in refused.stderr, "one of them had to be ended by the launcher"
