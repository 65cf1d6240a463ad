"""A prediction as one COCO file: an annotation for each anomalous region.

Source: cocodataset.org, "Data format"; readable by pycocotools and FiftyOne.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.prediction.log import LOG_FILE, UNREADABLE, Row, read_rows
from synth.base.errors import UserError
from synth.base.files import write_json
from synth.images import read_mask

CATEGORY = {"id": 1, "name": "anomaly"}


def write_coco(path: Path, folder: Path) -> int:
    """Write the scored images of `folder` and their regions to `path`; return how many regions.

    An annotation has a region's box (x, y, width, height in pixels), area and uncompressed RLE,
    and its image's score and p-value. Raises UserError for a row without a mask.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in read_rows(folder / LOG_FILE):
        if row["verdict"] == UNREADABLE:
            continue
        mask = read_mask(folder / mask_of(row), None)
        image_id = len(images) + 1
        frame = {name: row[name] for name in ("frame", "time_s") if name in row}
        height, width = mask.shape
        images.append(
            {"id": image_id, "file_name": row["file"], "width": width, "height": height, **frame}
        )
        evidence = {"score": row["score"], "p_value": row["p_value"]}
        for region in regions(mask):
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORY["id"]}
            annotations.append({**ids, **region, "iscrowd": 0, **evidence})
    write_json(path, {"images": images, "annotations": annotations, "categories": [CATEGORY]})
    return len(annotations)


def mask_of(row: Row) -> str:
    """The row's mask file. Raises UserError where none was written."""
    if not row["mask"]:
        raise UserError(
            f"--coco: {row['file']} has no mask, and its size is not known; "
            "predict with --pictures all into another --out"
        )
    return row["mask"]


def regions(mask: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """Box, area and RLE of each 8-connected region of a mask bool [H, W]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    for label in range(1, count):
        left, top, width, height, area = stats[label].tolist()
        yield {
            "bbox": [left, top, width, height],
            "area": area,
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(labels == label)},
        }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a mask bool [H, W], column after column, the first of zeros."""
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths
