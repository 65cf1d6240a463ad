"""Time and memory of publishing 10,000 images to a Hub on loopback: python scripts/publish_speed.py

`publishing(count)` is what other programs call. The images are 200 different PNG files under all
names; the Hub (tests/hub_server.py) checks what it receives and keeps nothing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from hub_server import TOKEN, running_hub  # noqa: E402

from synth.sia.format import METADATA_FILE, SHARD_SIZE, image_path, shard_path  # noqa: E402
from synth.sia.reader import Item, SiaHeader, write_sia  # noqa: E402

SIZE, NUM_DISTINCT = (256, 256), 200


class Publishing(NamedTuple):
    """Seconds, bytes of the Parquet files, and the publishing process's peak memory in MiB."""

    num_images: int
    num_bytes: int
    validate_s: float
    build_s: float
    send_s: float
    peak_mib: float


def publishing(count: int = 10_000) -> Publishing:
    """Publish `count` images of 256x256 in a process of its own and measure it."""
    with tempfile.TemporaryDirectory() as folder, running_hub(keep=False) as hub:
        write_images(Path(folder) / "sia", count)
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HOME": f"{folder}/home",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, __file__, "--publish", folder]
        ended = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return Publishing(*json.loads(ended.stdout.splitlines()[-1]))


def write_images(folder: Path, count: int) -> None:
    """An SIA folder of smooth coloured noise; image i is a hard link to that of i mod NUM_DISTINCT.

    Links, since writing 10,000 images safely takes longer than publishing them.
    """
    rng = np.random.default_rng(0)

    def items(indices: Iterable[int]) -> Iterator[Item]:
        for index in indices:
            field = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            image = np.asarray(cv2.GaussianBlur(field, (0, 0), 1.5), np.uint8)
            yield Item(index, image, None, {"seed": 0, "strength": 0.1, "num_steps": 20})

    config = {"method": "sdas", "strength": 0.1, "num_steps": 20, "seed": 0}
    write_sia(folder, SiaHeader("source", "textures", "noise", config), NUM_DISTINCT, items)
    lines = (folder / METADATA_FILE).read_text().splitlines()
    distinct = [json.loads(line) for line in lines]
    rows = []
    for index in range(count):
        first = distinct[index % NUM_DISTINCT]
        rows.append(first | {"file_name": image_path(index), "index": index})
        if index >= NUM_DISTINCT:
            (folder / image_path(index)).parent.mkdir(exist_ok=True)
            os.link(folder / first["file_name"], folder / image_path(index))
    for shard in range(-(-count // SHARD_SIZE)):
        record = {"shard": shard, "status": "done"}
        record["rows"] = rows[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
        (folder / shard_path(shard)).write_text(json.dumps(record))
    (folder / METADATA_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))


def publish_here(folder: Path) -> Publishing:
    """Publish in this process, to the Hub that the environment names."""
    from synth.base.command import warn
    from synth.base.progress import no_bars
    from synth.commands.publish import quiet_client
    from synth.publishing.hub import Repository, connect, publish
    from synth.publishing.hub_retry import Backoff
    from synth.publishing.publication import (
        choose_for,
        find_folders,
        make_subsets,
        prepare,
        require_sound,
    )

    quiet_client()
    start = time.perf_counter()
    folders = find_folders([folder / "sia"])
    require_sound(folders, no_bars)
    checked = time.perf_counter()
    terms = choose_for(folders, "cc0-1.0", False)
    staging = folder / "staging"
    parcel = prepare(make_subsets(folders), *terms, "me/data", staging, "", no_bars)
    built = time.perf_counter()
    repository = Repository(connect(), "me/data", Backoff(), warn)
    publish(repository, parcel, staging, no_bars, public=False)
    sent = time.perf_counter()
    return Publishing(
        len(folders[0].rows),
        parcel.num_bytes,
        checked - start,
        built - checked,
        sent - built,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:  # the process whose memory is measured
        print(json.dumps(publish_here(options.publish)))
        return
    for name, value in publishing(options.count)._asdict().items():
        print(f"{name:12} {value:14,.1f}")


if __name__ == "__main__":
    main()
