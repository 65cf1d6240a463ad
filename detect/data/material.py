"""What a detector is trained on: products, their fitted configuration, and samples of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from accelerate import Accelerator

from detect.data.defects import Mask
from detect.data.samples import ANOMALOUS_SHARE, BlendedDataset, JoinedDataset, find_foregrounds
from detect.data.sources import AnomalySource, OpenSource
from detect.images import CACHE_BYTES
from detect.method import C
from synth.base.backbones import Backbone, build_backbone
from synth.base.progress import Bars
from synth.data.foreground import EVERYTHING, ForegroundRule
from synth.data.normals import Normals
from synth.pictures import Images, all_grey

if TYPE_CHECKING:
    from detect.options import TrainOptions


class Product(NamedTuple):
    """One category to train on: its normal images, and its own anomaly source (or none)."""

    normals: Normals
    source: OpenSource


class Prepared(NamedTuple, Generic[C]):
    """A configuration fitted to the images and the backbone, and what it depends on.

    rules, foregrounds: how each product is found, and where it is in the images to train on; of a
    method without anomalies everything. facts: what is recorded of the data and the backbone.
    """

    config: C
    rules: tuple[ForegroundRule, ...]
    foregrounds: Sequence[Sequence[Mask] | None]
    backbone: Backbone
    facts: dict[str, Any]


def prepare_material(products: Sequence[Product], options: "TrainOptions") -> Prepared[Any]:
    """Fit the foreground rules to the images, and the configuration to the backbone and the images.

    Raises UserError for values out of range, an empty foreground, a backbone that is not available,
    and one that cannot take such images. The backbone may be downloaded here, so the checks that do
    not need it come first.
    """
    method = options.row
    config = method.recipe().configure(options)
    images = [product.normals.fit for product in products]
    rules = tuple(EVERYTHING for _ in products)
    foregrounds: list[Sequence[Mask] | None] = [None] * len(products)
    if method.needs_anomalies:
        rules = tuple(product.normals.foreground_rule(options.foreground) for product in products)
        foregrounds = [find_foregrounds(*pair) for pair in zip(images, rules, strict=True)]
    backbone = build_backbone(config.backbone)
    backbone.require_image_size(config.image_size)
    facts = product_facts(products, rules if method.needs_anomalies else None)
    facts["backbone_digest"] = backbone.digest
    return Prepared(config.for_data(backbone, images), rules, foregrounds, backbone, facts)


def product_facts(
    products: Sequence[Product], rules: Sequence[ForegroundRule] | None
) -> dict[str, Any]:
    """What is trained on, to be recorded; of several categories each by its name."""
    rows: dict[str, dict[str, Any]] = {}
    for number, (normals, source) in enumerate(products):
        row = {"data": normals.to_json(), "source": source.config}
        if rules is not None:
            row["foreground"] = rules[number].to_dict()
        rows[normals.category.name] = row
    dataset = products[0].normals.category.dataset
    if len(rows) == 1:
        ((name, row),) = rows.items()
        return {"dataset": dataset, "category": name, **row}
    parts = {key: {name: row[key] for name, row in rows.items()} for key in rows[next(iter(rows))]}
    num_images = sum(data["num_images"] for data in parts["data"].values())
    kind = products[0].source.config["kind"]
    return {
        "dataset": dataset,
        "category": f"{len(rows)} categories",
        "categories": list(rows),
        **parts,
        "data": {"num_images": num_images, **parts["data"]},
        "source": {"kind": kind, "categories": parts["source"]},
    }


@dataclass(frozen=True, kw_only=True)
class Material(Generic[C]):
    """What a method builds a detector from; the backbone is on the device.

    out: the detector's folder; None keeps nothing. continues: whether it holds earlier work of the
    same configuration.
    """

    accelerator: Accelerator
    products: Sequence[Product]
    prepared: Prepared[C]
    bars: Bars
    tell: Callable[[str], None] = lambda line: None
    out: Path | None = None
    continues: bool = False

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self.prepared.backbone

    @property
    def images(self) -> list[Images]:
        """The normal images to train on, uint8 [N, H, W, 3] per product."""
        return [product.normals.fit for product in self.products]

    @property
    def data(self) -> dict[str, Any]:
        """All that blended samples depend on, with fingerprints of the sources' files."""
        files = [product.source.digest() for product in self.products]
        return {**self.prepared.facts, "files": files[0] if len(files) == 1 else files}

    @cached_property
    def draws(self) -> list[AnomalySource | None]:
        """The products' sources in memory, whose images share the bytes that are kept; or none."""
        share = CACHE_BYTES // len(self.products)
        return [
            source.load(normals.size, all_grey(normals.fit), self.bars, share)
            if source.parts
            else None
            for normals, source in self.products
        ]

    def samples(
        self,
        seed: int,
        anomalous_share: float = ANOMALOUS_SHARE,
        official: bool = False,
        others: Sequence[Images] | None = None,
    ) -> BlendedDataset | JoinedDataset:
        """Return samples over the images to train on, or over others, one array per product.

        Each product has its own foreground and its own anomalies; without sources all are normal.
        """
        foregrounds = self.prepared.foregrounds if others is None else [None] * len(others)
        parts = [
            BlendedDataset(
                normals,
                rule,
                draw.as_official() if draw and official else draw,
                seed=seed,
                anomalous_share=anomalous_share,
                official=official,
                foregrounds=masks,
            )
            for normals, masks, rule, draw in zip(
                others or self.images, foregrounds, self.prepared.rules, self.draws, strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else JoinedDataset(parts, seed=seed)
