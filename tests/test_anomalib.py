"""Exports as anomalib itself reads them. It is not one of our dependencies; CONTRIBUTING.md tells
how to run this file in an environment of its own.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.normals import Normals, load_normals
from synth.images import read_image
from synth.publishing.export import Exported, export_sia
from synth.sia.reader import SiaFolder, open_sia
from tests.products import write_product, write_sources
from tests.test_export import NUM, SIZE, write_blended

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("anomalib") is None,
        reason="anomalib is not installed; see CONTRIBUTING.md for its environment",
    ),
    pytest.mark.filterwarnings("ignore"),  # of anomalib and lightning, which are not ours
]

LOADER = {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 2, "val_split_mode": "none"}
MODEL_SIZE = (64, 64)


class Case:
    """A blended folder, its normals, and what an export of them holds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        category = open_category("folder", write_product(root / "widget"), None)
        self.normals: Normals = load_normals(category, SIZE, no_bars)
        self.sia: SiaFolder = open_sia(write_blended(root / "sia"))

    def export(self, layout: str) -> Exported:
        return export_sia(self.sia.path, layout, self.root / layout, self.normals)

    def check(self, datamodule: Any) -> None:
        """Compare every image, mask and label of a datamodule with ours, pixel for pixel."""
        datamodule.setup()
        train, test = datamodule.train_data, datamodule.test_data
        assert [int(label) for label in train.samples.label_index] == [0] * len(self.normals.fit)
        ours = [(image, None) for image in self.normals.held]
        ours += [(self.sia.read_image(n), self.sia.read_mask(n)) for n in range(NUM)]
        assert sorted(test.samples.label_index) == [0] * len(self.normals.held) + [1] * NUM
        self.compare(train, [(image, None) for image in self.normals.fit])
        normal_first = sorted(range(len(test)), key=lambda n: test.samples.label_index[n])
        self.compare([test[n] for n in normal_first], ours)

    def compare(self, items: Any, ours: list) -> None:
        assert len(items) == len(ours)
        for n, (image, mask) in enumerate(ours):
            item = items[n]
            levels = (item.image * 255).round().to(torch.uint8).permute(1, 2, 0)
            np.testing.assert_array_equal(levels.numpy(), image)
            expected = np.zeros(SIZE, np.bool_) if mask is None else mask
            np.testing.assert_array_equal(item.gt_mask.squeeze().numpy().astype(bool), expected)
            assert int(item.gt_label) == (mask is not None)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def datamodule_of(usage: str) -> Any:
    """What the line that `synth export` prints makes, with loaders that suit a test."""
    import anomalib.data

    assert usage.endswith(")")
    return eval(usage[:-1] + ", **LOADER)", vars(anomalib.data) | {"LOADER": LOADER})


@pytest.mark.parametrize("layout", ["folder", "mvtec", "tabular"])
def test_datamodules_give_our_images_masks_and_labels(case: Case, layout: str) -> None:
    case.check(datamodule_of(case.export(layout).usage))


def test_an_sia_folder_pairs_as_it_is(case: Case) -> None:
    """`Folder` needs no export where the normals lie elsewhere."""
    from anomalib.data import Folder

    normals = case.export("folder").folder
    datamodule = Folder(
        "widget",
        normal_dir=normals / "normal",
        normal_test_dir=normals / "normal_test",
        abnormal_dir=case.sia.path / "images",
        mask_dir=case.sia.path / "masks",
        **LOADER,
    )
    case.check(datamodule)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    write_sources(tmp_path / "source", num=4)
    return export_sia(tmp_path / "source", "dtd", tmp_path / "textures").folder


def neutralise(generator: Any) -> None:
    """Three of ten random colour and geometry operations would be applied to every source."""
    generator.augmenters = torch.nn.Identity()


def test_perlin_generator_pastes_our_pixels(textures: Path) -> None:
    from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator

    generator = PerlinAnomalyGenerator(textures, probability=1.0, blend_factor=1.0)
    neutralise(generator)
    paths = sorted(generator.anomaly_source_paths)
    assert [path.name for path in paths] == [f"{n:06d}.png" for n in range(4)]
    torch.manual_seed(0)
    normal = torch.rand(3, 32, 32)
    sources = [torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255 for path in paths]
    found = set()
    for _ in range(12):
        image, mask = generator(normal)
        pasted = [torch.where(mask > 0, source, normal) for source in sources]
        found.add([torch.equal(image, each) for each in pasted].index(True))
    assert len(found) > 1


