"""The student in 8 bits: calibrated on training images, chosen and admitted by its score on validation images.

onnxruntime's static quantisation with QuantizeLinear/DequantizeLinear pairs, a scale a channel for weights, signed
weights with unsigned activations (the one pair that x86 multiplies at full speed). What lies before the first and
behind the last layer with weights, normalisation, upsampling and argmax, stays in float.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from distill.checkpoint import sha256
from distill.data import Dataset
from distill.deployed import OnnxModel
from distill.export import ExportError
from distill.metrics import Scores, confusion_matrix

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZED = (
    *WEIGHTED,
    *("Add", "Mul", "Relu", "Clip", "Concat", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool"),
)
OTHER_SIZE = (97, 130)
SENSITIVITY_IMAGES = 4


def quantize_onnx(
    path: Path,
    int8_path: Path,
    train: Dataset,
    val: Dataset,
    methods: Sequence[str] = tuple(METHODS),
    calibration_images: int = 64,
    max_lost: float = 0.005,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes a file with the same inputs, outputs and metadata as the one it is made from, and proves it.

    The calibration method is the one with the best mIoU on the validation images. If that loses more than allowed,
    the layers that change the output most, each quantised alone, stay in float: 1, 2, 4, … of them, until it holds.

    Args:
        path: a file that `export_onnx` wrote.
        int8_path: where the result goes; it replaces what is there only once it is proven.
        train: images to calibrate on.
        val: labelled images to choose and prove by.
        methods: calibration methods to choose from: `minmax`, `entropy`, `percentile`.
        calibration_images: how many of the training images, evenly spread.
        max_lost: mIoU (0 to 1) that may be lost.
        say: called with a line on each candidate.

    Returns:
        What was chosen and measured: `method`, `tried` (mIoU by method), `float_layers`, `mean_iou`, `float_mean_iou`,
        `mean_iou_lost`, `argmax_agreement`, `bytes`, `float_bytes`, `sha256`, `made_from` (hash of the float file), …

    Raises:
        ExportError: no choice keeps the mIoU, or the result gives values that are not finite.
    """
    float_score = Scores(_confusion(path, val)).mean_iou
    images = [train.read(i)[0] for i in _spread(len(train), calibration_images)]
    temporary = int8_path.with_name(f".{int8_path.name}.tmp")
    with TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        # Symbolic shape inference gives up at padding to a multiple of the stride; sizes are not needed, types are.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = load_model_with_shape_infer(prepared)
        for place, node in enumerate(model.graph.node):  # those that the preparation made have no names
            node.name = node.name or f"{node.op_type}_{place}"
        layers = quantizable(model.graph)

        def build(ranges: TensorsData, kept_float: Sequence[str] = ()) -> None:
            _write(model, temporary, ranges, [n for name in layers if name not in kept_float for n in layers[name]])

        def score(ranges: TensorsData, kept_float: Sequence[str] = ()) -> float:
            build(ranges, kept_float)
            return Scores(_confusion(temporary, val)).mean_iou

        tried: dict[str, float] = {}
        ranges = {}
        for name in methods:
            ranges[name] = _calibrate(prepared, images, METHODS[name], Path(scratch))
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
    matrix, agreement, pixels = _prove(path, temporary, val)
    temporary.replace(int8_path)
    return facts | {
        "mean_iou": Scores(matrix).mean_iou,
        "mean_iou_lost": float_score - Scores(matrix).mean_iou,
        "argmax_agreement": agreement,
        "pixels": pixels,
        "tried": tried,
        "layers": len(layers) - len(kept_float),
        "calibration_images": len(images),
        "max_lost": max_lost,
        "bytes": int8_path.stat().st_size,
        "float_bytes": path.stat().st_size,
        "sha256": sha256(int8_path),
        "made_from": sha256(path),
    }


