"""The formats of an exported detector: how one is written, and how it is read back and run.

A description, JSON text, travels inside the file. Runtimes are imported when used: they come with
`pip install siaforge[export]`, all but torch's own format.
"""

import io
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from detect.exporting.graph import INPUT, OUTPUTS
from synth.base.errors import UserError
from synth.pictures import Images

About = Mapping[str, Any]
Runner = Callable[[Images], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Images, uint8 [N, H, W, 3], to scores [N] and maps [N, h, w]."""

KEY = "siaforge"  # of the description
ONE_FILE_BYTES = 1_500_000_000  # an ONNX file ends at 2 GB; larger weights lie in a second file


class Format(NamedTuple):
    """write(program, path, about) makes `path` and what it needs beside it; read(path) runs it.

    convert(source, path, about) makes the same of an ONNX file; None: the format has no integers.
    companions: suffixes of the files that may lie beside `path`, after its own name or stem.
    """

    suffix: str
    write: Callable[[ExportedProgram, Path, About], None]
    convert: Callable[[Path, Path, About], None] | None
    read: Callable[[Path], Runner]
    companions: Callable[[Path], tuple[Path, ...]]
    needs: tuple[str, ...]

    def require(self) -> None:
        """Raise UserError where a package is missing."""
        for name in self.needs:
            runtime(name)


def runtime(name: str) -> ModuleType:
    """Import a package of the `export` extra. Raises UserError where it is missing.

    OpenVINO reports its use to its makers on import; without its telemetry package it cannot.
    """
    if name == "openvino" and "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"export: the package {name} is missing; run `pip install siaforge[export]`"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks to developers off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- ONNX --------------------------------------------------------------------------------------


def write_onnx(program: ExportedProgram, path: Path, about: About) -> None:
    """Write an ONNX file; weights above ONE_FILE_BYTES go to `path` + ".data"."""
    exported = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=OUTPUTS, verbose=False
    )
    assert exported is not None, "dynamo returns a program"
    exported.rename_axes(dict(zip(axes(exported), ("N", "H", "W"), strict=True)))
    exported.model.producer_name = "siaforge"
    exported.model.metadata_props[KEY] = json.dumps(about)
    size = sum(value.nbytes for value in program.state_dict.values())
    exported.save(path, external_data=size > ONE_FILE_BYTES)


def axes(exported: torch.onnx.ONNXProgram) -> list[str]:
    """The exporter's names of the input's open axes."""
    shape = exported.model.graph.inputs[0].shape
    assert shape is not None, "an input has a shape"
    return [str(axis) for axis in shape if not isinstance(axis, int)]


def describe_anew(source: Path, path: Path, about: About) -> None:
    """Copy an ONNX file with another description; its weights lie where the source has them."""
    onnx = runtime("onnx")
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    (data,) = data_file(path)
    is_large = any(file.exists() for file in data_file(source))
    onnx.save(model, path, save_as_external_data=is_large, location=data.name)


def read_onnx(path: Path) -> Runner:
    """Open an ONNX file with onnxruntime, on the CPU, with torch's number of threads."""
    onnxruntime = runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        score, anomaly_map = session.run(list(OUTPUTS), {INPUT: images})
        return np.asarray(score), np.asarray(anomaly_map)

    return run


# --- OpenVINO ----------------------------------------------------------------------------------


def write_openvino(program: ExportedProgram, path: Path, about: About) -> None:
    """Write an .xml file and its .bin, in float32, by way of ONNX."""
    onnx_path = path.with_suffix(".onnx")
    write_onnx(program, onnx_path, about)
    try:
        convert_to_openvino(onnx_path, path, about)
    finally:
        for file in (onnx_path, *data_file(onnx_path)):
            file.unlink(missing_ok=True)


def convert_to_openvino(source: Path, path: Path, about: About) -> None:
    """Write an ONNX file as an .xml and its .bin, described anew."""
    openvino = runtime("openvino")
    model = openvino.Core().read_model(source)
    model.set_rt_info(json.dumps(about), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def read_openvino(path: Path) -> Runner:
    """Compile for the CPU in float32; left to itself OpenVINO computes in bf16 where it can."""
    openvino = runtime("openvino")
    hint = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", hint)

    def run(images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        answer = compiled({INPUT: images})
        return np.array(answer[OUTPUTS[0]]), np.array(answer[OUTPUTS[1]])

    return run


# --- torch -------------------------------------------------------------------------------------


def write_pt2(program: ExportedProgram, path: Path, about: About) -> None:
    """Write a file that `torch.export.load` opens, without this package."""
    data = io.BytesIO()  # torch aborts the process where a disk is full
    torch.export.save(program, data, extra_files={f"{KEY}.json": json.dumps(about)})
    path.write_bytes(data.getbuffer())


def read_pt2(path: Path) -> Runner:
    """Open a file of `write_pt2`."""
    module = torch.export.load(path).module()

    def run(images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.no_grad():
            score, anomaly_map = module(torch.from_numpy(images))
        return score.numpy(), anomaly_map.numpy()

    return run


def data_file(path: Path) -> tuple[Path, ...]:
    """Where ONNX keeps weights that are too large for the file."""
    return (path.with_name(path.name + ".data"),)


def median_milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of `work`, which has run before."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


FORMATS = {
    "onnx": Format(
        ".onnx",
        write_onnx,
        describe_anew,
        read_onnx,
        data_file,
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    "openvino": Format(
        ".xml",
        write_openvino,
        convert_to_openvino,
        read_openvino,
        lambda path: (path.with_suffix(".bin"),),
        ("onnx", "onnxscript", "openvino"),
    ),
    "pt2": Format(".pt2", write_pt2, None, read_pt2, lambda path: (), ()),
}
