import hashlib
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from tiny import UNET, write_model

import synth.diffusion.hub_download
from synth.base.errors import UserError
from synth.diffusion.config import PRESETS, UNetConfig
from synth.diffusion.ddpm import STYLES, build_unet, unet_arguments
from synth.diffusion.init_from import Source, fit_source, load_source, shape_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
# config.json of the public google/ddpm-cat-256 (celebahq-256 has the same)
CAT_256 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
SMALL = UNetConfig(
    image_size=(16, 16),
    block_channels=(8, 16),
    attention_levels=(1,),
    head_channels=None,
    norm_groups=4,
    style="ddpm",
)


def fixed_variance(unet: UNetConfig = SMALL) -> UNet2DModel:
    """A network as a public DDPM is: no variance among its outputs, no weight at zero."""
    arguments = {**unet_arguments(unet), "out_channels": unet.num_channels}
    network = UNet2DModel(**arguments)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    return network.eval()


def run(network: UNet2DModel, channels: int = 3) -> torch.Tensor:
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(x, torch.tensor([5, 900])).sample


def initialised(source: Source, config: UNetConfig) -> UNet2DModel:
    network = build_unet(config)
    network.load_state_dict({**network.state_dict(), **fit_source(source, config).weights})
    return network


def test_the_base_preset_is_the_public_256_px_network() -> None:
    from_scratch = replace(PRESETS["base"].unet, prediction="epsilon")
    assert shape_of(CAT_256, "cat") == from_scratch
    arguments = {k: v for k, v in CAT_256.items() if not k.startswith("_")}
    with torch.device("meta"):
        theirs, ours = UNet2DModel(**arguments), build_unet(PRESETS["base"].unet)
    assert sum(p.numel() for p in theirs.parameters()) == 113_673_219
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {n for n, t in theirs.state_dict().items() if shapes[n] != t.shape} == {
        "conv_out.weight",
        "conv_out.bias",
    }


@pytest.mark.parametrize("place", ["unet", "."])
def test_a_fixed_variance_network_is_widened_and_keeps_its_noise(
    tmp_path: Path, place: str
) -> None:
    network = fixed_variance()
    if place == "unet":
        DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    else:
        network.save_pretrained(tmp_path)
    source = load_source(str(tmp_path))
    assert source.unet.style == "ddpm"
    folder = tmp_path / place
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest().startswith(source.digest)
    fit = fit_source(source, SMALL)
    assert (fit.widened, fit.fresh, fit.unused) == (True, [], [])
    assert "conv_out is widened" in fit.summary
    output = run(initialised(source, SMALL))
    torch.testing.assert_close(output[:, :3], run(network), rtol=0, atol=1e-6)
    assert (output[:, 3:] == -1).all()


def test_our_own_model_comes_back_whole(tmp_path: Path) -> None:
    source = load_source(str(write_model(tmp_path, UNET)))
    fit = fit_source(source, UNET)
    assert (fit.widened, fit.fresh, fit.unused) == (False, [], [])
    saved = load_file(tmp_path / "unet" / WEIGHTS)
    assert fit.weights.keys() == saved.keys()
    assert all(torch.equal(fit.weights[name], saved[name]) for name in saved)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_style_is_recognised_by_its_saved_config(
    tmp_path: Path, style: str, channels: int
) -> None:
    unet = UNetConfig.from_json(
        {**vars(SMALL), "style": style, "num_channels": channels, "head_channels": 8}
    )
    build_unet(unet).save_pretrained(tmp_path)
    found = load_source(str(tmp_path)).unet
    assert found == UNetConfig.from_json({**vars(unet), "image_size": (256, 256)})


def test_what_does_not_fit_is_named_with_its_shape() -> None:
    network = fixed_variance()
    weights = {**network.state_dict(), "class_embedding.weight": torch.zeros(1000, 32)}
    source = Source("some/model", SMALL, weights, "0" * 16)
    wanted = UNetConfig.from_json({**vars(SMALL), "num_channels": 1, "num_categories": 4})
    fit = fit_source(source, wanted)
    assert fit.fresh == [
        "conv_in.weight [8, 1, 3, 3]",
        "class_embedding.weight [4, 32]",
        "conv_out.weight [2, 8, 3, 3]",
        "conv_out.bias [2]",
    ]
    assert set(fit.unused) == {
        "conv_in.weight [8, 3, 3, 3]",
        "class_embedding.weight [1000, 32]",
        "conv_out.weight [3, 8, 3, 3]",
        "conv_out.bias [3]",
    }
    assert not fit.widened
    assert "at random: conv_in.weight" in fit.summary
    assert "not used: " in fit.summary
    assert json.loads(json.dumps(fit.to_json()))["source"] == "some/model"
    assert initialised(source, wanted).conv_out.weight.shape == (2, 8, 3, 3)


