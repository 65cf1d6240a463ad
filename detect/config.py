"""What the configurations of all detectors share.

Options of `detect train` of the same names set the fields; their help says what they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from synth.base.backbone_weights import default_weights
from synth.base.backbones import Backbone, BackboneConfig
from synth.base.errors import UserError
from synth.base.options import require_positive, require_size
from synth.pictures import Images

if TYPE_CHECKING:
    from detect.options import TrainOptions

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Everything that defines a detector but its data; each method derives its own."""

    image_size: tuple[int, int]
    """Height and width in pixels that images are resized to."""
    backbone: BackboneConfig
    """The frozen feature extractor."""
    seed: int = 0

    @property
    def stage_steps(self) -> dict[str, int]:
        """Steps of each stage by name, in order; these alone may be raised later."""
        return {}

    @property
    def facts(self) -> str:
        """The configuration in words, for tables."""
        height, width = self.image_size
        parts = [f"{height} x {width} px", self.extent, backbone_facts(self.backbone)]
        return ", ".join(filter(None, parts))

    @property
    def extent(self) -> str:
        """How long it trains, or how much it remembers, in words."""
        return ""

    # From preset to training

    def with_options(self, options: "TrainOptions") -> Self:
        """Return the configuration with the options given, as far as it has such fields.

        Raises UserError for values out of range.
        """
        layers = options.layers(len(self.backbone.layers))
        config = self if layers is None else self.with_layers(layers)
        own = config.backbone
        weights = own.weights if options.backbone is None else default_weights(options.backbone)
        return replace(
            config,
            image_size=preferred(options.size, config.image_size),
            seed=options.seed,
            backbone=replace(
                own,
                name=preferred(options.backbone, own.name),
                weights=preferred(options.backbone_weights, weights),
                mean=preferred(options.backbone_mean, own.mean),
                std=preferred(options.backbone_std, own.std),
                seed=options.seed,
            ),
        )

    def with_layers(self, layers: tuple[int | str, ...]) -> Self:
        """Return the same for other backbone layers."""
        return replace(self, backbone=replace(self.backbone, layers=layers))

    def for_data(self, backbone: Backbone, images: Sequence[Images]) -> Self:
        """Return the same for this backbone and these images, uint8 [N, H, W, 3] per product."""
        return self

    # JSON

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_json` wrote.

        A field with a default may be absent: older models do not know it. Raises UserError for
        unknown and for absent fields.
        """
        values = arguments(cls, data)
        require_size(values["image_size"])
        values["backbone"] = BackboneConfig(**arguments(BackboneConfig, values["backbone"]))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(DetectorConfig):
    """A detector that is trained by steps; those of its only stage are `num_steps`."""

    batch_size: int = 16
    num_steps: int = 10_000
    num_epochs: int | None = None
    """Passes over the images to train on; `for_images` makes steps of them."""
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_positive(
            batch_size=self.batch_size, num_steps=self.num_steps, learning_rate=self.learning_rate
        )
        require_fields_positive(num_epochs=self.num_epochs)

    @property
    def averages(self) -> bool:
        """Whether the mean of the weights over the steps is kept, not the last step's."""
        return True

    @property
    def extent(self) -> str:
        """Steps or epochs, and the size of a batch."""
        epochs = self.num_epochs
        length = f"{self.num_steps} steps" if epochs is None else f"{epochs} epochs"
        return f"{length} of {self.batch_size} images"

    def with_options(self, options: "TrainOptions") -> Self:
        """As `DetectorConfig.with_options`; steps and epochs take each other's place."""
        return replace(
            super().with_options(options),
            batch_size=preferred(options.batch_size, self.batch_size),
            num_steps=preferred(options.num_steps, self.num_steps),
            num_epochs=preferred(
                options.num_epochs, self.num_epochs if options.num_steps is None else None
            ),
            learning_rate=preferred(options.learning_rate, self.learning_rate),
        )

    def for_data(self, backbone: Backbone, images: Sequence[Images]) -> Self:
        """Return the same with its length in steps."""
        return self.for_images(sum(map(len, images)))

    def for_images(self, num_images: int) -> Self:
        """Return the same with its length in steps, for this many images to train on."""
        if self.num_epochs is None:
            return self
        num_steps = math.ceil(self.num_epochs * num_images / self.batch_size)
        return replace(self, num_steps=num_steps, num_epochs=None)


def preferred(option: T | None, preset: T) -> T:
    """An option, or the preset's value where it is not given."""
    return preset if option is None else option


def require_fields_positive(**fields: float | None) -> None:
    """Raise UserError for the first field that is given and not greater than 0."""
    for name, value in fields.items():
        if value is not None and not value > 0:
            raise UserError(f"{name}: got {value}, must be greater than 0")


def backbone_facts(config: BackboneConfig) -> str:
    """Which network, weights and layers, in words."""
    layers = ", ".join(map(str, config.layers))
    return f"{config.name} ({Path(config.weights).name} weights), layers {layers}"


def arguments(
    cls: type[DetectorConfig] | type[BackboneConfig], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a dataclass's arguments from JSON values, where tuples are lists.

    Raises UserError for unknown and for absent fields.
    """
    known = {field.name for field in fields(cls)}
    needed = {field.name for field in fields(cls) if field.default is MISSING}
    if not needed <= set(data) <= known:
        unknown, absent = sorted(set(data) - known), sorted(needed - set(data))
        raise UserError(
            f"{cls.__name__}: unknown fields {unknown}, absent fields {absent}; "
            "use the config.json that was saved with the model"
        )
    return {key: tupled(value) for key, value in data.items()}


def tupled(value: Any) -> Any:
    """Lists as tuples, within lists too."""
    return tuple(map(tupled, value)) if isinstance(value, list) else value
