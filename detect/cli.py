"""The `detect` command: train, evaluate, predict."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import tyro

from detect.calibration import calibrate
from detect.checkpoint import CONFIG_FILE, TrainedDetector, load_detector, save_detector
from detect.data import AnomalySource, BlendedDataset, batches, noise_source, sia_source
from detect.evaluation import (
    comparison,
    make_report,
    native_masks,
    require_both_labels,
    write_results,
    write_scores,
)
from detect.evaluation import (
    evaluate as evaluate_scores,
)
from detect.heatmap import heat_range, overlay
from detect.realnet import AFSResult, RealNet, RealNetConfig, select_channels
from detect.realnet.config import PRESETS
from detect.report import write_report
from detect.report_text import findings, number
from detect.scoring import detector_scorer, mean_image_scorer, score_files
from detect.training import train_detector
from synth.catalog import Category, held_out
from synth.command import DataOptions, progress_bar, run_command, say, warn
from synth.config import Precision
from synth.device import make_accelerator
from synth.errors import UserError
from synth.features import Backbone, build_backbone
from synth.files import claim_folder, read_json, write_json
from synth.foreground import ForegroundRule
from synth.generate import fit_rule
from synth.images import list_images, read_image, write_png
from synth.pictures import Images, digest, load_images
from synth.seeding import derive_seed
from synth.sia import open_sia

AFS_FILE = "afs.json"


def train(
    data: DataOptions,
    *,
    out: Path,
    sia: Path | None = None,
    source: Literal["sia", "noise"] = "sia",
    method: Literal["realnet"] = "realnet",
    preset: Literal["tiny", "small", "paper"] = "tiny",
    backbone: str | None = None,
    backbone_weights: str | None = None,
    size: tuple[int, int] | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    false_reject_rate: float = 0.05,
    workers: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
) -> None:
    """Train a detector on normal images and anomalies blended into them; the same command continues after an interruption.

    The last step is the model. A tenth of the normal images is held out and sets the threshold.

    Args:
        data: Which normal images.
        out: Folder of the detector.
        sia: SIA folder of anomaly images that `synth generate` made.
        source: sia, or noise: uniform noise in its place, to see what the anomaly images are worth.
        method: Detector.
        preset: tiny (128 px, a CPU), small (256 px), paper (256 px, 524 M parameters, a GPU).
        backbone: Name of a timm network, default the preset's.
        backbone_weights: hub (downloaded once), random, bundled (only resnet10t), or a safetensors file.
        size: Height and width in pixels that images are squeezed to, default the preset's.
        num_steps: Optimiser steps, default the preset's. A finished detector trains on when this is raised.
        batch_size: Images per step over all processes, default the preset's.
        learning_rate: Of Adam, default the preset's.
        false_reject_rate: Share of normal images that may be called anomalous; sets the threshold.
        workers: Processes that blend images, default 4 with a GPU and 0 without.
        precision: fp32 or bf16; auto takes the faster on this device.
        seed: Of weights, batches and blending.

    """
    config = choose_config(
        preset, backbone, backbone_weights, size, num_steps, batch_size, learning_rate, seed
    )
    category = data.open_checked()
    anomaly_source, source_config = open_source(source, sia, category)
    fit, held = held_out(category)
    with progress_bar("loading images", "image") as update:
        images = load_images([record.path for record in fit + held], config.image_size, update)
    normals = images[: len(fit)]
    rule = fit_rule(category, config.image_size)
    network = build_backbone(config.backbone)
    claimed = describe(category, config, images, source_config, rule, method, network.digest)
    if precision == "auto" and (out / CONFIG_FILE).exists():
        precision = read_json(out / CONFIG_FILE).get("precision", "auto")
    accelerator = make_accelerator(precision)
    resolved = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    claim_folder(out, {**claimed, "precision": resolved})

    network = network.to(accelerator.device)
    afs = cached_channels(out, network, config, normals, rule, anomaly_source, accelerator.device)
    detector = RealNet(config, network, afs.indices)
    dataset = BlendedDataset(normals, rule, anomaly_source, seed=derive_seed(seed, 3))
    num_workers = workers if workers is not None else 4 * (accelerator.device.type == "cuda")
    with progress_bar("training", "step") as update:
        train_detector(
            accelerator,
            detector,
            dataset,
            batch_size=config.batch_size,
            folder=out,
            num_workers=num_workers,
            on_step=update,
        )
    if not accelerator.is_main_process:
        return
    scorer = detector_scorer(detector, accelerator.device)
    with progress_bar("calibrating", "image") as update:
        held_scores = score_files(
            scorer, [r.path for r in held], config.image_size, progress=update
        )
    calibration = calibrate(held_scores.scores.tolist(), false_reject_rate)
    save_detector(out, detector, calibration)
    if calibration.note:
        warn(calibration.note)
    say(
        f"threshold {calibration.threshold:.4g} from {len(held)} held-out normal images\ndetector: {out}"
    )


def choose_config(
    preset: str,
    backbone: str | None,
    weights: str | None,
    size: tuple[int, int] | None,
    num_steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int,
) -> RealNetConfig:
    """The preset with what the command line says besides."""
    config = PRESETS[preset]
    chosen = {
        "image_size": size,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    config = replace(config, seed=seed, **{name: v for name, v in chosen.items() if v is not None})
    network = replace(config.backbone, seed=seed)
    if backbone is not None:
        network = replace(network, name=backbone)
    if weights is not None:
        network = replace(network, weights=weights)
    return replace(config, backbone=network)


def open_source(
    source: str, sia: Path | None, category: Category
) -> tuple[AnomalySource, dict[str, Any]]:
    """The anomaly source and what to record of it. Raises UserError when the two options disagree."""
    if source == "noise":
        if sia is not None:
            raise UserError("--sia: not used with --source noise; leave one of them out")
        return noise_source, {"kind": "noise"}
    if sia is None:
        raise UserError(
            "--sia: missing; give the SIA folder that `synth generate` made, or --source noise"
        )
    folder = open_sia(sia, kind="source")
    if folder.category != category.name:
        warn(
            f"the SIA folder is of category {folder.category}, the normal images are of {category.name}"
        )
    return sia_source(folder), {"kind": "sia", "num_images": len(folder.rows), **folder.config}


def describe(
    category: Category,
    config: RealNetConfig,
    images: Images,
    source: dict[str, Any],
    rule: ForegroundRule,
    method: str,
    backbone_digest: str,
) -> dict[str, Any]:
    """What the detector depends on; the number of steps is left out, since it may be raised."""
    return {
        "method": method,
        "dataset": category.dataset,
        "category": category.name,
        "data": {"num_images": len(images), "digest": digest(images)},
        "source": source,
        "foreground": rule.to_dict(),
        "backbone_digest": backbone_digest,
        "detector": config.to_json(),
    }


def cached_channels(
    out: Path,
    backbone: Backbone,
    config: RealNetConfig,
    normals: Images,
    rule: ForegroundRule,
    source: AnomalySource,
    device: torch.device,
) -> AFSResult:
    """The channels AFS keeps: chosen once and read from `out`/afs.json when training is continued."""
    path = out / AFS_FILE
    if path.exists():
        saved = read_json(path)
        indices = tuple(torch.tensor(index, dtype=torch.int64) for index in saved["indices"])
        return AFSResult(indices, tuple(torch.tensor(score) for score in saved["scores"]))
    dataset = BlendedDataset(
        normals, rule, source, seed=derive_seed(config.seed, 2), anomalous_share=1.0
    )
    with progress_bar("selecting channels", "batch") as update:

        def shown():
            triplets = batches(dataset, config.batch_size, 0, config.num_afs_batches, device)
            for done, batch in enumerate(triplets, start=1):
                yield batch
                update(done, config.num_afs_batches)

        chosen = select_channels(backbone, shown(), config.num_selected)
    write_json(
        path,
        {
            "indices": [index.tolist() for index in chosen.indices],
            "scores": [score.tolist() for score in chosen.scores],
        },
    )
    return chosen


def evaluate(
    data: DataOptions,
    *,
    model: Path,
    out: Path,
    compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[FOLDER ...]")] = (),
    batch_size: int = 16,
) -> None:
    """Measure a detector on the test images and write report.html, results.json, scores.csv and scores.npz.

    Maps are compared with the masks at the masks' own resolution.

    Args:
        data: Which images; their test split needs normal and anomalous ones.
        model: Folder that `detect train` made.
        out: Folder of the results.
        compare: Further detectors, shown beside it in the report.
        batch_size: Images scored at once.

    """
    category = data.open_checked()
    require_both_labels(category)
    device = make_accelerator("fp32").device
    trained = load_detector(model, device)
    records = category.test
    masks = native_masks(records)
    paths = [record.path for record in records]
    with progress_bar("scoring test images", "image") as update:
        scored = score_files(
            detector_scorer(trained.detector, device),
            paths,
            trained.image_size,
            batch_size=batch_size,
            progress=update,
        )
    evaluation = evaluate_scores(records, scored, masks)
    rows = []
    for folder in compare:
        other = load_detector(folder, device)
        with progress_bar(f"scoring with {folder.name}", "image") as update:
            theirs = score_files(
                detector_scorer(other.detector, device), paths, other.image_size, progress=update
            )
        rows.append(comparison(source_name(other), evaluate_scores(records, theirs, masks)))
    fit, _ = held_out(category)
    training = load_images([record.path for record in fit], trained.image_size)
    baseline = score_files(mean_image_scorer(training), paths, trained.image_size)
    rows.append(
        comparison("distance to the mean training image", evaluate_scores(records, baseline, masks))
    )
    report = make_report(
        category,
        source_name(trained),
        evaluation,
        scored,
        masks,
        trained.calibration,
        rows,
        protocol(trained, category),
    )
    write_results(out, report, records, scored)
    write_report(out / "report.html", report)
    for sentence in findings(report):
        say(sentence)
    say(table([comparison(report.method, evaluation), *rows]))
    say(f"report: {out / 'report.html'}")


def source_name(trained: TrainedDetector) -> str:
    """How a detector is called in tables."""
    source = {"sia": "SDAS images", "noise": "noise images"}[trained.config["source"]["kind"]]
    return f"RealNet on {source}"


def protocol(trained: TrainedDetector, category: Category) -> dict[str, str]:
    """The facts that a figure needs beside it."""
    config, detector = trained.config, trained.config["detector"]
    backbone = detector["backbone"]
    height, width = trained.image_size
    source = config["source"]
    anomalies = "uniform noise"
    if source["kind"] == "sia":
        low, high = source["strength"]
        anomalies = (
            f"{source['num_images']} SDAS images, s in [{low}, {high}], {source['num_steps']} steps"
        )
    weights = backbone["weights"]
    return {
        "Training": f"{config['data']['num_images']} normal images, a tenth of them held out for the threshold",
        "Test": f"{len(category.test)} images, read for this evaluation only",
        "Anomaly source": anomalies,
        "Image size": f"{height} x {width} px; maps compared at the masks' own size",
        "Backbone": f"{backbone['name']}, {Path(weights).name} weights, layers {backbone['layers']}",
        "Detector": f"{sum(p.numel() for p in trained.detector.parameters() if p.requires_grad) / 1e6:.1f} M trained "
        f"parameters, last step is the model, batch {detector['batch_size']}",
        "Seed": str(detector["seed"]),
        "Precision": f"training {config['precision']}, scoring fp32",
        "Date": date.today().isoformat(),
    }


def table(rows: Sequence[Any]) -> str:
    """Comparison rows as aligned text."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  image AUROC  pixel AUROC  AUPRO"]
    for row in rows:
        figures = (number(row.image_auroc), number(row.pixel_auroc), number(row.aupro))
        lines.append(f"{row.name:{width}}  {figures[0]:>11}  {figures[1]:>11}  {figures[2]:>5}")
    return "\n".join(lines)


