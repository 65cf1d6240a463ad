import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from synth.base.errors import UserError
from synth.base.resume import STATE_FILE, TRACE_FILE, load_state, read_trace, run_steps, save_state


class Toy:
    """A convolution in channels_last, fused Adam and averaged weights, trained on seeded noise."""

    def __init__(self, seed: int = 0, channels: int = 4) -> None:
        torch.default_generator.manual_seed(seed)
        self.model = nn.Conv2d(channels, 6, 3)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2, fused=True)
        self.ema = EMAModel(self.model.parameters(), decay=0.9)

    def step(self, number: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(number)
        loss = self.model(torch.randn(2, 4, 6, 6, generator=g)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        return {"loss": loss}

    def run(
        self,
        folder: Path,
        num_steps: int,
        step: Callable[[int], Mapping[str, Tensor]] | None = None,
        checkpoint_steps: int | None = 4,
    ) -> None:
        run_steps(
            Accelerator(cpu=True),
            step or self.step,
            folder=folder,
            num_steps=num_steps,
            model=self.model,
            optimizer=self.optimizer,
            ema=self.ema,
            checkpoint_steps=checkpoint_steps,
        )

    def weights(self) -> list[Tensor]:
        return [*self.model.state_dict().values(), *self.ema.shadow_params]


class Killed(BaseException):
    pass


def killed_at(toy: Toy, last: int) -> Callable[[int], Mapping[str, Tensor]]:
    def step(number: int) -> Mapping[str, Tensor]:
        if number == last:
            raise Killed
        return toy.step(number)

    return step


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, 3), (3600.0, 0)])
def test_without_a_number_of_steps_the_clock_decides_when_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, kept: int
) -> None:
    monkeypatch.setattr("synth.base.resume.CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr("synth.base.resume.SAVE_SHARE", 0.0)
    toy, state = Toy(), tmp_path / STATE_FILE
    with pytest.raises(Killed):
        toy.run(tmp_path, 5, killed_at(toy, 3), checkpoint_steps=None)
    assert state.exists() == (kept > 0)
    if kept:
        assert load_state(state, toy.model, toy.optimizer, toy.ema) == kept


@pytest.mark.parametrize("last", [1, 4, 7, 9])
def test_a_run_stopped_anywhere_goes_on_exactly(tmp_path: Path, last: int) -> None:
    whole, stopped, fresh = Toy(), Toy(), Toy(seed=1 if last > 4 else 0)
    whole.run(tmp_path / "whole", 10)
    with pytest.raises(Killed):
        stopped.run(tmp_path / "parts", 10, killed_at(stopped, last))
    fresh.run(tmp_path / "parts", 10)
    trace = (tmp_path / "parts" / TRACE_FILE).read_text()
    assert trace == (tmp_path / "whole" / TRACE_FILE).read_text()
    assert [json.loads(line)["step"] for line in trace.splitlines()] == list(range(1, 11))
    assert all(map(torch.equal, fresh.weights(), whole.weights()))


def test_a_kill_between_trace_and_state_is_told_by_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped, fresh = Toy(), Toy(), Toy(seed=1)
    whole.run(tmp_path / "whole", 10)
    stopped.run(tmp_path / "parts", 4)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("synth.base.resume.save_state", killed)
        with pytest.raises(Killed):
            stopped.run(tmp_path / "parts", 10)
    assert len((tmp_path / "parts" / TRACE_FILE).read_text().splitlines()) == 8
    fresh.run(tmp_path / "parts", 10)
    assert (tmp_path / "parts" / TRACE_FILE).read_bytes() == (
        tmp_path / "whole" / TRACE_FILE
    ).read_bytes()
    assert all(map(torch.equal, fresh.weights(), whole.weights()))


def test_moments_come_back_in_the_layout_of_their_weights(tmp_path: Path) -> None:
    old, new = Toy(), Toy(seed=1)
    old.step(0)
    save_state(tmp_path / STATE_FILE, 1, old.model, old.optimizer, old.ema)
    assert load_state(tmp_path / STATE_FILE, new.model, new.optimizer, new.ema) == 1
    for weight in new.model.parameters():
        assert new.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert new.model.weight.is_contiguous(memory_format=torch.channels_last)
    assert not new.model.weight.is_contiguous()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    toy = Toy()

    def step(number: int) -> Mapping[str, Tensor]:
        return toy.step(number) | ({"loss": torch.tensor(float("nan"))} if number == 6 else {})

    with pytest.raises(UserError, match=r"nan at step 7; .* last good state, of step 4"):
        toy.run(tmp_path, 10, step)
    fresh = Toy(seed=1)
    assert load_state(tmp_path / STATE_FILE, fresh.model, fresh.optimizer, fresh.ema) == 4
    assert len((tmp_path / TRACE_FILE).read_text().splitlines()) == 4
    early = lambda number: {"loss": torch.tensor(float("inf"))}  # noqa: E731
    with pytest.raises(UserError, match=r"loss inf at step 1; nothing was saved yet"):
        Toy().run(tmp_path / "early", 10, early)


def test_a_lost_trace_costs_its_rows_only(tmp_path: Path) -> None:
    Toy().run(tmp_path, 4)
    (tmp_path / TRACE_FILE).unlink()
    Toy().run(tmp_path, 6)
    rows = map(json.loads, (tmp_path / TRACE_FILE).read_text().splitlines())
    assert [row["step"] for row in rows] == [5, 6]


@pytest.mark.parametrize("content", ["{", "1\n", '{"loss": 1}\n'])
def test_a_damaged_trace_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / TRACE_FILE).write_text(content)
    with pytest.raises(UserError, match=r"trace\.jsonl: damaged .*delete it"):
        read_trace(tmp_path / TRACE_FILE, 3)


def test_damaged_and_foreign_states_are_named(tmp_path: Path) -> None:
    Toy().run(tmp_path, 4)
    path, toy = tmp_path / STATE_FILE, Toy(channels=5)
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"state\.safetensors: damaged, or of another model"):
        load_state(path, toy.model, toy.optimizer, toy.ema)
    for content in (b"", b"garbage", whole[:100], whole[:-1]):
        path.write_bytes(content)
        toy = Toy()
        with pytest.raises(UserError, match=r"state\.safetensors: damaged,.*delete it"):
            load_state(path, toy.model, toy.optimizer, toy.ema)


def test_what_a_kill_while_saving_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".{STATE_FILE}.1234abcd.partial"
    left.touch()
    Toy().run(tmp_path, 1)
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE_FILE, TRACE_FILE]


def test_progress_is_told_after_every_step(tmp_path: Path) -> None:
    toy, told = Toy(), list[tuple[int, int, float]]()
    run_steps(
        Accelerator(cpu=True),
        toy.step,
        folder=tmp_path,
        num_steps=3,
        model=toy.model,
        optimizer=toy.optimizer,
        on_step=lambda done, total, terms: told.append((done, total, terms["loss"])),
    )
    rows = map(json.loads, (tmp_path / TRACE_FILE).read_text().splitlines())
    assert told == [(row["step"], 3, row["loss"]) for row in rows]
