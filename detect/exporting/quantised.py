"""The backbone of an exported detector in 8-bit integers: calibrated on normal images, and judged.

Quantised are the convolutions of the frozen backbone that read what a ReLU or ReLU6 gives: never
negative, so that all 8 bits are used and zero is exact. All else stays in float32: the distances,
the norms, the pooling and the head, where a rounding is a score; networks that we train; the first
convolution, and depthwise ones, which compute little and lose most; and what reads a pooling, which
onnxruntime would do in integers too, for longer than the convolutions gain.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detect.calibration import Calibration, calibrate, calibrate_together
from detect.checkpoint import TrainedDetector
from detect.data.samples import BlendedDataset
from detect.data.sources import Part, open_source
from detect.detector import Detector
from detect.evaluation.metrics import image_metrics
from detect.exporting.formats import Runner, data_file, median_milliseconds, runtime
from detect.exporting.graph import INPUT
from detect.scoring import Scored, image_batches, joined
from detect.training.stopping import SyntheticTest, blended_once
from synth.base.backbones import Backbone
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.normals import Normals, load_normals, spread
from synth.pictures import Images, all_grey

NUM_CALIBRATING, FEWEST_CALIBRATING = 64, 16
"""Images to train on that the ranges are measured on: at most, at least."""
SEED = 0
"""Of the anomalies that are blended in."""
BATCH = 4


class Judged(NamedTuple):
    """What 8-bit integers change: on held-out normal images, and the same with CutPaste blended in.

    num_images: of both kinds. largest, mean: absolute differences of image scores from float32.
    moved: images with another verdict, each side by its own threshold. auroc: of the blended images
    against the normal ones. float_: the same of the float32 file in the same runtime.
    """

    num_images: int
    largest: float
    mean: float
    moved: int
    auroc: float
    float_auroc: float
    milliseconds: float
    float_milliseconds: float
    float_bytes: int = 0
    num_quantised: int = 0


# --- the images ----------------------------------------------------------------------------------


def load_products(trained: TrainedDetector, root: Path | None) -> list[Normals]:
    """Load the images that a detector was trained on and calibrated with, of each category.

    root: of the dataset, as in training. Raises UserError where they are not there, are too few,
    or others are held out: a threshold must not be set on what was trained on.
    """
    products = []
    for name in trained.categories:
        category = open_category(trained.config["dataset"], root, name)
        products.append(load_normals(category, trained.image_size, no_bars))
        data = trained.config["data"]
        recorded = data.get(name, data).get("held_out_digest")
        if products[-1].to_json()["held_out_digest"] != recorded:
            raise UserError(
                f"--root: the held-out images of {name} are not those that the detector was "
                "calibrated with; give the folder that it was trained on, unchanged"
            )
    num_images = sum(len(normals.fit) for normals in products)
    if num_images < FEWEST_CALIBRATING:
        raise UserError(
            f"--int8: got {num_images} normal images to calibrate on, needs {FEWEST_CALIBRATING} "
            "or more; leave --int8 out"
        )
    return products


def calibrating(products: Sequence[Normals]) -> list[NDArray[np.uint8]]:
    """Choose up to NUM_CALIBRATING images, uint8 [H, W, 3], spread over all to train on."""
    images = [*chain.from_iterable(normals.fit for normals in products)]
    return [images[n] for n in spread(len(images), NUM_CALIBRATING)]


def synthetic_test(normals: Normals) -> SyntheticTest:
    """The held-out images, and each with CutPaste blended in."""
    draw = open_source([Part("cutpaste")]).load(normals.size, all_grey(normals.fit), no_bars)
    rule = normals.foreground_rule()
    return blended_once(BlendedDataset(normals.held, rule, draw, seed=SEED, anomalous_share=1.0))


# --- the graph -----------------------------------------------------------------------------------


def quantise(
    source: Path, out: Path, images: Sequence[NDArray[np.uint8]], detector: Detector
) -> int:
    """Write an ONNX file of a detector with convolutions in 8 bits; return how many.

    Weights have a scale per output channel, activations one each, from their smallest and largest
    values on `images`, uint8 [H, W, 3]. Raises UserError where nothing can be quantised.
    """
    onnx, quantization = runtime("onnx"), runtime("onnxruntime.quantization")
    graph = onnx.load(source, load_external_data=False).graph
    names = rectified_convolutions(graph, backbone_prefixes(detector))
    if not names:
        raise UserError(
            "--int8: this detector has no frozen backbone with convolutions behind a ReLU, the "
            "only ones that are quantised; leave --int8 out"
        )
    quantization.quantize_static(
        source,
        out,
        CalibrationReader(images),
        nodes_to_quantize=names,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=any(file.exists() for file in data_file(source)),
    )
    return len(names)


class CalibrationReader:
    """Images one by one, as onnxruntime asks for them."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Images] | None:
        """The next image as the graph's input, or None after the last."""
        return next(({INPUT: image[None]} for image in self.images), None)