def predict(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    model: Path,
    out: Path,
    batch_size: int = 16,
) -> None:
    """Score image files and folders: scores.csv with a verdict each, and an overlay picture each.

    Args:
        images: Image files, or folders that are searched for them.
        model: Folder that `detect train` made.
        out: Folder of scores.csv and overlays/.
        batch_size: Images scored at once.

    """
    paths = [path for given in images for path in expand(given)]
    if not paths:
        raise UserError("images: none given; name image files or folders")
    device = make_accelerator("fp32").device
    trained = load_detector(model, device)
    calibration = trained.calibration
    with progress_bar("scoring", "image") as update:
        scored = score_files(
            detector_scorer(trained.detector, device),
            paths,
            trained.image_size,
            batch_size=batch_size,
            progress=update,
        )
    write_scores(
        out / "scores.csv",
        [(p, "", float(s)) for p, s in zip(paths, scored.scores, strict=True)],
        calibration,
    )
    heat = heat_range(scored.maps)
    width = len(str(len(paths)))
    for number_, (path, anomaly_map) in enumerate(zip(paths, scored.maps, strict=True)):
        image = read_image(path)
        native = np.asarray(
            cv2.resize(anomaly_map, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        )
        picture = overlay(image, native, heat.low, heat.high)
        write_png(out / "overlays" / f"{number_:0{width}d}_{path.stem}.png", picture)
    rejected = sum(calibration.rejects(float(score)) for score in scored.scores)
    say(
        f"{rejected} of {len(paths)} images are anomalous (score above {calibration.threshold:.4g})"
    )
    say(f"scores: {out / 'scores.csv'}\noverlays: {out / 'overlays'}")


def expand(path: Path) -> list[Path]:
    """A file as it is, a folder as the images below it. Raises UserError when there is nothing."""
    if path.is_dir():
        found = list_images(path, recursive=True)
        if not found:
            raise UserError(f"{path}: no images in this folder or below")
        return found
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return [path]


def main() -> None:
    """Run the `detect` command line."""
    commands = {"train": train, "evaluate": evaluate, "predict": predict}
    description = "Train anomaly detectors, measure them, and use them: train, evaluate, predict."
    sys.exit(run_command("detect", description, commands))
