import json
from dataclasses import asdict, replace

import pytest

from synth.base.errors import UserError
from synth.diffusion.config import (
    PRESETS,
    RunConfig,
    SdasConfig,
    TrainConfig,
    UNetConfig,
    nearest_multiple,
)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 101), "multiple of 4 and at least 8; try 100 for 101"),
        ((4, 64), "try 8 for 4"),
        ((0, 64), "try 8 for 0"),
    ],
)
def test_a_size_that_does_not_fit_names_one_that_does(size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNetConfig(image_size=size)


@pytest.mark.parametrize("side", range(0, 200, 7))
def test_the_suggested_side_is_allowed_and_nearest(side: int) -> None:
    suggestion = nearest_multiple(side, 4)
    assert UNetConfig(image_size=(suggestion, 64)).image_size[0] == suggestion
    assert all(abs(suggestion - side) <= abs(other - side) for other in range(8, 400, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_levels": (1, 3)}, "attention_levels: got 3, allowed 0 to 2"),
        ({"attention_levels": (-1,)}, "attention_levels: got -1"),
        ({"num_categories": 0}, "num_categories: got 0"),
        ({"block_channels": (32, 64, 100)}, "block_channels: got 100"),
        ({"head_channels": 48}, "head_channels"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        UNetConfig.from_json(asdict(UNetConfig()) | changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", 1.0),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
    ],
)
def test_training_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        replace(TrainConfig(), **{field: value})


@pytest.mark.parametrize("num_steps", [0, 1, 30, 600, 1001])
def test_steps_that_do_not_divide_the_chain_are_refused(num_steps: int) -> None:
    with pytest.raises(UserError, match=f"num_steps: got {num_steps}, must divide 1000; try 20"):
        SdasConfig(num_steps=num_steps)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed: got -1"):
        SdasConfig(seed=-1)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_configurations_come_back_from_json(preset: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(preset.to_json()))) == preset


def test_a_configuration_of_the_first_version_still_says_the_same() -> None:
    """As in the config.json of models that were made before levels and styles could be chosen."""
    old = {
        "image_size": [96, 96],
        "num_channels": 1,
        "block_channels": [32, 32, 64, 128],
        "layers_per_block": 1,
        "attention_levels": 1,
        "head_channels": 32,
        "norm_groups": 16,
    }
    small = replace(PRESETS["small"].unet, prediction="epsilon")
    expected = replace(small, image_size=(96, 96), num_channels=1)
    assert UNetConfig.from_json(old) == expected
    two = UNetConfig.from_json({**old, "attention_levels": 2})
    assert two.attention_levels == (2, 3)


def test_heads_need_only_fit_where_there_is_attention() -> None:
    unet = UNetConfig(block_channels=(16, 64), attention_levels=(1,), head_channels=64)
    assert unet.head_channels == 64


def test_quarter_turns_need_square_images() -> None:
    assert TrainConfig(rotate=True).rotate
    with pytest.raises(UserError, match=r"rotate: got images of 64x96.*give a square --size"):
        TrainConfig(rotate=True, unet=UNetConfig(image_size=(64, 96)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, "accumulate: got 0"),
        ({"sample_every": 0}, "sample_every: got 0"),
        ({"keep_checkpoints": -1}, "keep_checkpoints: got -1"),
        ({"keep_checkpoints": 2}, "keep_checkpoints: got 2 without .* give --sample-every too"),
    ],
)
def test_a_run_that_cannot_be_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RunConfig(), **values)


@pytest.mark.parametrize("values", [{"sides": [64, 64]}, {"image_size": 64}])
def test_a_foreign_network_description_is_a_type_error(values: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        UNetConfig.from_json(values)
