"""SIA folders to publish, and a publisher that talks to the loopback Hub without waiting."""

from pathlib import Path

import numpy as np
from hub_server import TOKEN
from huggingface_hub import HfApi

from synth.base.progress import no_bars
from synth.publishing.hub import Backoff, Repository, publish
from synth.publishing.licence import choose_licence, load_source_card
from synth.publishing.publication import find_folders, make_subsets, prepare
from synth.sia.reader import Item, SiaHeader, write_sia

SIZE = (16, 24)
CONFIG = {"method": "sdas", "strength": [0.1, 0.2], "num_steps": 20, "seed": 3}

BLEND_CONFIG = {"method": "blend", "seed": 3, "opacity": [0.2, 1.0], "image_size": list(SIZE)}
BLEND_CONFIG |= {"sources": CONFIG, "num_sources": 5, "sources_of": "mvtec/nut"}


def image_of(category: str, number: int) -> np.ndarray:
    rng = np.random.default_rng([number, *category.encode()])
    return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def write_folder(
    root: Path, category="nut", num=5, *, dataset="mvtec", kind="source", seed=3
) -> Path:
    """An SIA folder of noise, each image another; blended ones with masks."""
    folder = root / dataset / category

    def items(indices):
        for n in indices:
            row = {"seed": seed, "strength": round(0.1 + 0.02 * n, 6), "num_steps": 20}
            mask = None
            if kind == "blended":
                mask = image_of(category + "mask", n)[..., 0] > 128
                row = {"seed": seed, "strength": 0.1, "opacity": 0.5, "normal_file": f"{n}.png"}
                row["source_index"] = n
            yield Item(n, image_of(category, n), mask, row)

    config = CONFIG if kind == "source" else BLEND_CONFIG
    write_sia(folder, SiaHeader(kind, dataset, category, config), num, items)
    return folder


def make_parcel(staging: Path, *folders: Path, repo="me/data", licence=None, figures=""):
    """As `synth publish` makes it, without checking every image."""
    sias = find_folders(folders)
    sources = [load_source_card(sias[0].dataset)]
    terms = choose_licence(sources, licence)
    return prepare(make_subsets(sias), sources, terms, repo, staging, figures, no_bars)


class Publisher:
    """Publishes to the loopback Hub with the real client; `waits` is what it would have slept."""

    def __init__(self, hub, token=TOKEN, **backoff):
        self.hub, self.waits, self.lines = hub, [], []
        self.api = HfApi(endpoint=hub.url, token=token)
        self.backoff = Backoff(sleep=self.waits.append, jitter=lambda: 1.0, **backoff)

    def __call__(self, parcel, staging, *, repo="me/data", public=False):
        repository = Repository(self.api, repo, self.backoff, self.lines.append)
        return publish(repository, parcel, staging, no_bars, public=public)
