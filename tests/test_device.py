import pytest
import torch

from synth.base.device import default_device, fastest_precision, make_accelerator, time_convolution


@pytest.mark.parametrize(
    ("bf16_seconds", "precision"), [(0.5, "bf16"), (0.79, "bf16"), (0.81, "fp32"), (3.0, "fp32")]
)
def test_a_cpu_takes_bf16_only_where_it_is_clearly_faster(
    bf16_seconds: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: bf16_seconds, torch.float32: 1.0}
    monkeypatch.setattr("synth.base.device.time_convolution", seconds.__getitem__)
    assert fastest_precision(torch.device("cpu")) == precision


def test_apples_gpu_computes_in_fp32() -> None:
    assert fastest_precision(torch.device("mps")) == "fp32"


def test_a_convolution_takes_time() -> None:
    assert 0 < time_convolution(torch.float32) < 60


def test_the_accelerator_is_on_the_default_device() -> None:
    accelerator = make_accelerator("fp32")
    assert accelerator.device.type == default_device().type
    assert accelerator.mixed_precision == "no"
