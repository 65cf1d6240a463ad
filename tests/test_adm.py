"""Conversion of ADM checkpoints against a network written here from the paper's description."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synth.base.errors import UserError
from synth.diffusion.adm import convert_adm
from synth.diffusion.config import PRESETS
from synth.diffusion.ddpm import build_unet
from synth.diffusion.init_from import load_source

HEAD = 64


class Residual(nn.Module):
    """Group norm, SiLU, convolution; then scale and shift by the timestep. May halve or double."""

    def __init__(self, width: int, out: int, time: int, resample: str = "") -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.resample = resample

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "half":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.resample == "double" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(self.resampled(x)) + self.out_layers[3](self.out_layers[1](h))


class Attention(nn.Module):
    """Heads of 64 channels; the rows of qkv are, head after head, its queries, keys, values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        flat = x.flatten(2)
        outputs = []
        for head in self.qkv(self.norm(flat)).split(3 * HEAD, dim=1):
            q, k, v = head[:, :HEAD], head[:, HEAD : 2 * HEAD], head[:, 2 * HEAD :]
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(HEAD), dim=2)
            outputs.append(v @ weights.transpose(1, 2))
        return (flat + self.proj_out(torch.cat(outputs, dim=1))).view_as(x)


class Adm(nn.Module):
    def __init__(
        self, widths: list[int], layers: int, attended: set[int], num_categories: int | None
    ) -> None:
        super().__init__()
        base, time = widths[0], 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        if num_categories:
            self.label_emb = nn.Embedding(num_categories, time)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, base, 3, padding=1)])])
        width, skips = base, [base]
        for level, out in enumerate(widths):
            for _ in range(layers):
                block = [Residual(width, out, time)]
                self.input_blocks.append(
                    nn.ModuleList(block + [Attention(out)] * (level in attended))
                )
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                half = Residual(width, width, time, "half")
                self.input_blocks.append(nn.ModuleList([half]))
                skips.append(width)
        self.middle_block = nn.ModuleList(
            [Residual(width, width, time), Attention(width), Residual(width, width, time)]
        )
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for n in range(layers + 1):
                block: list[nn.Module] = [Residual(width + skips.pop(), out, time)]
                width = out
                if level in attended:
                    block.append(Attention(out))
                if level > 0 and n == layers:
                    block.append(Residual(out, out, time, "double"))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(
            nn.GroupNorm(32, base), nn.SiLU(), nn.Conv2d(base, 6, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        half = self.time_embed[0].in_features // 2
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if label is not None:
            emb = emb + self.label_emb(label)
        kept = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


def tiny_adm(
    widths: tuple[int, ...] = (64, 128),
    layers: int = 1,
    attended: tuple[int, ...] = (1,),
    num_categories: int | None = 3,
) -> Adm:
    torch.default_generator.manual_seed(0)
    return Adm(list(widths), layers, set(attended), num_categories)


@pytest.mark.parametrize(
    "network",
    [tiny_adm(), tiny_adm((32, 64, 128), 2, (1, 2), None)],
    ids=["one block a level, 3 categories", "two blocks, three levels"],
)
def test_the_converted_network_computes_the_same(network: Adm) -> None:
    categories = 3 if hasattr(network, "label_emb") else None
    unet, weights = convert_adm(network.state_dict())
    ours = build_unet(type(unet)(**{**vars(unet), "num_categories": categories}))
    ours.load_state_dict(weights)
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, 16, 24, generator=g), torch.tensor([3, 950])
    label = None if categories is None else torch.tensor([2, 0])
    with torch.no_grad():
        expected, got = network(x, t, label), ours(x, t, class_labels=label).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_realnets_trainer_saves_is_read(tmp_path: Path, prefix: str) -> None:
    state = tiny_adm(num_categories=None).state_dict()
    kept = {"epoch": 3, "state_dict": {prefix + name: value for name, value in state.items()}}
    torch.save(kept | {"optimizer": {"state": {}}}, tmp_path / "epoch_3.pth")
    source = load_source(str(tmp_path / "epoch_3.pth"))
    _, want = convert_adm(state)
    assert source.weights.keys() == want.keys()
    assert all(torch.equal(source.weights[name], want[name]) for name in want)


def test_the_adm_preset_is_what_an_adm_file_is_read_as() -> None:
    """The names and shapes of 256x256_diffusion.pt, from the network written above."""
    widths = PRESETS["adm"].unet.block_channels
    with torch.device("meta"):
        network = Adm(list(widths), 2, {3, 4, 5}, 1000)
    state = network.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 553_838_086
    unet, weights = convert_adm(state)
    assert unet == PRESETS["adm"].unet
    with torch.device("meta"):
        ours = build_unet(unet).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {
        name: t.shape for name, t in weights.items() if name != "class_embedding.weight"
    }


# Mistakes


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adm.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"adm\.pt: not a file of PyTorch weights .*--init-from"):
        load_source(str(tmp_path / "adm.pt"))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": Evil()}, tmp_path / "adm.pt")
    with pytest.raises(UserError, match="not a file of PyTorch weights"):
        load_source(str(tmp_path / "adm.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no ADM checkpoint"),
        ({"step": 3}, "no ADM checkpoint"),
        ({"state_dict": {"epoch": 3}}, "no ADM checkpoint"),
        ({"state_dict": {3: torch.zeros(1)}}, "no ADM U-Net"),
        ({}, "no ADM U-Net"),
        ({"conv1.weight": torch.zeros(3)}, "no ADM U-Net"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=rf"other\.pt: {message}"):
        load_source(str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("middle_block.1.qkv.bias"), "3 tensors are missing .*to_q.bias"),
        (lambda s: s.update({"extra.0.weight": torch.zeros(1)}), "unexpected extra.0.weight"),
        (lambda s: s.update({"out.0.weight": torch.zeros(5)}), "another shape"),
        (lambda s: s.update({"time_embed.0.weight": torch.zeros(9, 9)}), "time embedding"),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3)}), "6 channels"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused(tmp_path: Path, change, message: str) -> None:
    state = dict(tiny_adm().state_dict())
    change(state)
    torch.save(state, tmp_path / "adm.pt")
    with pytest.raises(UserError, match=message):
        load_source(str(tmp_path / "adm.pt"))


@pytest.mark.parametrize(
    ("widths", "name"),
    [((192, 384, 576, 768), "64 px"), ((256, 256, 512, 768, 1024), "128 px")],
)
def test_networks_with_another_attention_are_refused(widths: tuple[int, ...], name: str) -> None:
    with torch.device("meta"):
        state = Adm(list(widths), 1, {1}, 10).state_dict()
    with pytest.raises(UserError, match=f"the {name} network"):
        convert_adm(state)
