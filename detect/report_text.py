"""The report's findings in words: what the figures say, no more."""

import math

from detect.metrics import TypeMetrics, auroc_standard_error
from detect.report_data import Caught, Comparison, ReportData

LITTLE = 0.01  # an AUROC difference below this is "little", whatever its noise
SURPRISING = 0.01  # a chance below this is worth a warning


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


def findings(data: ReportData) -> list[str]:
    """Put the result in words, most important first."""
    sentences = [_caught(data), _ranking(data)]
    if data.pixel is not None:
        sentences.append(
            f"Where the defect is: AUPRO {number(data.pixel.aupro)} up to a false-positive rate "
            f"of {data.pixel.fpr_limit:g}, pixel AUROC {number(data.pixel.auroc)}."
        )
    if len(data.per_type) > 1:
        sentences.append(_hardest(data))
    sentences += [_compared(data, other) for other in data.comparisons]
    return sentences


def cautions(data: ReportData) -> list[str]:
    """Say what a reader must know before trusting the threshold; often nothing."""
    notes = [data.calibration.note] if data.calibration.note else []
    normals = data.caught(data.normal)
    chance = data.calibration.chance_of_rejects(*normals)
    if chance < SURPRISING:
        notes.append(
            f"{_of(normals)} good test images are rejected, more than chance allows "
            f"(probability {chance:.1g}): the test images differ from the held-out normal images. "
            "Calibrate again on images from the same source."
        )
    return notes


def hardest_type(data: ReportData) -> TypeMetrics:
    """Find the defect type with the smallest share caught, then with the lowest image AUROC."""
    return min(data.per_type, key=lambda row: (data.caught(row.defect).share, row.image.auroc))


def _of(caught: Caught) -> str:
    return f"{caught.rejected} of {caught.total}"


def _caught(data: ReportData) -> str:
    defects, normals = data.caught_defects, data.caught(data.normal)
    return (
        f"At the threshold, {_of(defects)} defective images are caught ({percent(defects.share)}) "
        f"and {_of(normals)} good images are rejected ({percent(normals.share)}); the calibration "
        f"promises at most {percent(data.calibration.guaranteed_rate)} false rejects on average."
    )


def _ranking(data: ReportData) -> str:
    return (
        f"Image AUROC {number(data.image.auroc)}: of all pairs of a defective and a good image, "
        f"the defective one scores higher in {percent(data.image.auroc)}."
    )


def _hardest(data: ReportData) -> str:
    row = hardest_type(data)
    return (
        f"The hardest defect type is {row.defect}: {_of(data.caught(row.defect))} caught, "
        f"image AUROC {number(row.image.auroc)}."
    )


def _compared(data: ReportData, other: Comparison) -> str:
    """One verdict, on image AUROC.

    The noise is two standard errors of the difference as if the test sets were independent; they
    are the same images, so this errs on the side of "little".
    """
    gain = data.image.auroc - other.image_auroc
    sizes = data.caught_defects.total, data.caught(data.normal).total
    errors = [auroc_standard_error(a, *sizes) for a in (data.image.auroc, other.image_auroc)]
    noise = 2 * math.hypot(*errors)
    pair = f"image AUROC {number(data.image.auroc)} against {number(other.image_auroc)}"
    if abs(gain) < LITTLE:
        verdict = f"{data.method} adds little over “{other.name}”: {pair}, {gain:+.3f}."
    elif abs(gain) < noise:
        verdict = (
            f"{data.method} adds little over “{other.name}” that can be told from chance: {pair}, "
            f"{gain:+.3f}, within the noise of {sum(sizes)} test images (±{noise:.3f})."
        )
    elif gain < 0:
        verdict = f"{data.method} is worse than “{other.name}”: {pair}, {gain:+.3f}."
    else:
        verdict = f"{data.method} adds {gain:.3f} over “{other.name}”: {pair}."
    if data.pixel is not None and other.aupro is not None:
        verdict += f" AUPRO: {number(data.pixel.aupro)} against {number(other.aupro)}."
    return verdict
