"""Random changes of a texture photograph, so that a few thousand give as much variety as many more.

Source: DRAEM (Zavrtanik et al., ICCV 2021) and RealNet's code: three of ten operations, drawn anew
for every use. The operations are Pillow's and OpenCV's; the ranges are those of the published code.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image as PIL
from PIL import ImageEnhance, ImageOps

from synth.pictures import Image

Operation = Callable[[Image, np.random.Generator], Image]

NUM_OPERATIONS = 3
MAX_DEGREES = 45.0
MAX_HUE_SHIFT = 50  # of the 256 levels of hue, and of saturation
LIGHTNESS = (
    (cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB, 0),
    (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
    (cv2.COLOR_RGB2HLS, cv2.COLOR_HLS2RGB, 1),
    (cv2.COLOR_RGB2Lab, cv2.COLOR_Lab2RGB, 0),
    (cv2.COLOR_RGB2Luv, cv2.COLOR_Luv2RGB, 0),
    (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB, 0),
)
"""Colour spaces: there, back, the channel of brightness."""


def augmented(texture: Image, rng: np.random.Generator, *, official: bool = False) -> Image:
    """Apply three different operations, in a random order, to uint8 [H, W, 3]; same shape.

    official: use the published form of the two operations that we changed.
    """
    operations = OPERATIONS | OFFICIAL if official else OPERATIONS
    for number in rng.choice(len(operations), NUM_OPERATIONS, replace=False):
        texture = operations[OPERATION_NAMES[number]](texture, rng)
    return texture


def gamma(image: Image, rng: np.random.Generator) -> Image:
    """Each channel to a power from 0.5 to 2."""
    unit = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.5, 2, 3)  # [levels, 3]
    levels = np.rint(255 * unit).astype(np.uint8)
    return np.stack([levels[image[..., k], k] for k in range(3)], axis=-1)


def brightness(image: Image, rng: np.random.Generator) -> Image:
    """Levels times 0.8 to 1.2, plus up to 30 either way."""
    changed = rng.uniform(0.8, 1.2) * image.astype(np.float32) + rng.uniform(-30, 30)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def brightness_of_a_colour_space(image: Image, rng: np.random.Generator) -> Image:
    """The same in the channel of brightness alone, of a colour space drawn at random."""
    there, back, channel = LIGHTNESS[rng.integers(len(LIGHTNESS))]
    converted = np.asarray(cv2.cvtColor(image, there), np.uint8)
    converted[..., channel] = brightness(converted[..., channel], rng)
    return np.asarray(cv2.cvtColor(converted, back), np.uint8)


def sharpness(image: Image, rng: np.random.Generator) -> Image:
    """From blurred (0) through as it is (1) to twice as sharp."""
    return np.asarray(ImageEnhance.Sharpness(PIL.fromarray(image)).enhance(rng.uniform(0, 2)))


def hue_and_saturation(image: Image, rng: np.random.Generator) -> Image:
    """Hue turned round its circle and saturation shifted."""
    hsv = np.asarray(PIL.fromarray(image).convert("HSV")).astype(np.int16)
    shift = rng.integers(-MAX_HUE_SHIFT, MAX_HUE_SHIFT + 1, 2)
    hsv[..., 0] = (hsv[..., 0] + shift[0]) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] + shift[1], 0, 255)
    return np.asarray(PIL.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))


def solarize(image: Image, rng: np.random.Generator) -> Image:
    """Half the time, levels from a threshold of 32 to 128 upwards are inverted."""
    threshold = rng.integers(32, 129)
    return np.where((image >= threshold) & (rng.random() < 0.5), 255 - image, image)


def posterize(image: Image, rng: np.random.Generator) -> Image:
    """One to eight bits per channel are kept."""
    bits = int(rng.integers(1, 9))
    return np.asarray(ImageOps.posterize(PIL.fromarray(image), bits))


def invert(image: Image, rng: np.random.Generator) -> Image:
    """Every level from the other end."""
    return 255 - image


def autocontrast(image: Image, rng: np.random.Generator) -> Image:
    """Each channel stretched to the whole range, but for up to 20 % of its pixels at either end."""
    cutoff = int(rng.integers(0, 21))
    return np.asarray(ImageOps.autocontrast(PIL.fromarray(image), cutoff=cutoff))


def equalize(image: Image, rng: np.random.Generator) -> Image:
    """Each channel's histogram made flat."""
    return np.asarray(ImageOps.equalize(PIL.fromarray(image)))


def rotate(image: Image, rng: np.random.Generator, border: int = cv2.BORDER_REFLECT_101) -> Image:
    """Turned by up to 45 degrees about the centre; the corners are mirrored.

    The published code leaves them black: a patch of black that no texture has.
    """
    H, W = image.shape[:2]
    turn = cv2.getRotationMatrix2D((W / 2, H / 2), rng.uniform(-MAX_DEGREES, MAX_DEGREES), 1.0)
    result = cv2.warpAffine(image, turn, (W, H), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(result, np.uint8)


OPERATIONS: dict[str, Operation] = {
    "gamma": gamma,
    "brightness": brightness,
    "sharpness": sharpness,
    "hue and saturation": hue_and_saturation,
    "solarize": solarize,
    "posterize": posterize,
    "invert": invert,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": rotate,
}
OPERATION_NAMES = tuple(OPERATIONS)
OFFICIAL: dict[str, Operation] = {
    "brightness": brightness_of_a_colour_space,
    "rotate": partial(rotate, border=cv2.BORDER_CONSTANT),
}