def without_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights where anomalib asks timm for ImageNet's: nothing else is changed."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(name, **options | {"pretrained": False}),
    )


@pytest.mark.parametrize("name", ["Draem", "Glass"])
def test_a_training_step_on_our_images(
    case: Case, textures: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anomalib.models
    from anomalib.engine import Engine

    without_download(monkeypatch)
    torch.manual_seed(0)
    pre_processor = getattr(anomalib.models, name).configure_pre_processor(MODEL_SIZE)
    if name == "Draem":
        model = anomalib.models.Draem(dtd_dir=textures, pre_processor=pre_processor)
        generator = model.augmenter
    else:
        model = anomalib.models.Glass(
            anomaly_source_path=str(textures),
            pre_processor=pre_processor,
            input_shape=MODEL_SIZE,
            backbone="resnet18",
            pretrain_embed_dim=32,
            target_embed_dim=32,
            step=2,
        )
        generator = model.model.augmentor
    assert len(generator.anomaly_source_paths) == 4
    neutralise(generator)
    used: list[Path] = []
    perturb = generator.generate_perturbation

    def watched(height: int, width: int, device: Any, path: Path) -> Any:
        used.append(path)
        return perturb(height, width, device, path)

    monkeypatch.setattr(generator, "generate_perturbation", watched)
    generator.probability = 1.0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    engine = Engine(
        max_steps=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        default_root_dir=case.root / "engine",
    )
    engine.fit(model, datamodule=datamodule_of(case.export("folder").usage))
    assert engine.trainer.global_step >= 1
    loss = engine.trainer.callback_metrics["train_loss" if name == "Draem" else "loss"]
    assert torch.isfinite(loss)
    assert used
    assert set(used) <= set(textures.rglob("*.png"))
    changed = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert changed


def with_weights_of(ours: Any, theirs: Any) -> None:
    """Copy a network of a coupling."""
    edges = {"1-0": "up_conv10", "2-1": "up_conv21", "0-1": "down_conv01", "1-2": "down_conv12"}
    edges |= {f"{i}-{i}": f"conv_scale{i}_1" for i in range(3)}
    names = {f"inputs.{i}": f"conv_scale{i}_0" for i in range(3)}
    names |= {f"edges.{edge}": name for edge, name in edges.items()}
    for our_name, their_name in names.items():
        state = theirs.get_submodule(their_name).state_dict()
        ours.get_submodule(our_name).load_state_dict(state)


def test_cs_flow_maps_as_anomalibs() -> None:
    """Theirs transforms the first half of the channels first, ours the second."""
    from anomalib.models.image.csflow.torch_model import CrossScaleFlow

    from detect.methods.csflow import PRESETS
    from detect.methods.flow import ALPHA

    channels, rng = 304, torch.Generator().manual_seed(0)
    theirs = CrossScaleFlow((3, 128, 128), 2, ALPHA, 8)
    ours: Any = replace(PRESETS["paper"], hidden=8, kernels=(3, 5)).flow(channels)
    swap = torch.arange(channels).roll(channels // 2)
    blocks = list(theirs.graph.module_list)
    for k, (permutation, coupling) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        networks = (coupling.cross_convolution2, coupling.cross_convolution1)
        for network in networks:
            for gamma in (network.gamma0, network.gamma1, network.gamma2):
                gamma.data.normal_(generator=rng)
        order = permutation.perm[0][swap]
        ours.steps[2 * k].order[:] = swap[order] if k else order
        ours.steps[2 * k + 1].gamma.data = torch.stack(
            [torch.cat([n.gamma0, n.gamma1, n.gamma2]).detach() for n in networks]
        )
        with_weights_of(ours.steps[2 * k + 1].r1, networks[0])
        with_weights_of(ours.steps[2 * k + 1].r2, networks[1])
    maps = [torch.randn(1, channels, side, side, generator=rng) for side in (4, 2, 1)]
    with torch.no_grad():
        wanted, log_det = theirs(maps)
        found = ours(maps)
    for z, want, x in zip(found.maps, wanted, maps, strict=True):
        torch.testing.assert_close(z, want[:, swap], rtol=2e-3, atol=2e-3)  # 2 / pi is 0.636 there
        assert (z - x[:, ours.steps[0].order[0]]).abs().max() > 0.1
    torch.testing.assert_close(found.log_det, log_det, rtol=2e-3, atol=2e-3)
