"""Use an exported detector without siaforge: onnxruntime and numpy are all that this needs.

Images are 8-bit binary PPM files (`magick photo.jpg photo.ppm`) or .npy files, uint8 [H, W, 3] RGB;
any size.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


def read(path: str) -> np.ndarray:
    """An image as uint8 [H, W, 3], RGB."""
    if path.endswith(".npy"):
        image = np.load(path)
    else:
        data = Path(path).read_bytes()
        magic, *sizes, levels = data.split(maxsplit=4)[:4]
        if (magic, levels) != (b"P6", b"255"):
            raise ValueError("not an 8-bit binary PPM without comments")
        width, height = map(int, sizes)
        image = np.frombuffer(data[-height * width * 3 :], np.uint8).reshape(height, width, 3)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"got {image.dtype} {list(image.shape)}, needs uint8 [H, W, 3]")
    return image


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="what `detect export` made")
parser.add_argument("images", nargs="+")
parser.add_argument("--category", help="whose threshold to take, of a detector of several")
given = parser.parse_args()
model = onnxruntime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
about = json.loads(model.get_modelmeta().custom_metadata_map["siaforge"])
held_out = {None: about, **about.get("categories", {})}.get(given.category)  # normal images
if held_out is None:
    parser.error(f"--category: the model has {', '.join(about.get('categories', ())) or 'none'}")
for path in given.images:
    try:
        scores, maps = model.run(["score", "map"], {"images": read(path)[None]})
    except (OSError, EOFError, ValueError) as error:
        parser.exit(2, f"{path}: {error}\n")
    score = float(scores[0])  # maps[0] says where, float32 [H', W']
    verdict = "normal" if score <= held_out["threshold"] else "anomalous"  # NaN is no good sign
    p = (1 + sum(held >= score for held in held_out["scores"])) / (1 + len(held_out["scores"]))
    print(f"{path}: {verdict}, score {score:.4f}, threshold {held_out['threshold']:.4f}, p {p:.3g}")
