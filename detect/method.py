"""A method as everything that names one reads it; importing this does not import torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from detect.config import DetectorConfig
    from detect.data.material import Material
    from detect.detector import Detector
    from detect.options import TrainOptions

C = TypeVar("C", bound="DetectorConfig")

COMMON = frozenset(
    {
        "method",
        "preset",
        "size",
        "seed",
        "backbone",
        "backbone_weights",
        "backbone_layers",
        "backbone_mean",
        "backbone_std",
        "false_reject_rate",
        "multi_class",
        "half_weights",
    }
)
"""Options that every method uses."""
LEARNING = frozenset(
    {"num_steps", "num_epochs", "batch_size", "learning_rate", "workers", "precision"}
    | {"watch_test", "tracker"}
)
"""Options of methods that have stages to train."""
ANOMALIES = frozenset({"source", "sia", "textures", "defects", "foreground", "patience"})
"""Options of methods that are trained on anomalies blended into normal images."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C]):
    """How a method makes detectors.

    presets: named configurations. build: makes a detector from what it is to be trained on, before
    its stages are trained; whatever the data decide is decided here. restore: makes it from a saved
    state; raises UserError when that does not fit the configuration.
    """

    config: type[C]
    presets: Mapping[str, C]
    build: Callable[[C, "Material"], "Detector"]
    restore: Callable[[C, Mapping[str, "Tensor"]], "Detector"]

    def configure(self, options: "TrainOptions") -> C:
        """Return the preset with the options given. Raises UserError for values out of range."""
        options.check()
        return self.presets[options.preset].with_options(options)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of `detect.methods.METHODS`.

    title: its name in tables. sentence: what it does, for help. presets: their names. options:
    those of `detect train` that it uses besides COMMON. recipe: imports torch and the method.
    """

    title: str
    sentence: str
    presets: tuple[str, ...]
    options: frozenset[str]
    recipe: Callable[[], Recipe[Any]]

    @property
    def needs_anomalies(self) -> bool:
        """Whether it is trained on anomalies blended into normal images."""
        return "source" in self.options

    def uses(self, option: str) -> bool:
        """Whether an option of `detect train` has any effect."""
        return option in COMMON or option in self.options
