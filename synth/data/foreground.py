"""Foreground rules: which pixels of a normal image belong to the product, where anomalies may lie.

RealNet's 36 categories have theirs in a table (its code, not its paper); any other category gets
one fitted to its normal images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.data.background import background_distance, pooled_threshold, shows_objects

RuleMethod = Literal["everything", "otsu", "triangle", "background"]
Channel = Literal["grey", "red", "green", "blue"]
Polarity = Literal["bright", "dark"]

THRESHOLD_FLAGS = {"otsu": cv2.THRESH_OTSU, "triangle": cv2.THRESH_TRIANGLE}
CHANNEL_INDEX = {"red": 0, "green": 1, "blue": 2}
CHOICES = {
    "method": ("everything", "background", *THRESHOLD_FLAGS),
    "channel": ("grey", *CHANNEL_INDEX),
    "polarity": ("bright", "dark"),
}
REFERENCE_PX = 256
"""The image size to which the sizes of the morphology refer."""

SQUARE_PX = 6
"""Side of the squares of the generic rule; the most frequent one in the table."""

MAX_FIT_IMAGES = 16
"""How many of a category's normal images the generic rule is fitted to."""


@dataclass(frozen=True, kw_only=True)
class ForegroundRule:
    """How to find the product in an image.

    method: "everything" (textures); "otsu" or "triangle": the bright or dark side of that threshold
    of one channel; "background": farther than `distance` (Lab units) from the border's colour.
    close_px, open_px: squares of the closing, then the opening, pixels at size 256; 0 is none.
    fill_holes: whether holes in the product count as product. Raises UserError for bad values.
    """

    method: RuleMethod
    channel: Channel = "grey"
    polarity: Polarity = "bright"
    distance: float = 0.0
    close_px: int = 0
    open_px: int = 0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        values = asdict(self)
        for name, allowed in CHOICES.items():
            if values[name] not in allowed:
                raise UserError(
                    f"foreground {name}: got {values[name]!r}; use one of {', '.join(allowed)}"
                )
        for name in ("distance", "close_px", "open_px"):
            if not values[name] >= 0:
                raise UserError(f"foreground {name}: got {values[name]}; use 0 or more")

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Find the foreground, bool [H, W], of an image, uint8 [H, W, 3], RGB."""
        if self.method == "everything":
            return np.ones(image.shape[:2], np.bool_)
        mask = opened(closed(self._segment(image), self.close_px), self.open_px)
        return with_holes_filled(mask) if self.fill_holes else mask

    def _segment(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        if self.method == "background":
            return background_distance(image) > self.distance
        if self.channel == "grey":
            levels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        else:
            levels = np.ascontiguousarray(image[..., CHANNEL_INDEX[self.channel]])
        _, bright = cv2.threshold(levels, 0, 1, THRESHOLD_FLAGS[self.method])
        return bright == (self.polarity == "bright")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild the rule that `to_dict` saved. Raises UserError for unknown or missing fields."""
        names = [field.name for field in fields(cls)]
        if "method" not in saved or not set(saved) <= set(names):
            raise UserError(
                f"foreground rule: got the fields {sorted(saved)}; allowed are {', '.join(names)}, "
                "of which method must be there"
            )
        return cls(**saved)


