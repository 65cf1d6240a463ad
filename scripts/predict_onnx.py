"""Use an exported detector without siaforge: python scripts/predict_onnx.py MODEL.onnx IMAGE ...

Needs onnxruntime and numpy only. Images are 8-bit binary PPM files (`magick photo.jpg photo.ppm`)
or .npy files, uint8 [H, W, 3] RGB; any size.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def read(path: str) -> np.ndarray:
    """An image as uint8 [H, W, 3], RGB."""
    if path.endswith(".npy"):
        return np.load(path)
    data = Path(path).read_bytes()
    magic, width, height, levels = data.split(maxsplit=4)[:4]
    assert (magic, levels) == (b"P6", b"255"), f"{path}: not an 8-bit binary PPM without comments"
    shape = (int(height), int(width), 3)
    return np.frombuffer(data[-np.prod(shape) :], np.uint8).reshape(shape)


model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(model.get_modelmeta().custom_metadata_map["siaforge"])
for path in sys.argv[2:]:
    scores, maps = model.run(["score", "map"], {"images": read(path)[None]})
    score = float(scores[0])  # maps[0] says where, float32 [H', W']
    verdict = "anomalous" if score > about["threshold"] else "normal"
    p = (1 + sum(held >= score for held in about["scores"])) / (1 + len(about["scores"]))
    print(f"{path}: {verdict}, score {score:.4f}, threshold {about['threshold']:.4f}, p {p:.3g}")
