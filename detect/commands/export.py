"""`detect export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from synth.base.command import say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, OptionalFolder

if TYPE_CHECKING:
    from detect.exporting.quantised import Judged
    from detect.exporting.run import Exported

FORMAT_NAMES = Literal["onnx", "openvino", "pt2"]
FileOrFolder = Annotated[Path, tyro.conf.arg(metavar="FILE_OR_FOLDER")]
MAX_IMAGES = 64


def export(
    *,
    model: Folder,
    out: FileOrFolder,
    format: FORMAT_NAMES,
    images: OptionalFolder = None,
    int8: bool = False,
    root: OptionalFolder = None,
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
        int8: Compute convolutions of the backbone in 8-bit integers, their ranges measured on
            images that it was trained on. Threshold and p-values are set anew on the held-out
            normal images; where more than one verdict in twenty moves on them and on the same with
            CutPaste blended in, nothing is written.
        root: With --int8: the --root that it was trained with; textures needs none.

    """
    if int8 and format == "pt2":
        raise UserError("--int8: not available with --format pt2; give onnx or openvino")
    if root is not None and not int8:
        raise UserError("--root: not used without --int8; add it or leave it out")
    import torch

    from detect.checkpoint import load_detector
    from detect.exporting.quantised import load_products
    from detect.exporting.run import export_detector
    from synth.images import list_images

    files = [] if images is None else list_images(images, recursive=True)[:MAX_IMAGES]
    if images is not None and not files:
        raise UserError(f"--images: {images} holds no images; give a folder of PNG or JPEG files")
    trained = load_detector(model, torch.device("cpu"))
    if trained.calibration.note:
        warn(trained.calibration.note)
    products = load_products(trained, root) if int8 else ()
    made = export_detector(trained, out, format, files, products)
    tell(made, format, trained.image_size)
    if made.int8 is not None:
        tell_int8(made.int8)
    say(f"model: {made.path}")


def tell(made: "Exported", format: str, size: tuple[int, int]) -> None:
    """Print how the file compares with torch."""
    import torch

    height, width = size
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


def tell_int8(judged: "Judged") -> None:
    """Print what 8-bit integers changed; the lines before are of float32."""
    say(
        f"int8: {judged.num_quantised} convolutions of the backbone; judged on "
        f"{judged.num_images} images, held-out normal ones and the same with CutPaste blended in"
    )
    say(
        f"int8: scores differ from float32 by {judged.largest:.2g} at most, {judged.mean:.2g} on "
        f"average; {judged.moved} get another verdict, by thresholds of their own; image AUROC "
        f"{judged.auroc:.3f}, float32 {judged.float_auroc:.3f}"
    )
    say(
        f"int8: {judged.milliseconds:.1f} ms per image, float32 {judged.float_milliseconds:.1f} "
        f"ms; float32 takes {judged.float_bytes / 1e6:.1f} MB"
    )