def closed(mask: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    """Close gaps of a bool [H, W] mask with a square of `size_px` at image size 256.

    By hand, since OpenCV's own closing moves the mask when the side is even: the erosion has to use
    the mirrored square.
    """
    if size_px == 0:
        return mask
    height, width = mask.shape
    side_x = max(1, round(size_px * width / REFERENCE_PX))
    side_y = max(1, round(size_px * height / REFERENCE_PX))
    square = np.ones((side_y, side_x), np.uint8)
    anchor = (side_x // 2, side_y // 2)
    mirrored = (side_x - 1 - anchor[0], side_y - 1 - anchor[1])
    dilated = cv2.dilate(mask.astype(np.uint8), square, anchor=anchor)
    return cv2.erode(dilated, square, anchor=mirrored) > 0


def opened(mask: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    """Remove specks of a bool [H, W] mask with a square of `size_px` at image size 256."""
    return ~closed(~mask, size_px)


def with_holes_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Set every background region of a mask, bool [H, W], that no image edge touches."""
    outside = np.pad(~mask, 1, constant_values=True).view(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return labels[1:-1, 1:-1] != labels[0, 0]


EVERYTHING = ForegroundRule(method="everything")


def _threshold(
    method: RuleMethod, polarity: Polarity, close_px: int, open_px: int, channel: Channel = "grey"
) -> ForegroundRule:
    return ForegroundRule(
        method=method, polarity=polarity, close_px=close_px, open_px=open_px, channel=channel
    )


def _rows(
    dataset: str, categories: str, rule: ForegroundRule
) -> dict[tuple[str, str], ForegroundRule]:
    return {(dataset, category): rule for category in categories.split()}


# RealNet's code; MPDD is not opened there.
RULES: dict[tuple[str, str], ForegroundRule] = {
    **_rows("mvtec", "carpet leather tile wood cable transistor", EVERYTHING),
    **_rows("mvtec", "pill", _threshold("otsu", "bright", 6, 6)),
    **_rows("mvtec", "hazelnut metal_nut toothbrush", _threshold("triangle", "bright", 6, 6)),
    **_rows("mvtec", "bottle capsule grid screw zipper", _threshold("otsu", "dark", 6, 6)),
    **_rows("visa", "capsules", EVERYTHING),
    **_rows("visa", "pcb1 pcb2 pcb3 pcb4", _threshold("triangle", "bright", 8, 3, "blue")),
    **_rows(
        "visa",
        "candle cashew chewinggum fryum macaroni1 macaroni2 pipe_fryum",
        _threshold("otsu", "bright", 3, 3),
    ),
    **_rows(
        "mpdd",
        "bracket_black bracket_brown connector",
        _threshold("otsu", "dark", 6, 0, "green"),
    ),
    **_rows("mpdd", "bracket_white tubes", _threshold("otsu", "bright", 6, 0, "blue")),
    **_rows("mpdd", "metal_plate", _threshold("otsu", "dark", 6, 0)),
    **_rows("btad", "02", EVERYTHING),
    **_rows("btad", "01 03", _threshold("otsu", "bright", 15, 6)),
}


def foreground_for(
    dataset: str, category: str, images: Sequence[NDArray[np.uint8]]
) -> ForegroundRule:
    """Look (dataset, category) up in the table, else fit a rule to the category's normal images.

    images: uint8 [H, W, 3] each, RGB; read only when the table has no rule.
    """
    rule = RULES.get((dataset, category))
    return fit_foreground(images) if rule is None else rule


def fit_foreground(images: Sequence[NDArray[np.uint8]]) -> ForegroundRule:
    """Fit a rule to up to 16 of a category's normal images, spread over the sequence, together.

    "background" when the images show objects before a background, "everything" when they show a
    texture, or when in doubt: a mask on too much of the image teaches more than one on too little.
    images: uint8 [H, W, 3] each, RGB, of any size. Raises UserError when there are none.
    """
    if not images:
        raise UserError("foreground: got no normal image to fit the rule to; allowed is 1 or more")
    count = min(len(images), MAX_FIT_IMAGES)
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, count).round().astype(int)]
    small = [
        cv2.resize(image, (REFERENCE_PX, REFERENCE_PX), interpolation=cv2.INTER_AREA)
        for image in chosen
    ]
    distances = [background_distance(image) for image in small]
    threshold = round(pooled_threshold(distances), 2)
    # judged before holes are filled: in a texture of cells, those at the border would stay open
    masks = [opened(closed(distance > threshold, SQUARE_PX), SQUARE_PX) for distance in distances]
    if not shows_objects(masks, distances):
        return EVERYTHING
    return ForegroundRule(
        method="background",
        distance=threshold,
        close_px=SQUARE_PX,
        open_px=SQUARE_PX,
        fill_holes=True,
    )
