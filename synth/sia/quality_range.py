"""Which candidates a folder accepts, by the reference that was saved with the model."""

from pathlib import Path

from synth.diffusion.model import DiffusionModel
from synth.quality.reference import load_reference, quality_scores, reference_path
from synth.sia.candidates import QualityRange
from synth.sia.writer import file_digest


def open_quality_range(
    model_folder: Path, model: DiffusionModel, category: str, low: float | None, high: float | None
) -> QualityRange:
    """The range [low, high] of quality, open where None. Raises UserError as `load_reference`."""
    label = category if model.conditional else None
    reference = load_reference(model_folder, label)
    return QualityRange(
        low=0.0 if low is None else low,
        high=float("inf") if high is None else high,
        score=lambda images: quality_scores(reference, images),
        reference=file_digest(reference_path(model_folder, label))[:16],
    )
