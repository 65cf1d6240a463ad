"""The `synth` command."""

import sys

from synth.base.command import run_command
from synth.commands.baseline import baseline
from synth.commands.blend import blend
from synth.commands.export import export
from synth.commands.generate import generate
from synth.commands.import_textures import import_textures
from synth.commands.inspect import inspect
from synth.commands.publish import publish
from synth.commands.train import train
from synth.commands.validate import validate

COMMANDS = {
    "train": train,
    "generate": generate,
    "blend": blend,
    "inspect": inspect,
    "validate": validate,
    "import-textures": import_textures,
    "baseline": baseline,
    "export": export,
    "publish": publish,
}


def main() -> None:
    """Run the `synth` command line."""
    sys.exit(run_command("synth", "Make anomaly images from normal images.", COMMANDS))