def backbone_prefixes(detector: Detector) -> tuple[str, ...]:
    """What the names of a frozen network's weights begin with in the graph.

    Weights keep their names; torch's notes of modules at the nodes are lost under `no_grad`.
    """
    found = (name for name, part in detector.named_modules() if isinstance(part, Backbone))
    return tuple(f"detector.{name}." for name in found)


def rectified_convolutions(graph: Any, prefixes: tuple[str, ...]) -> list[str]:
    """Names of the nodes to quantise; `prefixes`: of their weights."""
    rectified = {
        output for node in graph.node if node.op_type in ("Relu", "Clip") for output in node.output
    }
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and node.input[0] in rectified
        and node.input[1].startswith(prefixes)
        and not any(each.name == "group" and each.i > 1 for each in node.attribute)
    ]


# --- the judgement -------------------------------------------------------------------------------


def judge(
    whole: Runner, small: Runner, trained: TrainedDetector, products: Sequence[Normals]
) -> tuple[TrainedDetector, Judged]:
    """Compare a float32 file and its 8-bit one; return the detector with thresholds of the latter.

    A threshold promises something of the scores that it was set on: the 8-bit file has its own.
    """
    tests = [synthetic_test(normals) for normals in products]
    before, after = ([answers(run, test.images) for test in tests] for run in (whole, small))
    limits = [[held_calibration(trained, each) for each in side] for side in (before, after)]
    own = {n.category.name: each for n, each in zip(products, limits[1], strict=True)}
    anew = trained._replace(
        calibration=calibrate_together(limits[1]), by_category=own if trained.by_category else {}
    )
    verdicts = [
        [
            limit.rejects(float(score))
            for limit, each in zip(*side, strict=True)
            for score in each.scores
        ]
        for side in zip(limits, (before, after), strict=True)
    ]
    labels = np.concatenate([test.labels for test in tests])
    old, new = (np.concatenate([each.scores for each in side]) for side in (before, after))
    differences = np.abs(new - old)
    first = tests[0].images[:1]
    return anew, Judged(
        num_images=len(labels),
        largest=float(differences.max()),
        mean=float(differences.mean()),
        moved=sum(a != b for a, b in zip(*verdicts, strict=True)),
        auroc=image_metrics(labels, new).auroc,
        float_auroc=image_metrics(labels, old).auroc,
        milliseconds=median_milliseconds(lambda: small(first)),
        float_milliseconds=median_milliseconds(lambda: whole(first)),
    )


def answers(run: Runner, images: Images) -> Scored:
    """Run a file on images, uint8 [N, H, W, 3]."""

    def scorer(batch: Images) -> Scored:
        return Scored(*run(batch))

    return joined(image_batches(scorer, images.__getitem__, len(images), batch_size=BATCH))


def held_calibration(trained: TrainedDetector, answer: Scored) -> Calibration:
    """The threshold from the normal half of a test, at the detector's own rate."""
    held = Scored(*(each[: len(each) // 2] for each in answer))
    rate = trained.calibration.false_reject_rate
    return calibrate(held.scores, rate, () if trained.detector.pooled else held.peaks)
