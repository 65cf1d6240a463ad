"""`detect export`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from synth.base.command import say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, OptionalFolder

FORMAT_NAMES = Literal["onnx", "openvino", "pt2"]
FileOrFolder = Annotated[Path, tyro.conf.arg(metavar="FILE_OR_FOLDER")]
MAX_IMAGES = 64


def export(
    *, model: Folder, out: FileOrFolder, format: FORMAT_NAMES, images: OptionalFolder = None
) -> None:
    """Write a detector as one file for other runtimes, its preprocessing inside.

    The file takes uint8 RGB images [N, H, W, 3] of any size and returns scores [N] and maps; the
    threshold, calibration scores, category and versions travel inside. It is checked against torch
    before it is kept: where more than one image in twenty differs by more than 1e-3 or gets another
    verdict, nothing is written. Images of the detector's own size are exact;
    others are resized inside, as OpenCV does it.

    Args:
        model: What `detect train` made.
        out: The file, or a folder for a file named detector.
        format: onnx: onnxruntime and many others. openvino: an .xml and its .bin. pt2: torch.
        images: A folder of images to check with, at most 64 of them; made ones without it.

    """
    import torch

    from detect.checkpoint import load_detector
    from detect.exporting.run import export_detector
    from synth.images import list_images

    files = [] if images is None else list_images(images, recursive=True)[:MAX_IMAGES]
    if images is not None and not files:
        raise UserError(f"--images: {images} holds no images; give a folder of PNG or JPEG files")
    trained = load_detector(model, torch.device("cpu"))
    if trained.calibration.note:
        warn(trained.calibration.note)
    made = export_detector(trained, out, format, files)
    height, width = trained.image_size
    say(f"{format}, {made.size_bytes / 1e6:.1f} MB, images of any size, scored at {height}x{width}")
    say(f"largest difference from torch over {made.num_checked} images: {made.parity}")
    say(f"images of other sizes, resized inside rather than by OpenCV: {made.resizing}")
    say(
        f"of {made.num_checked} images {made.beyond} differ by more than 1e-3, {made.moved} get "
        "another verdict"
    )
    say(
        f"per image, one at a time: {made.milliseconds:.1f} ms, torch "
        f"{made.torch_milliseconds:.1f} ms, {torch.get_num_threads()} threads"
    )
    say(f"model: {made.path}")
