"""`synth export`."""

from typing import Literal

from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, require_output
from synth.data.options import DataOptions

LAYOUT_NAMES = Literal["mvtec", "folder", "tabular", "dtd"]


def export(folder: Folder, /, data: DataOptions, *, layout: LAYOUT_NAMES, out: Folder) -> None:
    """Lay an SIA folder out as other toolkits, such as anomalib, read it.

    Its images are hard-linked where the file system can (so do not edit them), else copied. Normal
    images are written at its size; those held out are the normal test images. The same command goes
    on after an interruption.

    Args:
        folder: What `synth generate` or `synth blend` made.
        data: Which normal images; dtd needs none.
        layout: mvtec: train/good, test, ground_truth (needs masks). folder: normal, abnormal, mask.
            tabular: samples.csv with absolute paths. dtd: anomaly images alone, a texture source.
        out: The export goes to OUT/<category>.

    """
    if layout == "dtd" and data != DataOptions():
        raise UserError(
            "--dataset, --root, --category: the layout dtd has no normal images; leave them out"
        )
    category = None if layout == "dtd" else data.open(out)
    from synth.publishing.export import export_sia, image_size, open_for_export, other_normals

    sia = open_for_export(folder, layout)
    require_output(out)
    normals = None
    if category is not None:
        from synth.data.normals import load_normals

        normals = load_normals(category, image_size(sia), progress_bar)
        remark = other_normals(sia, normals)
        if remark is not None:
            warn(f"{folder}: {remark}")
    exported = export_sia(folder, layout, out, normals, progress_bar)
    linked = f"{exported.num_linked} of them hard links" if exported.num_linked else "all copies"
    say(f"anomalib: {exported.usage}")
    say(f"{exported.num_files} files, {linked}: {exported.folder}")
