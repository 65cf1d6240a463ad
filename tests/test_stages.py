"""Stages can be trusted: killed anywhere, changed, or frozen, they are what they should be."""

import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from products import draw_noise, normal_image
from safetensors.torch import load_file
from torch import Tensor, nn

from detect.batch_norm import require_global_norms
from detect.data.samples import BlendedDataset
from detect.detector import Batch, Detector, Scores, Stage
from detect.training.loop import Feed, train_stages
from synth.base.errors import UserError
from synth.data.foreground import EVERYTHING

NORMALS = np.stack([normal_image(n) for n in range(4)])
DATA = BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=0)


class Part(nn.Module):
    """A normalised convolution."""

    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        nn.init.constant_(self.conv.weight, weight)
        nn.init.constant_(self.conv.bias, weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x)))


class Toy(Detector):
    """Two parts trained one after the other, the second on the first; both losses draw noise."""

    def __init__(self, first: int = 5, second: int = 4, **settings) -> None:
        super().__init__()
        self.lengths, self.settings = (first, second), settings
        self.backbone = Part(3, 0.02).requires_grad_(False)
        self.first, self.second = Part(2, 0.03), Part(2, 0.05)
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, images: Tensor) -> Scores:
        maps = self.second(self.first(self.backbone(images))).sum(1)
        return Scores(maps.amax((1, 2)), maps)

    def loss_of(self, last: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.modes.append((self.backbone.training, self.first.training, self.second.training))
        noise = 0.1 * torch.randn(batch.image.shape, generator=generator)
        x = self.first(self.backbone(batch.image + noise))
        x = self.second(x) if last else x
        return {"error": (x.sum(1) - batch.mask.float()).square().mean()}

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name=name,
                num_steps=num_steps,
                modules=(module,),
                loss=partial(self.loss_of, last),
                lr=1e-2,
                **self.settings,
            )
            for last, (name, num_steps, module) in enumerate(
                zip(("one", "two"), self.lengths, (self.first, self.second), strict=True)
            )
        ]


def train(folder: Path, detector: Toy | None = None, **options) -> Toy:
    detector = detector or Toy()
    options = {"seed": 3, "checkpoint_steps": 1} | options
    train_stages(Feed(Accelerator(cpu=True), DATA, 2), detector, folder, **options)
    return detector


def same(one: Detector, other: Detector, part: str = "") -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(torch.equal(a, b) for (name, a), (_, b) in pairs if name.startswith(part))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Toy, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), folder


class Killed(BaseException):
    pass


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("last", range(1, 10))
def test_killed_anywhere_it_ends_bit_for_bit_as_if_never_stopped(tmp_path, whole, last, every):
    def kill(done, total, terms):
        assert total == 9
        if done == last:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, on_step=kill, checkpoint_steps=every)
    again = train(tmp_path, checkpoint_steps=every)
    assert same(again, whole[0])
    for name in ("one", "two"):
        trace = (tmp_path / name / "trace.jsonl").read_bytes()
        assert trace == (whole[1] / name / "trace.jsonl").read_bytes()
    assert len(again.modes) < 9 or last <= every


def test_a_longer_first_stage_has_the_later_one_trained_again(tmp_path, whole):
    train(tmp_path)
    told = list[str]()
    longer = train(tmp_path, Toy(first=9), tell=told.append)
    assert told == ["two is trained again: one, before it, has changed"]
    assert len(longer.modes) == 4 + 4  # four more of the first stage, all of the second
    assert same(longer, train(tmp_path / "fresh", Toy(first=9)))
    assert not same(longer, whole[0], "first")
    assert not same(longer, whole[0], "second")
    again = train(tmp_path, Toy(first=9), tell=told.append)
    assert again.modes == []
    assert len(told) == 1
    assert same(again, longer)


def test_a_first_stage_with_other_settings_has_the_later_one_trained_again(tmp_path):
    train(tmp_path)
    told = list[str]()
    train(tmp_path, Toy(max_norm=0.5), tell=told.append)
    assert len(told) == 1


