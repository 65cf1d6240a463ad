"""`synth generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import (
    Folder,
    OptionalFolder,
    Precision,
    ShardOption,
    parse_shard,
    require_output,
    require_positive,
)
from synth.data.options import DATASET_NAMES, Foreground
from synth.diffusion.config import SdasConfig
from synth.sia.strength import PAPER, Strength

if TYPE_CHECKING:
    from synth.diffusion.model import DiffusionModel
    from synth.diffusion.pair import Pairing

OF_MODEL = tyro.conf.arg(metavar="STR", help_behavior_hint="(default: all of the model)")
OPTIONAL = "(optional)"
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OPTIONAL)]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast, and on how many machines. None of it changes an image but by rounding."""

    shard: ShardOption = None
    """Make share I of N, counted from 1: $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT."""
    batch_size: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by free memory)")
    ] = None
    """Images drawn at once; halved where the memory does not suffice."""
    precision: Annotated[
        Precision | None,
        tyro.conf.arg(metavar="auto|fp32|bf16", help_behavior_hint="(default: the model's)"),
    ] = None
    """Arithmetic of the network; auto is bf16 where the hardware has instructions for it. A folder
    keeps its own."""
    compile: bool = False
    """Compile the network first (torch.compile, minutes); try whether it pays on this device."""


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Draw anomalies into normal images: each then has its own normal image and an exact mask."""

    pair: Annotated[float | None, tyro.conf.arg(metavar="DEPTH", help_behavior_hint=OPTIONAL)] = (
        None
    )
    """Share of the chain that a region of a normal image goes through, such as 0.35; the region is
    the mask. What shows is the strength: take uniform:1,4, with an epsilon model uniform:0.5,1."""
    dataset: Annotated[
        DATASET_NAMES | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the model's)"),
    ] = None
    """Layout of the normal images, as in synth train."""
    root: OptionalFolder = None
    """Folder of the normal images; those to train on are used. With --row too."""
    foreground: Foreground = "auto"
    """Where anomalies may lie: auto finds the product, everything is the whole image."""

    def require_used(self, *, with_row: bool) -> None:
        """Raise UserError for an option that has no effect."""
        given = (self.dataset, self.root, self.foreground) != (None, None, "auto")
        if given and self.pair is None and not with_row:
            raise UserError(
                "--dataset, --root, --foreground: not used without --pair; leave them out"
            )
        if with_row and self.pair is not None:
            raise UserError(
                "--pair: not used with --row, which takes the depth from its folder; leave it out"
            )


def generate(
    speed: Speed,
    pairs: PairOptions,
    *,
    model: Folder,
    out: Folder,
    num: int = 200,
    category: Annotated[str | None, OF_MODEL] = None,
    strength: Annotated[str, tyro.conf.arg(metavar="RULE")] = PAPER.text,
    num_steps: int = 20,
    seed: int = 0,
    min_quality: OptionalFloat = None,
    max_quality: OptionalFloat = None,
    row: Annotated[
        tuple[Path, int] | None,
        tyro.conf.arg(metavar="FOLDER INDEX", help_behavior_hint=OPTIONAL),
    ] = None,
) -> None:
    """Draw SDAS anomaly images into an SIA folder.

    What is already there stays, and a larger --num goes on from it. The same command on several
    machines with one disk shares the work.

    Args:
        speed: How fast.
        pairs: Anomalies in normal images.
        model: What `synth train` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be, of each category.
        category: Of a model that knows several.
        strength: Of an image: uniform:LOW,HIGH draws it, 0.15 is for all, 0.1,0.2,0.5 take turns.
        num_steps: Reverse steps of the chain, a divisor of 1000.
        seed: Of every image, together with its index.
        min_quality: Draw again what is nearer to the normal images; 1 is normal, 0 only records.
        max_quality: Draw again what is farther from the normal images than this.
        row: Make only image INDEX of an SIA folder again, as OUT/<index>.png, and compare. Its row
            says how, whatever strength, steps, seed and precision are given here.

    """
    config = SdasConfig(strength=Strength.parse(strength), num_steps=num_steps, seed=seed)
    require_positive(num=num, batch_size=speed.batch_size)
    share, num_shares = parse_shard(speed.shard)
    require_range(min_quality, max_quality)
    require_output(out)
    pairs.require_used(with_row=row is not None)
    if row is not None:
        again(model, *row, out, pairs)
        return
    from synth.base.device import make_accelerator
    from synth.diffusion.model import load_model
    from synth.diffusion.pair import chain_position
    from synth.diffusion.speed import auto_batch_size, choose_precision, compiled
    from synth.making.candidates import open_quality_range
    from synth.making.generate import generate_sia

    if pairs.pair is not None:
        chain_position(pairs.pair, num_steps)
    accelerator = make_accelerator("fp32")
    diffusion = load_model(model, accelerator.device)
    network = compiled(diffusion) if speed.compile else diffusion
    categories = diffusion.categories if category is None else [category]
    for name in categories:
        diffusion.label(name)
    for name in categories:
        folder = out / diffusion.config["dataset"] / name
        precision = choose_precision(speed.precision, diffusion, folder)
        quality = open_quality_range(model, diffusion, name, min_quality, max_quality)
        pairing = None
        if pairs.pair is not None:
            pairing = open_pairing(pairs, pairs.pair, diffusion, name, config, out)
        with progress_bar(f"generating {name}", "image") as update:
            written = generate_sia(
                network,
                config,
                out,
                num,
                category=name,
                batch_size=speed.batch_size or auto_batch_size(diffusion, precision),
                precision=precision,
                quality=quality,
                pairing=pairing,
                process=share * accelerator.num_processes + accelerator.process_index,
                num_processes=num_shares * accelerator.num_processes,
                on_image=update,
            )
        say(written.sentence("SIA folder"))


def again(model: Path, folder: Path, index: int, out: Path, pairs: PairOptions) -> None:
    """Make one image again and say how it compares."""
    from synth.base.device import default_device
    from synth.data.foreground import ForegroundRule
    from synth.diffusion.model import load_model
    from synth.making.generate import remake_image
    from synth.sia.reader import open_sia

    diffusion, sia = load_model(model, default_device()), open_sia(folder)
    pairing = None
    if "pair" in sia.config:
        config = SdasConfig(num_steps=sia.config["num_steps"], seed=sia.config["seed"])
        recorded = sia.config["pair"]
        pairing = open_pairing(pairs, recorded["depth"], diffusion, sia.category, config, out)
        rule = ForegroundRule.from_dict(recorded["foreground"])
        pairing = pairing._replace(foreground=rule)
    remade = remake_image(diffusion, sia, index, out, pairing)
    say(f"{remade.sentence}\nimage: {remade.path}")


def open_pairing(
    pairs: PairOptions,
    depth: float,
    model: "DiffusionModel",
    category: str,
    config: SdasConfig,
    out: Path,
) -> "Pairing":
    """Load the normal images of a category. Raises UserError as `open_category`."""
    from synth.data.catalog import open_category
    from synth.data.normals import load_normals
    from synth.diffusion.pair import make_pairing

    dataset = pairs.dataset or model.config["dataset"]
    listed = open_category(dataset, pairs.root, category, progress_bar, out)
    normals = load_normals(listed, model.image_size, progress_bar)
    rule = normals.foreground_rule(pairs.foreground)
    about = (normals, depth, config.seed, config.num_steps, rule)
    pairing = make_pairing(model, *about, pairs.root)
    trained_on = model.config.get("data", {})
    trained_on = trained_on.get(category, trained_on).get("digest")
    if trained_on not in (None, pairing.to_json()["normals"]):
        warn(f"the normal images of {category} are not the ones that the model was trained on")
    return pairing


def require_range(low: float | None, high: float | None) -> None:
    """Raise UserError for a range of quality that is empty or negative."""
    if (low is not None and not low >= 0) or (high is not None and not high > (low or 0)):
        raise UserError(
            f"--min-quality, --max-quality: got {low} and {high}, must be 0 <= low < high"
        )
