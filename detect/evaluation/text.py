"""Figures as text, the same in reports, tables and messages."""

import math

from detect.evaluation.best import Best
from detect.evaluation.metrics import Interval
from detect.evaluation.seeds import Spread


def number(value: float | None) -> str:
    """Format with three decimals, never rounded up to a perfect 1; a dash for None."""
    if value is None:
        return "–"
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def percent(share: float) -> str:
    """Format a share in percent with at most one decimal, never rounded up to 100."""
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def upward(value: float) -> str:
    """Format a small bound with one digit, rounded up."""
    if value <= 0:
        return "0"
    digits = -math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{max(digits, 0)}f}"


def between(interval: Interval | None) -> str:
    """Format an interval; empty where there is none."""
    return "" if interval is None else f"{number(interval.low)} to {number(interval.high)}"


def plus_minus(spread: Spread) -> str:
    """Format mean ± sample standard deviation; the mean alone for a single value."""
    return number(spread.mean) + deviation(spread)


def signed(spread: Spread) -> str:
    """Format a difference with its sign, ± its sample standard deviation."""
    return f"{spread.mean:+.3f}{deviation(spread)}"


def deviation(spread: Spread) -> str:
    """Format ` ± 0.012`; empty for a single value."""
    return "" if spread.deviation is None else f" ± {spread.deviation:.3f}"


def duration(seconds: float | None) -> str:
    """Format seconds in the unit a person would use; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def auroc_words(image: float, pixel: float | None) -> str:
    """Format two AUROCs, the pixel one only where it is known."""
    return f"image AUROC {number(image)}" + (
        "" if pixel is None else f", pixel AUROC {number(pixel)}"
    )


def best_words(best: Best) -> str:
    """Format the best figures of a training with their steps."""
    words = f"image AUROC {number(best.image_auroc)} at step {best.image_step}"
    if best.pixel_auroc is not None:
        words += f", pixel AUROC {number(best.pixel_auroc)} at step {best.pixel_step}"
    return words
