"""RealNet with nearest normal patches: residuals, what an image may not find, and the head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectors import CONFIG
from products import normal_image

from detect.calibration import calibrate
from detect.checkpoint import TrainedDetector
from detect.detector import Batch
from detect.exporting.run import export_detector
from detect.images import to_chw, to_unit
from detect.methods.patch_nn import blurred, nearest_patches, patches
from detect.methods.realnet.config import RealNetConfig
from detect.methods.realnet.nearest import PRESETS, NearestConfig, NearestRealNet
from detect.packing import packed
from synth.base.backbones import build_backbone
from synth.base.errors import UserError

CPU = torch.device("cpu")
SHAPE = {
    "image_size": (32, 48),
    "backbone": replace(CONFIG.backbone, layers=(2, 3)),
    "num_selected": (6, 5),
    "num_max": 3,
    "num_mean": 2,
    "head_widths": (8, 8, 4, 4),
}


def made(num_patches: int = 20) -> NearestRealNet:
    config = replace(PRESETS["tiny"], **SHAPE)
    backbone = build_backbone(config.backbone)
    cells = patches(backbone, images(4))
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(4 * cells.shape[1] * cells.shape[2], generator=generator)[:num_patches]
    index = torch.tensor([0, 2, 4, 6, 8, 10, 70, 71, 75, 80, 90])
    detector = NearestRealNet(config, backbone, cells.flatten(0, 2)[kept], index)
    detector.owners = kept // (cells.shape[1] * cells.shape[2])
    return detector.eval()


def images(count: int) -> torch.Tensor:
    shown = [normal_image(n, (32, 48)) for n in range(count)]
    return to_unit(torch.stack([to_chw(image) for image in shown]))


def test_residuals_are_those_of_the_nearest_patch():
    detector = made()
    phi = patches(detector.backbone, images(3))
    distances = torch.cdist(
        phi.flatten(0, 2), detector.bank, compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = detector.bank[distances.argmin(1)].view_as(phi)
    torch.testing.assert_close(detector.residuals(images(3)), (phi - nearest).square())


def test_a_training_image_does_not_find_itself():
    detector = made(40)
    assert detector.owners is not None
    numbers = torch.tensor([1, 3])
    found = detector.residuals(images(4)[numbers], numbers)
    phi = patches(detector.backbone, images(4)[numbers])
    for n, number in enumerate(numbers):
        others = detector.bank[detector.owners != number]
        distances = torch.cdist(
            phi[n].flatten(0, 1), others, compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest = others[distances.argmin(1)].view_as(phi[n])
        torch.testing.assert_close(found[n], (phi[n] - nearest).square())
    assert (found.mean((1, 2, 3)) > detector.residuals(images(4)[numbers]).mean((1, 2, 3))).all()


def test_what_is_remembered_of_training_images_is_what_a_search_finds():
    detector, shown = made(40), [normal_image(n, (32, 48)) for n in range(4)]
    x, numbers = images(4), torch.tensor([2, 0, 3])
    blended = x[numbers].clone()
    mask = torch.zeros(3, 32, 48, dtype=torch.bool)
    blended[1, :, 3:9, 4:20], mask[1, 3:9, 4:20] = 0.9, True
    batch = Batch(blended, x[numbers], mask, numbers)
    want = detector.training_residuals(batch)
    told = []
    detector.remember(shown, lambda *progress: told.append(progress))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    torch.testing.assert_close(detector.training_residuals(batch), want)
    torch.testing.assert_close(want, detector.residuals(blended, numbers))


def test_patches_of_many_queries_are_those_of_each(monkeypatch):
    monkeypatch.setattr("detect.methods.patch_nn.CHUNK", 3 * 7)
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(10, 4, generator=generator), torch.randn(7, 4, generator=generator)
    asking, owners = torch.arange(10) % 3, torch.arange(7) % 3
    found = nearest_patches(queries, bank, asking, owners)
    for query, own, patch in zip(queries, asking, found, strict=True):
        others = bank[owners != own]
        assert torch.equal(bank[patch], others[(others - query).square().sum(1).argmin()])


def test_what_is_usual_is_measured_on_normal_images():
    detector = made()
    detector.measure_normals(images(4), torch.arange(4))
    found = [detector.residuals(images(4)[n : n + 1], torch.tensor([n])) for n in range(4)]
    squares = torch.cat(found)
    means = squares.mean((0, 1, 2))
    floor = means < 0.01 * means.mean()  # random features: many channels never fire
    assert floor.any()
    torch.testing.assert_close(detector.usual[~floor], means[~floor])
    torch.testing.assert_close(
        detector.usual[floor], (0.01 * means.mean()).expand(int(floor.sum()))
    )
    evidence = detector.evidence(squares).numpy()
    assert np.median(evidence) == pytest.approx(0, abs=0.05)
    logs = np.log(np.linalg.norm(squares.sqrt().numpy(), axis=-1))
    mad = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    np.testing.assert_allclose(np.ptp(evidence), np.ptp(logs) / mad, rtol=0.05)


def test_without_training_the_distance_alone_decides():
    detector, x = made(), images(6)[4:]
    detector.measure_normals(images(4), torch.arange(4))
    squares = detector.residuals(x)
    logs = squares.sum(-1).sqrt().log()
    median, spread = detector.log_distance
    grown = F.interpolate(((logs - median) / spread)[:, None], (32, 48), mode="bilinear")
    maps = blurred(grown, 4 * 32 / 256)[:, 0]
    torch.testing.assert_close(detector.predict(x).maps, maps, rtol=1e-4, atol=1e-4)


def test_the_head_adds_half_of_what_it_learned_to_the_distance():
    detector, x = trained_a_little(), images(2)
    read = []
    hook = detector.head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    scores = detector.predict(x)
    hook.remove()
    squares = detector.residuals(x)
    logs = (squares / detector.usual).movedim(-1, 1)[:, detector.index].log1p()
    chosen = detector.rrs.select(logs)
    want = torch.stack([e[i] for e, i in zip(logs, chosen, strict=True)])
    torch.testing.assert_close(read[0], want)
    logits = detector.head(want, (32, 48))
    added = 8 * torch.tanh((logits[:, 1] - logits[:, 0]) / 8)
    assert added.std() > 0.01
    evidence = F.interpolate(detector.evidence(squares), (32, 48), mode="bilinear")
    maps = blurred(evidence, 4 * 32 / 256)[:, 0] + added / 2
    torch.testing.assert_close(scores.maps, maps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed(detector).predict(x).maps, scores.maps, rtol=1e-3, atol=1e-3)


def trained_a_little() -> NearestRealNet:
    detector = made()
    detector.measure_normals(images(4), torch.arange(4))
    generator = torch.Generator().manual_seed(1)
    for parameter in detector.head.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return detector.eval()


def test_the_loss_is_the_cross_entropy_of_the_mask():
    detector, x = trained_a_little(), images(2)
    mask = torch.zeros(2, 32, 48, dtype=torch.bool)
    mask[0, 4:9, 5:20] = True
    numbers = torch.tensor([0, 1])
    loss = detector.losses(Batch(x, x, mask, numbers), torch.Generator())["segmentation"]
    squares = detector.residuals(x, numbers)
    evidence = F.interpolate(detector.evidence(squares), (32, 48), mode="bilinear")[:, 0]
    p = torch.sigmoid(evidence + detector.added(squares, (32, 48)) - 3)
    want = -torch.where(mask, p, 1 - p).log().mean()
    torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-4)
    assert {stage.name for stage in detector.stages()} == set(detector.config.stage_steps)


def test_a_bank_of_no_patch_is_refused():
    with pytest.raises(UserError, match="bank_size: got 0"):
        replace(PRESETS["tiny"], bank_size=0)


def test_every_preset_is_a_realnet_of_layers_2_and_3():
    for config in PRESETS.values():
        assert isinstance(config, RealNetConfig)
        assert isinstance(config, NearestConfig)
        fitted = config.fitted(build_backbone(config.backbone).channels)
        assert fitted.num_selected == (40, 112)
        assert np.prod(config.image_size) in (128**2, 256**2)


def test_a_bank_that_is_searched_in_chunks_is_exported_for_any_number_of_images(
    monkeypatch, tmp_path
):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("detect.methods.patch_nn.CHUNK", 20 * 7)  # queries at a time: 7
    detector = trained_a_little()
    about = {"method": "realnet-nn", "dataset": "folder", "category": "widget"}
    about["detector"] = detector.config.to_json()
    trained = TrainedDetector(detector, about, 1, (32, 48), calibrate([1.0], 0.5))
    made = export_detector(trained, tmp_path, "onnx")
    assert made.num_checked == 16
    assert made.parity.is_allowed