def test_a_longer_last_stage_continues_and_says_nothing(tmp_path):
    train(tmp_path)
    told = list[str]()
    longer = train(tmp_path, Toy(second=6), tell=told.append)
    assert told == []
    assert len(longer.modes) == 2
    assert same(longer, train(tmp_path / "fresh", Toy(second=6)))


def test_what_a_stage_does_not_train_does_not_move(tmp_path):
    fresh = Toy()
    first_only = train(tmp_path, Toy(second=0))
    assert same(first_only, fresh, "second.conv")
    both = train(tmp_path / "both")
    assert same(both, fresh, "backbone")
    assert same(both, first_only, "first")
    assert not same(both, first_only, "second")
    assert both.modes == [(False, True, False)] * 5 + [(False, False, True)] * 4
    assert all(p.requires_grad for p in both.first.parameters())
    assert not any(p.requires_grad for p in both.backbone.parameters())
    assert not both.training


def test_a_state_holds_the_stage_and_nothing_else(whole):
    for name, part in (("one", "first"), ("two", "second")):
        state = load_file(whole[1] / name / "state.safetensors")
        own = {f"model.{part}.{each}" for each in getattr(Toy(), part).state_dict()}
        assert {each for each in state if each.startswith("model.")} == own


def test_batch_norms_settle_for_each_stage(whole):
    toy = whole[0]
    for part in (toy.first, toy.second):
        assert int(part.norm.num_batches_tracked) == 2
        assert part.norm.momentum == 0.1
    assert int(toy.backbone.norm.num_batches_tracked) == 0


def test_draws_depend_on_the_seed_the_stage_and_the_step(tmp_path):
    seen = list[Tensor]()

    class Noisy(Toy):
        def loss_of(self, last, batch, generator):
            seen.append(torch.rand(1, generator=torch.Generator().set_state(generator.get_state())))
            return super().loss_of(last, batch, generator)

    train(tmp_path / "a", Noisy())
    train(tmp_path / "b", Noisy(), seed=4)
    assert len({float(x) for x in seen}) == 18


def test_optimiser_and_clipping_are_the_stages_own(tmp_path):
    """A plain step of gradient descent, clipped, by hand."""
    settings = {"optimizer": torch.optim.SGD, "max_norm": 0.01, "average": False}
    trained = train(tmp_path, Toy(first=1, second=0, **settings))
    row = json.loads((tmp_path / "one/trace.jsonl").read_text())
    assert row["gradient_norm"] > 0.01
    fresh = Toy()
    before, after = (nn.utils.parameters_to_vector(t.first.parameters()) for t in (fresh, trained))
    assert (after - before).norm().item() == pytest.approx(1e-2 * 0.01, rel=1e-3)


# Several processes


AVERAGE = """
    import sys
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator
    from torch import nn
    from detect.training import gradients

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    given = {"both": (1.0, 3.0), "first": (4.0, None), "second": (None, 6.0), "none": (None, None)}
    for gradients.BUCKET_SIZE in (1, 5, 1 << 25):
        parameters = [nn.Parameter(torch.zeros(3)) for _ in given]
        for parameter, values in zip(parameters, given.values()):
            if values[rank] is not None:
                parameter.grad = torch.full((3,), values[rank])
        gradients.average_gradients(accelerator, parameters)
        found = [None if p.grad is None else p.grad.tolist() for p in parameters]
        assert found == [[2.0] * 3, [2.0] * 3, [3.0] * 3, None], found
    dist.destroy_process_group()
"""


def test_gradients_are_averaged_whether_a_process_has_one_or_not(tmp_path):
    """Before, a parameter without a gradient on one process had the others wait forever."""
    program = [sys.executable, "-c", textwrap.dedent(AVERAGE)]
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    both = [
        subprocess.Popen(
            [*program, rank, str(tmp_path)],
            env={**os.environ, **launch, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]


def test_normalising_a_share_of_the_batch_is_refused(monkeypatch):
    toy = Toy()
    toy.first.train()
    toy.second.eval()
    toy.backbone.eval()
    require_global_norms(toy)
    monkeypatch.setattr("detect.batch_norm.num_processes", lambda: 2)
    with pytest.raises(UserError, match=r"Toy: first.norm normalises .* train with one process"):
        require_global_norms(toy)
    toy.eval()
    require_global_norms(toy)
