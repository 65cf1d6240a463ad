import json
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from skimage.morphology import closing, opening

from synth.base.errors import UserError
from synth.data.foreground import (
    EVERYTHING,
    RULES,
    ForegroundRule,
    closed,
    fit_foreground,
    foreground_for,
    opened,
    with_holes_filled,
)

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator
Colour = tuple[int, ...]
SIZE = 128
Y, X = np.mgrid[:SIZE, :SIZE]


# The table


def test_the_table_has_the_36_categories() -> None:
    datasets = [dataset for dataset, _ in RULES]
    counts = {name: datasets.count(name) for name in datasets}
    assert counts == {"mvtec": 15, "visa": 12, "mpdd": 6, "btad": 3}


@pytest.mark.parametrize(
    ("dataset", "category", "rule"),
    [
        ("mvtec", "transistor", EVERYTHING),
        ("mvtec", "hazelnut", ("triangle", "grey", "bright", 6, 6)),
        ("mvtec", "zipper", ("otsu", "grey", "dark", 6, 6)),
        ("visa", "pcb3", ("triangle", "blue", "bright", 8, 3)),
        ("visa", "pipe_fryum", ("otsu", "grey", "bright", 3, 3)),
        ("mpdd", "connector", ("otsu", "green", "dark", 6, 0)),
        ("mpdd", "tubes", ("otsu", "blue", "bright", 6, 0)),
        ("btad", "03", ("otsu", "grey", "bright", 15, 6)),
    ],
)
def test_rows_of_the_table(
    dataset: str, category: str, rule: ForegroundRule | tuple[str, str, str, int, int]
) -> None:
    got = foreground_for(dataset, category, [])
    if isinstance(rule, ForegroundRule):
        assert got == rule
    else:
        assert (got.method, got.channel, got.polarity, got.close_px, got.open_px) == rule


# A rule


def test_otsu_finds_either_side_in_the_channel_it_is_told() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    image[20:40, 10:50, 2] = 220  # a square that only the blue channel shows clearly
    square = np.zeros((64, 64), np.bool_)
    square[20:40, 10:50] = True
    bright = ForegroundRule(method="otsu", channel="blue")
    dark = ForegroundRule(method="otsu", channel="blue", polarity="dark")
    red = ForegroundRule(method="otsu", channel="red")
    np.testing.assert_array_equal(bright.apply(image), square)
    np.testing.assert_array_equal(dark.apply(image), ~square)
    assert np.unique(red.apply(image)).size == 1


def test_triangle_finds_a_small_bright_part() -> None:
    rng = np.random.default_rng(0)
    grey = np.clip(rng.normal(40, 5, (96, 96)), 0, 255).astype(np.uint8)
    grey[40:56, 40:56] = 180
    mask = ForegroundRule(method="triangle", open_px=6).apply(np.dstack([grey] * 3))
    assert mask[40:56, 40:56].all()
    assert mask.sum() < 1.1 * 16 * 16


@pytest.mark.parametrize("size_px", [0, 3, 6, 8])
def test_morphology_is_that_of_scikit_image_and_does_not_move_the_mask(size_px: int) -> None:
    mask = cv2.GaussianBlur(np.random.default_rng(0).random((256, 256)), (0, 0), 3) > 0.5
    square = np.ones((max(1, size_px), max(1, size_px)), np.bool_)
    inner = np.s_[16:-16, 16:-16]
    np.testing.assert_array_equal(closed(mask, size_px)[inner], closing(mask, square)[inner])
    np.testing.assert_array_equal(opened(mask, size_px)[inner], opening(mask, square)[inner])
    assert not (mask & ~closed(mask, size_px)).any()
    assert not (opened(mask, size_px) & ~mask).any()


def test_morphology_grows_with_the_image() -> None:
    mask = np.zeros((512, 256), np.bool_)
    mask[100:110, 100:105] = True  # 10 high, 5 wide: 5 x 5 at 256 x 256
    np.testing.assert_array_equal(opened(mask, 5), mask)
    assert not opened(mask, 6).any()


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[2:12, 2:12] = True
    filled = mask.copy()
    mask[5:8, 5:8] = False
    mask[0:4, 15] = mask[3, 15:20] = True  # encloses a corner together with the image's edges
    filled |= mask
    np.testing.assert_array_equal(with_holes_filled(mask), filled)


