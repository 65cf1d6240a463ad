import pytest
import torch

from synth.base.device import default_device, fastest_precision, make_accelerator


@pytest.mark.parametrize(
    ("able", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"architecture": "aarch64"}, "fp32"),
    ],
)
def test_a_cpu_takes_bf16_where_it_has_instructions_for_it(
    able: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    assert fastest_precision(torch.device("cpu")) == precision
    assert make_accelerator("auto").mixed_precision == {"bf16": "bf16", "fp32": "no"}[precision]


def test_one_process_may_train_in_one_arithmetic_after_the_other() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(1, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)) * 2:
        accelerator = make_accelerator(precision)
        model = accelerator.prepare(layer)
        with accelerator.autocast():
            assert model(x.to(accelerator.device)).dtype in (dtype, torch.float32)
            assert torch.mm(x, x.T).dtype == dtype


def test_apples_gpu_computes_in_fp32() -> None:
    assert fastest_precision(torch.device("mps")) == "fp32"


def test_the_accelerator_is_on_the_default_device() -> None:
    accelerator = make_accelerator("fp32")
    assert accelerator.device.type == default_device().type
    assert accelerator.mixed_precision == "no"