def quantizable(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """What 8 bits exist for between the first and the last layer with weights, both included.

    Returns:
        The names of the nodes by layer: each layer with weights, and the other nodes that its output flows through. A
        single node in float among others in 8 bits would gain nothing, since these round what it takes and gives.
    """
    owner: dict[str, int] = {}  # tensor → the last layer with weights that had a part in it
    for place, node in enumerate(graph.node):  # in topological order
        found = place if node.op_type in WEIGHTED else max((owner.get(name, -1) for name in node.input), default=-1)
        owner |= dict.fromkeys(node.output, found)
    leading: set[str] = set()  # tensors that have a part in a layer with weights
    layers: dict[str, list[str]] = {}
    for node in reversed(graph.node):
        if node.op_type in WEIGHTED or not leading.isdisjoint(node.output):
            leading.update(node.input)
            layer = owner[node.output[0]]
            if layer >= 0 and node.op_type in QUANTIZED:
                layers.setdefault(graph.node[layer].name, []).append(node.name)
    return layers


class _Reader(CalibrationDataReader):
    """Hands one image to onnxruntime's calibration."""

    def __init__(self, name: str, image: np.ndarray):
        self.feeds = iter([{name: image[None]}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _calibrate(prepared: Path, images: Sequence[np.ndarray], method: CalibrationMethod, scratch: Path) -> TensorsData:
    """Ranges of all activations. Image by image: a reader of many would keep the activations of all in memory."""
    calibrator = create_calibrator(prepared, list(QUANTIZED), str(scratch / "augmented.onnx"), method)
    name = OnnxModel(prepared).input
    with redirect_stdout(StringIO()):  # it reports every image
        for image in images:
            calibrator.collect_data(_Reader(name, image))
        return calibrator.compute_data()


def _write(
    model: onnx.ModelProto,
    path: Path,
    ranges: TensorsData,
    nodes: Sequence[str],
) -> None:
    """The file with some of its nodes quantised."""
    excluded = [node.name for node in model.graph.node if node.name not in nodes]
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=excluded,
        op_types_to_quantize=list(QUANTIZED),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    onnx.save(quantizer.model.model, str(path))


def _add_metadata(path: Path, entries: dict[str, str]) -> None:
    """Replaces what the quantiser noted by what the file is to say."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(path))


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: TensorsData,
    layers: Mapping[str, list[str]],
    images: Sequence[np.ndarray],
    scratch: Path,
) -> list[str]:
    """Layers, those first that change the outputs most when they alone are quantised."""

    def outputs() -> list[np.ndarray]:
        session = OnnxModel(scratch).session
        name = session.get_outputs()[-1].name  # not the mask: logits, or what is known of them
        return [session.run([name], {session.get_inputs()[0].name: image[None]})[0] for image in images]

    onnx.save(model, str(scratch))
    expected = outputs()
    errors = {}
    for layer in layers:
        _write(model, scratch, ranges, layers[layer])
        pairs = zip(outputs(), expected, strict=True)
        errors[layer] = sum(float(np.square(found - exact).mean()) for found, exact in pairs)
    return sorted(layers, key=lambda layer: -errors[layer])


def _confusion(path: Path, dataset: Dataset) -> torch.Tensor:
    model = OnnxModel(path)
    matrix = torch.zeros(len(model.classes), len(model.classes), dtype=torch.int64)
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        found = torch.from_numpy(model.mask(image)[None])
        matrix += confusion_matrix(found, torch.from_numpy(mask[None]), len(model.classes))
    return matrix


def _prove(float_path: Path, path: Path, dataset: Dataset) -> tuple[torch.Tensor, float, int]:
    """Confusion matrix of the finished file, the share of pixels in which it agrees with the float one, and pixels.

    Raises:
        ExportError: an output is not finite.
    """
    model, exact = OnnxModel(path), OnnxModel(float_path)
    matrix = torch.zeros(len(model.classes), len(model.classes), dtype=torch.int64)
    equal = pixels = 0
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        found = _finite(model, image[None])
        matrix += confusion_matrix(torch.from_numpy(found), torch.from_numpy(mask[None]), len(model.classes))
        equal += int((found[0] == exact.mask(image)).sum())
        pixels += mask.size
    if not any(isinstance(n, int) for n in model.size):
        height, width = OTHER_SIZE
        small = np.asarray(Image.fromarray(dataset.read(0)[0]).resize((width, height)))
        if _finite(model, np.stack([small] * 3)).shape != (3, *OTHER_SIZE):
            raise ExportError(f"{path}: gives masks of another size than its images")
    return matrix, equal / pixels, pixels


def _finite(model: OnnxModel, images: np.ndarray) -> np.ndarray:
    """The masks of images `[N, H, W, 3]`, once all other outputs are known to be finite."""
    outputs = dict(zip(model.outputs, model.session.run(list(model.outputs), {model.input: images}), strict=True))
    if not all(np.isfinite(values).all() for name, values in outputs.items() if name != "mask"):
        raise ExportError(f"{model.path}: outputs are not finite on images of shape {list(images.shape)}")
    return np.asarray(outputs["mask"])


def _metadata(path: Path) -> dict[str, str]:
    return dict(OnnxModel(path).session.get_modelmeta().custom_metadata_map)


def _spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread."""
    return [i * length // count for i in range(count)] if length > count else list(range(length))