def test_a_rule_survives_json() -> None:
    for rule in (*RULES.values(), ForegroundRule(method="background", distance=7.25)):
        assert ForegroundRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"method": "magic"}, "foreground method: got 'magic'; use one of everything"),
        ({"method": "otsu", "channel": "alpha"}, "foreground channel: got 'alpha'"),
        ({"method": "otsu", "open_px": -1}, "foreground open_px: got -1"),
        ({"method": "background", "distance": float("nan")}, "foreground distance: got nan"),
        ({"channel": "grey"}, "method must be there"),
        ({"method": "otsu", "colour": "red"}, "got the fields"),
    ],
)
def test_a_bad_rule_is_refused(saved: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ForegroundRule.from_dict(saved)


# The generic rule: scenes with a known answer


def noisy(rng: Rng, colour: Colour, noise: float) -> NDArray[np.float64]:
    return np.array(colour) + rng.normal(0, noise, (SIZE, SIZE, 3))


def to_image(scene: NDArray[np.float64]) -> Image:
    return np.clip(scene, 0, 255).astype(np.uint8)


def polygon(rng: Rng) -> Mask:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = 0.38 * SIZE * rng.uniform(0.8, 1, 9)
    corners = SIZE * rng.uniform(0.45, 0.55, 2) + np.stack(
        [radii * np.cos(angles), radii * np.sin(angles)], axis=1
    )
    return cv2.fillPoly(np.zeros((SIZE, SIZE), np.uint8), [corners.astype(np.int32)], 1) > 0


def disc(y: float, x: float, radius: float) -> Mask:
    return (Y - y * SIZE) ** 2 + (X - x * SIZE) ** 2 <= (radius * SIZE) ** 2


def several(rng: Rng) -> Mask:
    centres = [(y + rng.uniform(-0.03, 0.03), x) for y in (0.28, 0.72) for x in (0.2, 0.5, 0.8)]
    return np.any([disc(y, x, 0.1) for y, x in centres], axis=0)


def band(rng: Rng) -> Mask:
    return np.abs(X - SIZE * rng.uniform(0.45, 0.55)) < 0.2 * SIZE


OBJECTS: dict[str, tuple[Callable[[Rng], Mask], Colour, Colour, float]]
OBJECTS = {  # shape, colour of the background and of the object, noise
    "dark on white": (polygon, (245, 245, 245), (50, 50, 55), 3),
    "white on black": (polygon, (10, 10, 10), (220, 220, 220), 3),
    "low contrast": (polygon, (120, 120, 120), (136, 136, 136), 2),
    "noisy": (polygon, (60, 70, 60), (170, 160, 150), 15),
    "colour alone": (polygon, (110, 120, 110), (150, 95, 115), 3),
    "several small ones": (several, (20, 20, 20), (180, 150, 90), 3),
    "one small one": (
        lambda rng: disc(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), 0.12),
        (200,) * 3,
        (90,) * 3,
        3,
    ),
    "a band through the image": (band, (240, 240, 240), (90, 90, 90), 3),
}


@pytest.mark.parametrize("light", [0.0, 0.25], ids=["even light", "light from one side"])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_found(name: str, light: float) -> None:
    shape, background, colour, noise = OBJECTS[name]
    rng = np.random.default_rng(0)
    truths = [shape(rng) for _ in range(8)]
    falloff = (1 + light * (2 * X / SIZE - 1))[..., None]
    images = [
        to_image(
            falloff
            * np.where(truth[..., None], noisy(rng, colour, noise), noisy(rng, background, noise))
        )
        for truth in truths
    ]
    rule = fit_foreground(images)
    assert rule.method == "background"
    for image, truth in zip(images, truths, strict=True):
        mask = rule.apply(image)
        assert np.count_nonzero(mask & truth) > 0.95 * np.count_nonzero(truth)
        assert np.count_nonzero(mask & ~truth) < 0.25 * np.count_nonzero(truth)


def test_the_hole_of_a_ring_and_pale_parts_belong_to_the_object() -> None:
    rng = np.random.default_rng(0)
    outline = disc(0.5, 0.5, 0.42)
    images = []
    for _ in range(4):
        scene = np.where(outline[..., None], noisy(rng, (60, 60, 60), 3), noisy(rng, (250,) * 3, 2))
        scene[disc(0.5, 0.5, 0.2)] = 245
        scene[outline & (X > 0.7 * SIZE)] = 210
        images.append(to_image(scene))
    mask = fit_foreground(images).apply(images[0])
    assert np.mean(mask == outline) > 0.97


