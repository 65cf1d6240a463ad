"""What a grid would do, in words: what is done, what is left, and how long that may take."""

from collections.abc import Sequence
from itertools import groupby

from detect.evaluation.text import duration
from detect.grid.plan import Plan, Trial
from detect.grid.run import device_name
from synth.base.device import default_device


def preview(plan: Plan) -> str:
    """What is done and what is left, a line per entry and category, and how long it may take."""
    left = [trial for trial in plan.trials if trial.result is None]
    num = len(plan.trials)
    seeds = dict.fromkeys(trial.options.seed for trial in plan.trials)
    rows = [["", "", *(f"seed {seed}" for seed in seeds)]]
    for names, trials in groupby(plan.trials, lambda t: (t.entry.name, t.category.name)):
        rows.append([*names, *(trial.state for trial in trials)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    head = f"{plan.title}: {num} trainings, {num - len(left)} done, {len(left)} left"
    return "\n".join([head, *lines, time_left(left, plan.trials)])


def time_left(left: Sequence[Trial], trials: Sequence[Trial]) -> str:
    """Estimate by the finished trainings of the same entry on this device; one line."""
    if not left:
        return "nothing is left to train"
    device = device_name(default_device())
    seconds = [known for trial in left if (known := expected_seconds(trial, trials, device))]
    if not seconds:
        return f"time: unknown, none of these has been measured on {device} yet"
    return (
        f"time: about {duration(sum(seconds))} of training for {len(seconds)} of the {len(left)} "
        f"left, by those measured on {device}; loading and scoring come on top"
    )


def expected_seconds(trial: Trial, trials: Sequence[Trial], device: str) -> float | None:
    """The mean of the entry's finished trainings, those on the same category if there are any."""
    own = [
        (other.category is trial.category, other.result.cost.training_seconds)
        for other in trials
        if other.entry.name == trial.entry.name
        and other.result is not None
        and other.result.device == device
    ]
    known = [(same, seconds) for same, seconds in own if seconds is not None]
    nearest = [seconds for same, seconds in known if same] or [seconds for _, seconds in known]
    return sum(nearest) / len(nearest) if nearest else None
