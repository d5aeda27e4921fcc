"""The student in 8 bits: calibrated on training images, chosen and admitted by its score on validation images.

onnxruntime's static quantization with QuantizeLinear/DequantizeLinear pairs, a scale a channel for weights, signed
weights with unsigned activations (the one pair that x86 multiplies at full speed). Only what gains by it computes in
8 bits: convolutions and products with many terms a sum, and what lies between them. The rest would spend more on
rounding its inputs and outputs than it saves; its weights are stored in 8 bits all the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.shape_inference import quant_pre_process

from distill.data import Dataset
from distill.deployment.compare import MaskProof, compare, compare_masks
from distill.deployment.qdq import (
    BETWEEN,
    WEIGHTED,
    rewrite_nearest_resize,
    select_int8_layers,
    shorten_names,
    store_in_8_bits,
)
from distill.deployment.runtime import OnnxModel
from distill.errors import ExportError
from distill.storage import OPTIONAL, sha256

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
SENSITIVITY_IMAGES = 4


@dataclass(kw_only=True)
class Int8File(MaskProof):
    """A published INT8 file.

    Attributes:
        method: by which it was calibrated.
        tried: mIoU by method.
        layers: how many compute in INT8.
        stored_layers: how many only have their weights in INT8.
        float_layers: names of those left as they were.
        calibration_images: how many training images gave the ranges.
        max_lost: mIoU that was allowed to be lost.
        bytes: size of the file.
        float_bytes: size of the float file.
        sha256: of its content.
        finetuned: whether it is of the network that was trained with rounding, where there is one.
        made_from: what it depends on: the hash of the float file, and the settings.
    """

    method: str
    tried: dict[str, float]
    layers: int
    stored_layers: int
    float_layers: list[str]
    calibration_images: int
    max_lost: float
    bytes: int
    float_bytes: int
    sha256: str
    finetuned: bool | None = field(default=None, metadata=OPTIONAL)
    made_from: dict[str, Any] = field(default_factory=dict)


def quantize_onnx(
    path: Path,
    int8_path: Path,
    train: Dataset,
    val: Dataset,
    methods: Sequence[str] | None = None,
    calibration_images: int = 64,
    max_lost: float = 0.005,
    say: Callable[[str], None] = lambda line: None,
    reference: Path | None = None,
) -> Int8File:
    """Writes a file with the same inputs, outputs and metadata as the one it is made from, and proves it.

    The calibration method is the one with the best mIoU on the validation images. If that loses more than allowed,
    the layers that change the output most, each quantized alone, stay in float: 1, 2, 4, … of them, until it holds.

    Args:
        path: a file that `export_onnx` wrote.
        int8_path: where the result goes; it replaces what is there only once it is proven.
        train: images to calibrate on.
        val: labeled images to choose and prove by.
        methods: calibration methods to choose from: `minmax`, `entropy`, `percentile`; all of them if not given.
        calibration_images: how many of the training images, evenly spread.
        max_lost: mIoU (0 to 1) that may be lost.
        say: called with a line on each candidate.
        reference: the float file that the result is compared with; `path` itself if not given.

    Returns:
        What was chosen and measured.

    Raises:
        ExportError: no choice keeps the mIoU, or the result gives values that are not finite.
    """
    reference = reference or path
    float_score = _mean_iou(reference, val)
    images = [train.read(i)[0] for i in _spread(len(train), calibration_images)]
    temporary = int8_path.with_name(f".{int8_path.name}.tmp")
    with TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        # Symbolic shape inference gives up at padding to a multiple of the stride; sizes are not needed, types are.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = load_model_with_shape_infer(prepared)
        for place, node in enumerate(model.graph.node):  # those that the preparation made have no names
            node.name = node.name or f"{node.op_type}_{place}"
        layers = select_int8_layers(model.graph)

        def build(ranges: TensorsData, kept_float: Sequence[str] = ()) -> None:
            _write(model, temporary, ranges, {name: layers[name] for name in layers if name not in kept_float})

        def score(ranges: TensorsData, kept_float: Sequence[str] = ()) -> float:
            build(ranges, kept_float)
            return _mean_iou(temporary, val)

        tried: dict[str, float] = {}
        ranges = {}
        for name in methods or METHODS:
            ranges[name] = calibrate(prepared, images, METHODS[name], Path(scratch), (*WEIGHTED, *BETWEEN))
            tried[name] = score(ranges[name])
            say(f"INT8, {name}: mIoU {100 * tried[name]:.2f}, in float {100 * float_score:.2f}")
        method = max(tried, key=lambda name: tried[name])
        kept_float: list[str] = []
        found = tried[method]
        if float_score - found > max_lost:
            worst = _by_sensitivity(model, ranges[method], layers, images[:SENSITIVITY_IMAGES], temporary)
            while float_score - found > max_lost:
                kept_float = worst[: max(1, 2 * len(kept_float))]
                if len(kept_float) == len(layers):
                    temporary.unlink(missing_ok=True)
                    raise ExportError(f"{int8_path}: 8 bits lose over {100 * max_lost:.2f} points of mIoU")
                found = score(ranges[method], kept_float)
                say(f"INT8, {method}, {len(kept_float)} layers in float: mIoU {100 * found:.2f}")
        facts = {"method": method, "float_layers": kept_float, "mean_iou": found, "float_mean_iou": float_score}
        build(ranges[method], kept_float)
        _add_metadata(temporary, _metadata(path) | {"quantization": json.dumps(facts)})
    onnx.checker.check_model(str(temporary), full_check=True)
    proof = compare_masks(reference, temporary, val)
    temporary.replace(int8_path)
    rounded = [bool(nodes) for name, nodes in layers.items() if name not in kept_float]
    return Int8File(
        **vars(proof),
        method=method,
        tried=tried,
        layers=sum(rounded),
        stored_layers=len(rounded) - sum(rounded),
        float_layers=kept_float,
        calibration_images=len(images),
        max_lost=max_lost,
        bytes=int8_path.stat().st_size,
        float_bytes=reference.stat().st_size,
        sha256=sha256(int8_path),
    )


class _Reader(CalibrationDataReader):
    """Hands one image to onnxruntime's calibration."""

    def __init__(self, name: str, image: np.ndarray):
        self.feeds = iter([{name: image[None]}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def calibrate(
    prepared: Path, images: Sequence[np.ndarray], method: CalibrationMethod, scratch: Path, operators: Sequence[str]
) -> TensorsData:
    """Ranges of what some kinds of nodes take and give; no kinds are all kinds.

    Image by image: a reader of many would keep the activations of all in memory.
    """
    calibrator = create_calibrator(prepared, list(operators), str(scratch / "augmented.onnx"), method)
    name = OnnxModel(prepared).input
    with redirect_stdout(StringIO()):  # it reports every image
        for image in images:
            calibrator.collect_data(_Reader(name, image))
        return calibrator.compute_data()


def _write(model: onnx.ModelProto, path: Path, ranges: TensorsData, layers: Mapping[str, list[str]]) -> None:
    """The file with some of its layers in 8 bits, as `select_int8_layers` says."""
    nodes = [name for layer in layers.values() for name in layer]
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=nodes,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in nodes],
        op_types_to_quantize=[*WEIGHTED, *BETWEEN],
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = quantizer.model.model
    store_in_8_bits(made, [name for name, nodes in layers.items() if not nodes])
    rewrite_nearest_resize(made.graph)
    onnx_ir.save(RemoveUnusedNodesPass()(onnx_ir.from_proto(made)).model, str(path))


def _add_metadata(path: Path, entries: dict[str, str]) -> None:
    """Replaces what the quantizer noted by what the file is to say, and drops shapes that it inferred."""
    model = onnx.load(path)
    del model.metadata_props[:]
    del model.graph.value_info[:]
    shorten_names(model.graph)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(path))


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: TensorsData,
    layers: Mapping[str, list[str]],
    images: Sequence[np.ndarray],
    scratch: Path,
) -> list[str]:
    """Layers, those first that change the logits most when they alone are in 8 bits."""
    seen = copy.deepcopy(model)
    decides = ("ArgMax", "Greater")  # with one class a pixel, with any number
    logits = next(node.input[0] for node in reversed(model.graph.node) if node.op_type in decides)
    if logits not in [output.name for output in seen.graph.output]:
        seen.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))

    def outputs() -> list[np.ndarray]:
        session = OnnxModel(scratch).session
        return [session.run([logits], {session.get_inputs()[0].name: image[None]})[0] for image in images]

    onnx.save(seen, str(scratch))
    expected = outputs()
    errors = {}
    for layer in layers:
        _write(seen, scratch, ranges, {layer: layers[layer]})
        pairs = zip(outputs(), expected, strict=True)
        errors[layer] = sum(float(np.square(found - exact).mean()) for found, exact in pairs)
    return sorted(layers, key=lambda layer: -errors[layer])


def _mean_iou(path: Path, dataset: Dataset) -> float:
    model = OnnxModel(path)
    return compare(model, model, dataset).mean_iou


def _metadata(path: Path) -> dict[str, str]:
    return dict(OnnxModel(path).session.get_modelmeta().custom_metadata_map)


def _spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread."""
    return [i * length // count for i in range(count)] if length > count else list(range(length))