# Mistakes


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--init-from: no file or folder .*give a"):
        load_source(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no diffusers network"):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "its network is a UNet2DConditionModel"),
        ({"in_channels": 4, "out_channels": 4}, "got 4 channels in and 4 out"),
        ({"out_channels": 4}, "got 3 channels in and 4 out"),
        ({"time_embedding_type": "fourier"}, "another kind .*time_embedding_type 'fourier'"),
        ({"norm_eps": 1e-3}, "another kind .*norm_eps 0.001, ours 1e-06"),
        ({"up_block_types": ["UpBlock2D"] * 6}, "another kind .*up_block_types"),
    ],
)
def test_a_network_of_another_kind_is_refused_with_what_differs(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        shape_of({**CAT_256, **change}, "model")


@pytest.mark.parametrize("value", ["odd", None, [None], {}])
@pytest.mark.parametrize("field", ["block_out_channels", "down_block_types", "dropout"])
def test_an_odd_value_in_a_networks_file_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    fixed_variance().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UserError, match=r"damaged|of another kind|attention_levels: got 1"):
        load_source(str(tmp_path))


@pytest.mark.parametrize("fault", ["missing", "shape", "cut"])
def test_damaged_weights_are_refused(tmp_path: Path, fault: str) -> None:
    fixed_variance().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    if fault == "missing":
        del weights["conv_in.bias"]
    elif fault == "shape":
        weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    if fault == "cut":
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(UserError, match=r"safetensors: (damaged|does not fit)"):
        load_source(str(tmp_path))


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A loopback Hub with models below `tmp_path`/hub; the real client fetches from it."""
    root = tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model, _, file = self.path.lstrip("/").partition("/resolve/main/")
            path = root / model / file
            if model == "org/gated":
                return self.answer(403, {"X-Error-Code": "GatedRepo"})
            if model == "org/ill":
                return self.answer(500, {})
            if not (root / model).is_dir():
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            if not path.is_file():
                return self.answer(
                    404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40}
                )
            data = path.read_bytes()
            about = {"X-Repo-Commit": "a" * 40, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            return self.answer(200, about, data)

        do_HEAD = do_GET

        def answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fetch = partial(
        hf_hub_download,
        endpoint=f"http://127.0.0.1:{server.server_port}",
        cache_dir=tmp_path / "cache",
        token=False,
    )
    monkeypatch.setattr(synth.diffusion.hub_download, "hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield root
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_a_model_comes_from_the_hub_and_then_from_the_cache(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fixed_variance()
    network.save_pretrained(hub / "org/flat")
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(hub / "org/pipeline")
    flat, pipeline = load_source("org/flat"), load_source("org/pipeline")
    assert flat.name == "org/flat"
    assert flat.digest == pipeline.digest
    expected = network.state_dict()
    assert all(torch.equal(flat.weights[name], expected[name]) for name in expected)
    refused = partial(synth.diffusion.hub_download.hf_hub_download, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(synth.diffusion.hub_download, "hf_hub_download", refused)
    assert load_source("org/flat").digest == flat.digest


def test_what_goes_wrong_at_the_hub_is_one_line_with_a_way_out(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "org/empty").mkdir(parents=True)
    for name, message in {
        "org/none": "no such folder here and no such model on the Hub, or a private one",
        "org/gated": "its owner asks for consent; accept at https://huggingface.co/org/gated",
        "org/empty": "that model has no config.json",
        "org/ill": "the Hub cannot be reached|the download failed",
    }.items():
        with pytest.raises(UserError, match=message) as refused:
            load_source(name)
        assert "\n" not in str(refused.value)
    refused = partial(synth.diffusion.hub_download.hf_hub_download, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(synth.diffusion.hub_download, "hf_hub_download", refused)
    with pytest.raises(UserError, match="the Hub cannot be reached; download the model"):
        load_source("org/other")
