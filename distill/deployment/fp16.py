"""The student in half precision, for GPUs: converted by onnxruntime's own tool.

What a CPU can prove of it: the file is valid, its rounded weights give the same classes, and no map overflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from distill.data import Dataset
from distill.deployment.compare import MaskProof, compare_masks
from distill.deployment.int8 import calibrate
from distill.errors import ExportError
from distill.storage import sha256

LARGEST = float(np.finfo(np.float16).max)
RANGE_IMAGES = 8
MIN_AGREEMENT = 0.99
MAX_LOST = 0.002


@dataclass(kw_only=True)
class Fp16File(MaskProof):
    """A published file in half precision.

    Attributes:
        bytes: its size.
        float_bytes: size of the float file.
        sha256: of its content.
        made_from: what it depends on: the hash of the float file.
    """

    bytes: int
    float_bytes: int
    sha256: str
    made_from: dict[str, Any] = field(default_factory=dict)


def export_fp16(path: Path, fp16_path: Path, dataset: Dataset) -> Fp16File:
    """Writes a file with the same inputs, outputs and metadata, whose weights and maps are float16.

    Args:
        path: a file that `export_onnx` wrote.
        fp16_path: where the result goes, once it is proven.
        dataset: labeled images to prove it by.

    Returns:
        The file with its proof.

    Raises:
        ExportError: the converted file is not valid, gives values that are not finite, or does something else.
    """
    model = onnx.load(path)
    raw = _raw(model.graph)
    images = [dataset.read(i)[0] for i in range(min(len(dataset), RANGE_IMAGES))]
    _refuse_large_values(path, images, [name for outputs in raw.values() for name in outputs])
    temporary = fp16_path.with_name(f".{fp16_path.name}.tmp")
    try:
        # Sizes and places of pixels stay in float32: half precision cannot tell 2049 from 2048.
        half = convert_float_to_float16(model, keep_io_types=True, node_block_list=[*_sizes(model.graph), *raw])
        del half.graph.value_info[:]  # types that it does not bring up to date
        ONNXModel(half).topological_sort()  # it puts what it adds at the end
        onnx.save(half, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)
        proof = compare_masks(path, temporary, dataset)
    except ExportError:
        raise
    except Exception as error:  # the converter's, the checker's and onnxruntime's
        raise ExportError(f"{fp16_path}: float16 gives no valid file: {' '.join(str(error).split())[:200]}") from None
    else:
        if proof.argmax_agreement < MIN_AGREEMENT or proof.mean_iou_lost > MAX_LOST:
            raise ExportError(
                f"{fp16_path}: not published, in float16 {100 * proof.argmax_agreement:.2f} % of the pixels have "
                f"the same class, and {100 * proof.mean_iou_lost:.2f} points of mIoU are lost"
            )
        temporary.replace(fp16_path)
    finally:
        temporary.unlink(missing_ok=True)
    size, float_size = (file.stat().st_size for file in (fp16_path, path))
    return Fp16File(**vars(proof), bytes=size, float_bytes=float_size, sha256=sha256(fp16_path))


def _refuse_large_values(path: Path, images: Sequence[np.ndarray], without: Sequence[str]) -> None:
    """Raises ExportError if a map of the float file holds values that float16 does not.

    Running the converted file would not tell: on a CPU, onnxruntime computes in float32.
    """
    with TemporaryDirectory() as scratch:
        ranges = calibrate(path, images, CalibrationMethod.MinMax, Path(scratch), ())
    bounds = [bound for name, data in ranges.data.items() if name not in without for bound in data.range_value]
    largest = max(float(np.abs(bound).max()) for bound in bounds)
    if not largest <= LARGEST:
        raise ExportError(f"{path}: values reach {largest:.3g}, float16 ends at {LARGEST:.0f}; no file is written")


def _raw(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Nodes of images of more than 8 bits until these are normalized, which stay in float32; and what they give.

    Half precision has 11 bits, and ends before 16-bit images do. All but the last give what is still raw.
    """
    if graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return {}
    raw, found = {graph.input[0].name}, {}
    for node in graph.node:
        if node.op_type != "Shape" and not raw.isdisjoint(node.input):
            last = node.op_type == "BatchNormalization"
            found[node.name] = [] if last else list(node.output)
            raw.update(found[node.name])
    return found


def _sizes(graph: onnx.GraphProto) -> list[str]:
    """Nodes that compute with sizes and not with pixels."""
    pixels = {value.name for value in graph.input}
    names = []
    for node in graph.node:
        if node.op_type != "Shape" and not pixels.isdisjoint(node.input):
            pixels.update(node.output)
        else:
            names.append(node.name)
    return names
