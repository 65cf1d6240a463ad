"""The findings of a grid in words, and its numbers as text."""

from collections.abc import Callable

from detect.evaluation.text import number
from detect.grid.cells import Cost
from detect.grid.table import ALPHA, Spread, Table, holm

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


def told_from_chance(table: Table) -> dict[tuple[str, str], bool]:
    """The differences to the first entry that are looked at, by entry and metric of HEADLINES.

    True where the paired t-test over the seeds tells one from chance, with Holm's correction for
    them all.
    """
    columns = [column for column in HEADLINES if column in table.columns]
    looked_at = [(name, column) for name in table.entries[1:] for column in columns]
    p_values = [table.difference(*each).p_value for each in looked_at]
    return dict(zip(looked_at, holm(p_values), strict=True))


def differences(table: Table) -> list[str]:
    """One sentence per metric of HEADLINES on how far the entries are from the first."""
    first, *others = table.entries
    is_told, sentences = told_from_chance(table), list[str]()
    for column in (name for name in HEADLINES if name in table.columns):
        gains = {name: table.difference(name, column) for name in others}
        told = [name for name in others if is_told[name, column]]
        facts = [f"{first} has {plus_minus(table.metric(first, column))}"]
        facts += [f"{name} {signed(gains[name])} against it" for name in told]
        if len(told) < len(others):
            rest = [f"{name} {gains[name].mean:+.3f}" for name in others if name not in told]
            facts.append(f"differences not told from chance: {', '.join(rest)}")
        sentences.append(f"{column}: " + "; ".join(facts) + ".")
    return sentences


def notes(table: Table) -> list[str]:
    """What a reader must know of the differences."""
    if len(table.seeds) == 1:
        return one_seed(table)
    return [
        f"Spreads are over {len(table.seeds)} seeds (weights, batches, blending); the test images "
        "and the anomaly images are the same throughout, and another draw of these would move the "
        "figures too.",
        f"Differences looked at: {len(told_from_chance(table))}, those of "
        f"{' and '.join(name for name in HEADLINES if name in table.columns)}; the other columns "
        "are shown without a verdict. One is told from chance by a paired t-test over the "
        f"{len(table.seeds)} seeds with Holm's correction for all of them: where nothing differs, "
        f"at most one table in {1 / ALPHA:.0f} tells any. With few seeds only large and steady "
        "differences are told; that one is not told does not mean that there is none.",
    ]


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
    "training memory": (lambda cost: cost.training_bytes, mebibytes),
    "latency": (lambda cost: cost.latency_ms, milliseconds),
}
"""Columns of costs: what to read, how to write it."""
COST_NOTE = (
    "Means over all trainings. Training: the steps, with the checks of --patience between them (or "
    "the memory bank), without loading and measuring. Stored: numbers in the saved detector; "
    "trained: those of them that were learnt. Training memory: how far a GPU's memory, or without "
    "one the process's, rises in a training over what it was before, all images loaded. Latency: "
    "one image in memory, batch 1, fp32, median of 15."
)