def two_tone(rng: Rng, mask: Mask) -> NDArray[np.float64]:
    return np.where(mask[..., None], noisy(rng, (190, 185, 180), 6), noisy(rng, (130, 70, 50), 8))


def bricks(rng: Rng) -> NDArray[np.float64]:
    y, x = Y + rng.integers(64), X + rng.integers(64)
    return two_tone(rng, (y % 20 < 4) | ((x + 17 * (y // 20 % 2)) % 34 < 4))


def tiles(rng: Rng) -> NDArray[np.float64]:
    return two_tone(rng, ((Y + rng.integers(45)) % 45 < 4) | ((X + rng.integers(45)) % 45 < 4))


def grid(rng: Rng) -> NDArray[np.float64]:
    return two_tone(
        rng, ((Y + X + rng.integers(20)) % 20 < 7) | ((Y - X + rng.integers(20)) % 20 < 7)
    )


def checks(rng: Rng) -> NDArray[np.float64]:
    y, x = Y + rng.integers(32), X + rng.integers(32)
    return two_tone(rng, (y // 16 + x // 16) % 2 > 0)


def smooth(rng: Rng, sigma_y: float, sigma_x: float) -> NDArray[np.float64]:
    field = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    return (field / field.std())[..., None]


TEXTURES: dict[str, Callable[[Rng], NDArray[np.float64]]] = {
    "bricks": bricks,
    "tiles": tiles,
    "grid": grid,
    "checks": checks,
    "wood": lambda rng: (150, 110, 70) + smooth(rng, 30, 1) * (18, 16, 12),
    "stains": lambda rng: noisy(rng, (150, 150, 140), 5) - 40 * (smooth(rng, 7, 7) > 0.8),
    "clouds": lambda rng: noisy(rng, (140, 140, 140), 5) + 15 * smooth(rng, 12, 12),
    "grain": lambda rng: noisy(rng, (120, 100, 80), 25),
    "nothing": lambda rng: noisy(rng, (120, 120, 120), 2),
    "one colour": lambda rng: np.full((SIZE, SIZE, 3), 77.0),
}
LIGHTS = {
    "even light": np.ones((SIZE, SIZE, 1)),
    "light from one side": (0.7 + 0.6 * X / SIZE)[..., None],
    "dark corners": (1 - 0.3 * (((2 * X / SIZE - 1) ** 2 + (2 * Y / SIZE - 1) ** 2) / 2))[
        ..., None
    ],
}


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_everything(name: str, light: str) -> None:
    rng = np.random.default_rng(0)
    images = [to_image(TEXTURES[name](rng) * LIGHTS[light]) for _ in range(8)]
    assert fit_foreground(images) == EVERYTHING


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_photographed_textures_are_everything(name: str) -> None:
    photographs = {
        "brick": skimage.data.brick,
        "grass": skimage.data.grass,
        "gravel": skimage.data.gravel,
    }
    photograph = np.dstack([photographs[name]()] * 3)
    crops = [photograph[y : y + 128, x : x + 128] for y in (0, 190, 384) for x in (0, 190, 384)]
    assert fit_foreground(crops) == EVERYTHING
    assert fit_foreground(crops[4:5]) == EVERYTHING


def test_photographed_coins_are_objects() -> None:
    coins = np.dstack([skimage.data.coins()] * 3)
    rule = fit_foreground([coins])
    assert rule.method == "background"
    mask = rule.apply(coins)
    assert mask[45:60, 40:55].all()  # on a coin
    assert not mask[:, :4].any()


def test_the_rule_does_not_depend_on_the_order_of_few_images_and_samples_many() -> None:
    rng = np.random.default_rng(0)
    images = [
        to_image(
            np.where(polygon(rng)[..., None], noisy(rng, (40,) * 3, 3), noisy(rng, (230,) * 3, 3))
        )
        for _ in range(5)
    ]
    assert fit_foreground(images) == fit_foreground(images[::-1])
    assert fit_foreground(images * 8).method == "background"


def test_an_unknown_category_gets_the_generic_rule() -> None:
    images = [np.full((32, 48, 3), 9, np.uint8)]
    assert foreground_for("own", "bottle", images) == EVERYTHING
    with pytest.raises(UserError, match="got no normal image"):
        foreground_for("own", "bottle", [])
