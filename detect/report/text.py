"""An evaluation's findings in words: what the figures say, no more."""

from detect.evaluation.best import LABEL
from detect.evaluation.metrics import FPR_LIMIT, STRICT_FPR_LIMIT, TypeMetrics
from detect.evaluation.report_data import Caught, Comparison, ReportData
from detect.evaluation.seeds import Seeds
from detect.evaluation.text import auroc_words, best_words, between, number, percent, plus_minus

LITTLE = 0.01  # an AUROC difference below this is "little", whatever its noise
SURPRISING = 0.01  # a chance below this is worth a warning


def findings(data: ReportData) -> list[str]:
    """Put the result in words, most important first."""
    sentences = [_caught(data), _ranking(data)]
    if data.seeds is not None:
        sentences.insert(0, _scatter(data.seeds))
    if data.pixel is not None:
        sentences.append(
            f"Where the defect is: AUPRO {number(data.pixel.aupro)} up to a false-positive rate "
            f"of {FPR_LIMIT:g}, {number(data.pixel.aupro_005)} up to {STRICT_FPR_LIMIT:g}; pixel "
            f"AUROC {number(data.pixel.auroc)}."
        )
    if len(data.per_type) > 1:
        sentences.append(_hardest(data))
    if data.best_on_test is not None:
        pixel = data.pixel and data.pixel.auroc
        sentences.append(
            f"{LABEL[:1].upper()}{LABEL[1:]}: {best_words(data.best_on_test)}, the highest of "
            f"{data.best_on_test.num_moments} moments of the training; the detector itself: "
            f"{auroc_words(data.image.auroc, pixel)}."
        )
    sentences += [_compared(data, other) for other in data.comparisons]
    return sentences


def cautions(data: ReportData) -> list[str]:
    """Say what a reader must know before trusting the figures; often nothing."""
    notes = [note[:1].upper() + note[1:] + "." for note in data.notes]
    notes += [data.calibration.note] if data.calibration.note else []
    normals = data.caught(data.normal)
    chance = data.calibration.chance_of_rejects(*normals)
    if chance < SURPRISING:
        notes.append(
            f"{_of(normals)} good test images are rejected, more than chance explains "
            f"(probability {chance:.1g}): the test images differ from the held-out normal images. "
            "Calibrate again on images from the same source."
        )
    return notes


def hardest_type(data: ReportData) -> TypeMetrics:
    """Find the defect type with the smallest share caught, then with the lowest image AUROC."""
    return min(
        data.per_type, key=lambda row: (data.caught(row.defect).share, row.figures.image.auroc)
    )


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
    interval = data.figures.image_intervals.get("auroc")
    sure = f" (95 % interval over the test images: {between(interval)})" if interval else ""
    return (
        f"Image AUROC {number(data.image.auroc)}: of all pairs of a defective and a good image, "
        f"the defective one scores higher in {percent(data.image.auroc)}{sure}."
    )


def _scatter(seeds: Seeds) -> str:
    """Mean and spread over trainings."""
    figures = [f"image AUROC {plus_minus(seeds.image['auroc'])}"]
    if seeds.pixel:
        figures += [
            f"pixel AUROC {plus_minus(seeds.pixel['auroc'])}",
            f"AUPRO {plus_minus(seeds.pixel['aupro'])}",
        ]
    return (
        f"Over {len(seeds.trainings)} trainings (mean ± sample standard deviation): "
        f"{', '.join(figures)}. Everything below describes {seeds.trainings[0].name}, the first."
    )


def _hardest(data: ReportData) -> str:
    row = hardest_type(data)
    return (
        f"The hardest defect type is {row.defect}: {_of(data.caught(row.defect))} caught, "
        f"image AUROC {number(row.figures.image.auroc)}."
    )


def _compared(data: ReportData, other: Comparison) -> str:
    """One verdict, on image AUROC.

    Chance is the choice of test images: both methods are measured on the same resamples, which
    give the interval of the difference. Another training could move it further.
    """
    gain = data.image.auroc - other.image.auroc
    interval = other.auroc_gain
    pair = f"image AUROC {number(data.image.auroc)} against {number(other.image.auroc)}"
    if interval is not None:
        pair += (
            f", {gain:+.3f} (95 % interval of the difference: "
            f"{interval.low:+.3f} to {interval.high:+.3f})"
        )
    if abs(gain) < LITTLE:
        verdict = f"{data.method} adds little over “{other.name}”: {pair}."
    elif interval is not None and interval.low <= 0 <= interval.high:
        verdict = f"{data.method} is not significantly different from “{other.name}”: {pair}."
    elif gain < 0:
        verdict = f"{data.method} is worse than “{other.name}”: {pair}."
    else:
        verdict = f"{data.method} is better than “{other.name}”: {pair}."
    if data.pixel is not None and other.pixel is not None:
        verdict += f" AUPRO: {number(data.pixel.aupro)} against {number(other.pixel.aupro)}."
    return verdict
