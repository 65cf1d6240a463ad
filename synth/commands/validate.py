"""`synth validate`."""

from synth.base.command import progress_bar, say
from synth.base.errors import UserError
from synth.base.options import Folder


def validate(folder: Folder, /) -> None:
    """Check SIA folders: every image, mask, record and row; each fault is one line on stdout.

    Images are compared with their digests and decoded. Nothing is changed. Exit code 2 where there
    is a fault.

    Args:
        folder: What `synth generate`, `blend` or another program made, or a folder of several.

    """
    from tqdm import tqdm

    from synth.sia.validate import sia_folders, validate_sia

    def tell(line: str) -> None:
        with tqdm.external_write_mode():  # between the bars
            say(line)

    num_images = num_faults = 0
    for sia in sia_folders(folder):
        verdict = validate_sia(sia, tell, progress_bar)
        num_images += verdict.num_images
        num_faults += verdict.num_faults
    if num_faults:
        raise UserError(
            f"{folder}: {num_faults} faults in {num_images} images; delete the files that are "
            "named and run the command that made the folder again"
        )
    say(f"OK: {num_images} images in {folder}, every file as its row says")
