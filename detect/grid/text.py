"""The findings of a grid in words, and its numbers as text."""

from collections.abc import Callable

from detect.grid.cells import Cost
from detect.grid.tables import Spread, Table
from detect.report.text import number

HEADLINES = ("image AUROC", "AUPRO")
"""The metrics that findings speak of: which images, and where."""
ONE_SEED = "One seed: nothing tells a difference from chance; give two or more --seeds."


def plus_minus(values: Spread) -> str:
    """Mean ± sample standard deviation; the mean alone for a single value."""
    if values.deviation is None:
        return number(values.mean)
    return f"{number(values.mean)} ± {values.deviation:.3f}"


def signed(values: Spread) -> str:
    """A difference with its sign, ± its sample standard deviation."""
    if values.deviation is None:
        return f"{values.mean:+.3f}"
    return f"{values.mean:+.3f} ± {values.deviation:.3f}"


def differences(table: Table) -> list[str]:
    """One sentence per metric of HEADLINES on how far the entries are from the first."""
    first, *others = table.entries
    sentences: list[str] = []
    for column in (name for name in HEADLINES if name in table.columns):
        gains = {name: table.difference(name, column) for name in others}
        told = {name: gain for name, gain in gains.items() if gain.beyond_chance}
        within = [name for name in others if name not in told]
        facts = [f"{first} has {plus_minus(table.metric(first, column))}"]
        facts += [f"{name} {signed(gain)} against it" for name, gain in told.items()]
        if within:
            known = "within the spread of seeds" if len(table.seeds) > 1 else "not told from chance"
            listed = ", ".join(f"{name} {gains[name].mean:+.3f}" for name in within)
            facts.append(f"differences {known}: {listed}")
        sentences.append(f"{column}: " + "; ".join(facts) + ".")
    return sentences


def notes(table: Table) -> list[str]:
    """What a reader must know of the differences."""
    if len(table.seeds) == 1:
        return one_seed(table)
    num = sum(name in table.columns for name in HEADLINES) * (len(table.entries) - 1)
    found = [
        f"Spreads are over {len(table.seeds)} seeds (weights, batches, blending); the test images "
        "and the anomaly images are the same throughout, and another draw of these would move the "
        "figures too. A difference counts as more than the spread of seeds where the 95 % t "
        "interval of the paired differences leaves out 0."
    ]
    if num > 1:
        found.append(
            f"{num} differences were looked at: one in twenty is beyond such an interval by chance."
        )
    return found


def one_seed(table: Table) -> list[str]:
    """What to say of a single training each; nothing of several."""
    return [ONE_SEED] if len(table.seeds) == 1 else []


def best(table: Table) -> list[str]:
    """Which entries have the highest mean as it is shown, per metric of HEADLINES."""
    sentences: list[str] = []
    for column in (name for name in HEADLINES if name in table.columns):
        means = {name: table.metric(name, column) for name in table.entries}
        highest = max(means.values(), key=lambda values: values.mean)
        top = [name for name in means if number(means[name].mean) == number(highest.mean)]
        shown = plus_minus(highest) if len(top) == 1 else number(highest.mean)
        sentences.append(f"Highest mean {column}: {' and '.join(top)}, {shown}.")
    return sentences


# Costs


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def millions(count: float | None) -> str:
    """A number of parameters."""
    return "–" if count is None else f"{count / 1e6:.2f} M"


def mebibytes(count: float | None) -> str:
    """Bytes in MiB."""
    return "–" if count is None else f"{count / 2**20:,.0f} MiB"


def milliseconds(count: float | None) -> str:
    """Time per image."""
    return "–" if count is None else f"{count:.1f} ms"


COSTS: dict[str, tuple[Callable[[Cost], float | None], Callable[[float | None], str]]] = {
    "training": (lambda cost: cost.training_seconds, duration),
    "stored": (lambda cost: cost.num_parameters, millions),
    "trained": (lambda cost: cost.num_trained, millions),
    "peak memory": (lambda cost: cost.peak_bytes, mebibytes),
    "latency": (lambda cost: cost.latency_ms, milliseconds),
}
"""Columns of costs: what to read, how to write it."""
COST_NOTE = (
    "Means over all trainings. Training: the steps (or the memory bank), without loading and "
    "measuring. Stored: numbers in the saved detector; trained: those of them that were learnt. "
    "Peak memory: of a GPU in training, without one of the whole process. Latency: one image in "
    "memory, batch 1, fp32, median of 15."
)
