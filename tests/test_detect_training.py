import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from products import draw_noise, normal_image
from torch import Tensor, nn

from detect.data.samples import BlendedDataset, batches
from detect.detector import Batch, Detector, Scores, Stage
from detect.training import loop
from detect.training.loop import Feed, settle_batch_norms, train_stages
from synth.base.errors import UserError
from synth.data.foreground import EVERYTHING

NORMALS = np.stack([normal_image(n) for n in range(4)])
CPU = torch.device("cpu")


class TwoStages(Detector):
    """A convolution, then a bias of its own: each stage must leave the other's part alone."""

    def __init__(self, num_steps: int = 5, scale: float = 1.0):
        super().__init__()
        self.num_steps, self.scale = num_steps, scale
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.01)
        nn.init.zeros_(self.conv.bias)
        self.offset = nn.Parameter(torch.zeros(()))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Scores:
        maps = self.conv(images)[:, 0] + self.offset
        return Scores(maps.amax((1, 2)), maps)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.modes.append(self.conv.training)
        error = self(batch.image).maps - batch.mask.float()
        return {"error": self.scale * error.square().mean(), "zero": error.sum() * 0}

    def stages(self) -> list[Stage]:
        conv = Stage(
            name="conv",
            modules=(self.conv,),
            num_steps=self.num_steps,
            loss=self.losses,
            lr=1e-2,
        )
        offset = replace(conv, name="offset", modules=(), parameters=(self.offset,), num_steps=3)
        return [conv, offset]


def dataset():
    return BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=0)


def train(detector, folder, **kwargs):
    feed = Feed(Accelerator(cpu=True), dataset(), 4, kwargs.pop("num_workers", 0))
    train_stages(feed, detector, folder, **kwargs)
    return detector


def trace(folder, stage):
    return [json.loads(row) for row in (folder / stage / "trace.jsonl").read_text().splitlines()]


def test_steps_are_those_of_a_plain_loop(tmp_path):
    trained = train(TwoStages(), tmp_path)
    plain = TwoStages()
    for stage, count in zip(plain.stages(), (5, 3), strict=True):
        optimizer = torch.optim.Adam(stage.trained(), lr=1e-2)
        means = [torch.zeros_like(parameter) for parameter in stage.trained()]
        for n, batch in enumerate(batches(dataset(), 4, 0, count, CPU)):
            plain.zero_grad()
            plain.losses(batch, torch.Generator())["error"].backward()
            optimizer.step()
            decay = (1 + n) / (10 + n) if n else 0.0
            for mean, parameter in zip(means, stage.trained(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * parameter.detach())
        for mean, parameter in zip(means, stage.trained(), strict=True):
            parameter.data.copy_(mean)  # the next stage builds on the averaged weights
    for one, other in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert trained.modes == [True] * 5 + [False] * 3
    assert not trained.training
    rows = trace(tmp_path, "conv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["loss"] == row["error"] for row in rows)


class Killed(Exception):
    pass


def test_killed_training_goes_on_as_if_never_stopped(tmp_path):
    def kill(done, total, terms):
        if done == 4:
            raise Killed

    whole = train(TwoStages(), tmp_path / "whole", checkpoint_steps=2)
    with pytest.raises(Killed):
        train(TwoStages(), tmp_path / "cut", checkpoint_steps=3, on_step=kill)
    assert len(trace(tmp_path / "cut", "conv")) == 3
    again = train(TwoStages(), tmp_path / "cut", checkpoint_steps=3, num_workers=1)
    assert len(again.modes) == 2 + 3
    for stage in ("conv", "offset"):
        assert trace(tmp_path / "cut", stage) == trace(tmp_path / "whole", stage)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_finished_training_is_loaded_and_nothing_is_done(tmp_path):
    whole = train(TwoStages(), tmp_path)
    again = train(TwoStages(), tmp_path)
    assert again.modes == []
    assert torch.equal(whole.conv.weight, again.conv.weight)


def test_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(UserError, match=r"loss became .*inf.*; nothing was saved yet"):
        train(TwoStages(scale=float("inf")), tmp_path)


class Normalised(Detector):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.9)
        self.frozen = nn.BatchNorm2d(3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images):
        maps = self.frozen(self.norm(images)).mean(dim=1)
        return Scores(maps.amax((1, 2)), maps)


def test_batch_norms_settle_on_the_mean_over_training_batches():
    detector = Normalised()
    detector.train()
    settle_batch_norms(Feed(Accelerator(cpu=True), dataset(), 4), detector)
    seen = [batch.image for batch in batches(dataset(), 4, 0, loop.NUM_NORM_BATCHES, CPU)]
    mean = torch.stack([images.mean((0, 2, 3)) for images in seen]).mean(0)
    var = torch.stack([images.var((0, 2, 3)) for images in seen]).mean(0)
    torch.testing.assert_close(detector.norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(detector.norm.running_var, var, rtol=1e-4, atol=1e-6)
    assert detector.norm.momentum == 0.9
    assert detector.frozen.running_mean.abs().max() == 0
