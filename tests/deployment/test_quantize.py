import json

import numpy as np
import onnx
import onnx_files
import onnxruntime as ort
import pytest
from noise_scenes import scenes
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from distill.deployment import int8, qdq
from distill.deployment.runtime import OnnxModel
from distill.errors import ExportError


@pytest.fixture
def student(tmp_path):
    return onnx_files.write(tmp_path / "model.onnx")


def run(student, **options):
    model = OnnxModel(student)
    train, val = scenes(model, 4, 0), scenes(model, 3, 1)
    return int8.quantize_onnx(student, student.with_name("model.int8.onnx"), train, val, **options)


def test_same_contract_and_a_proof_that_holds(student):
    result = run(student, max_lost=0.1)
    before, after = OnnxModel(student), OnnxModel(student.with_name("model.int8.onnx"))
    assert after.outputs == before.outputs
    assert (after.input, after.size, after.classes, after.palette) == (
        before.input,
        before.size,
        before.classes,
        before.palette,
    )
    assert set(result.tried) == {"minmax", "entropy", "percentile"}
    assert result.tried[result.method] == max(result.tried.values()) == result.mean_iou
    assert result.float_layers == []
    assert result.float_mean_iou == 1
    assert 0 <= result.mean_iou_lost <= 0.1
    assert 0.95 < result.argmax_agreement <= 1
    assert result.bytes == after.path.stat().st_size
    graph = onnx.load(after.path).graph
    inner = {name for node in graph.node for name in (*node.input, *node.output)} - {"image", "mask", "logits", ""}
    assert max(map(len, inner)) <= 4
    recorded = json.loads(after.session.get_modelmeta().custom_metadata_map["quantization"])
    assert recorded["method"] == result.method
    assert sorted(p.name for p in student.parent.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_weights_are_signed_per_channel_and_activations_unsigned(student):
    run(student, methods=["minmax"], max_lost=1)
    graph = onnx.load(student.with_name("model.int8.onnx")).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    convolutions = {node.name: node for node in graph.node if node.op_type == "Conv"}
    for name in ("conv1", "conv2"):
        activation, weight = (producers[name] for name in convolutions[name].input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == constants[weight.input[0]].shape[:1]
        assert constants[activation.input[2]].dtype == np.uint8
    assert [node.op_type for node in graph.node if node.op_type in ("Sub", "Div", "ArgMax")] == ["Sub", "Div", "ArgMax"]


def test_the_weights_of_a_layer_in_float_are_small_and_right(student):
    result = run(student, methods=["minmax"], max_lost=1)
    assert (result.layers, result.stored_layers) == (2, 1)
    graph = onnx.load(student.with_name("model.int8.onnx")).graph
    (node,) = (node for node in graph.node if node.name == "conv3")
    scaled = next(other for other in graph.node if other.output[0] == node.input[1])
    cast = next(other for other in graph.node if other.output[0] == scaled.input[0])
    assert (cast.op_type, scaled.op_type) == ("Cast", "Mul")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    small, scale = constants[cast.input[0]], constants[scaled.input[1]]
    exact = next(onnx.numpy_helper.to_array(t) for t in onnx_files.build().graph.initializer if t.name == "w3")
    assert small.dtype == np.int8
    assert scale.shape == (3, 1, 1, 1)
    assert np.abs(small * scale - exact).max() <= scale.max() / 2 + 1e-6


def node(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs, [output], output, **attributes)


def graph_of(nodes, output, **shapes):
    weights = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, None)], [value(output, 1, None)]
    return onnx.helper.make_graph(nodes, "graph", *ends, weights)


def test_layers_with_many_terms_and_those_that_only_these_take_compute_in_8_bits():
    assert int8.select_int8_layers(onnx_files.build().graph) == {
        "conv1": ["relu1", "conv1"],
        "conv2": ["relu2", "conv2"],
        "conv3": [],
    }


def test_what_lies_between_is_in_8_bits_only_if_all_it_takes_is():
    wide, narrow = (16, 16, 3, 3), (16, 16, 1, 1)
    nodes = [
        node("Conv", ["x", "w1"], "first"),
        node("Relu", ["first"], "relu"),
        node("Conv", ["relu", "w2"], "second"),
        node("Add", ["second", "relu"], "sum"),  # all in 8 bits
        node("Add", ["sum", "x"], "mixed"),  # x is not
        node("Conv", ["mixed", "w3"], "narrow"),  # also taken by what is in float
        node("HardSwish", ["narrow"], "active"),
        node("Conv", ["sum", "w4"], "last"),
        node("Add", ["last", "active"], "y"),
    ]
    graph = graph_of(nodes, "y", w1=wide, w2=wide, w3=narrow, w4=wide)
    assert int8.select_int8_layers(graph) == {
        "first": ["relu", "first"],
        "second": ["sum", "second"],
        "narrow": [],
        "last": ["last"],
    }


def test_bilinear_resize_stays_in_float_and_products_with_made_up_matrices_are_no_layers():
    nodes = [
        node("Conv", ["x", "w1"], "first"),
        node("Resize", ["first"], "near", mode="nearest"),
        node("Conv", ["near", "w2"], "second"),
        node("Resize", ["second"], "between", mode="linear"),
        node("Conv", ["between", "w3"], "third"),
        node("MatMul", ["third", "x"], "y"),
    ]
    wide = (16, 16, 3, 3)
    found = int8.select_int8_layers(graph_of(nodes, "y", w1=wide, w2=wide, w3=wide))
    assert found == {"first": ["near", "first"], "second": ["second"], "third": ["third"]}


def test_layers_that_cost_too_much_stay_in_float_and_are_named(student):
    lines = []
    free = run(student, methods=["minmax"], max_lost=1)
    result = run(student, methods=["minmax"], max_lost=free.mean_iou_lost * 0.9, say=lines.append)
    assert len(result.float_layers) == 1
    assert result.mean_iou_lost <= free.mean_iou_lost * 0.9
    counts = [r.layers + r.stored_layers + len(r.float_layers) for r in (free, result)]
    assert counts == [3, 3]
    assert "in float: mIoU" in lines[-1]


class HalfRight:
    """The float file right everywhere, all others half of the time."""

    calls = 0

    def __call__(self, path, dataset):
        self.calls += 1
        return 1.0 if path.name == "model.onnx" else 0.5


def test_nothing_is_published_if_no_choice_holds(student, monkeypatch):
    monkeypatch.setattr(int8, "_mean_iou", lost := HalfRight())
    with pytest.raises(ExportError, match=r"8 bits lose over 0\.50 points of mIoU"):
        run(student, methods=["minmax"])
    assert lost.calls > 2
    assert [p.name for p in student.parent.iterdir()] == ["model.onnx"]


def test_outputs_that_are_not_finite_are_not_published(student, monkeypatch):
    monkeypatch.setattr(int8.np, "isfinite", lambda values: np.array([False]))
    with pytest.raises(ExportError, match="not finite"):
        run(student, methods=["minmax"], max_lost=1)
    assert not student.with_name("model.int8.onnx").exists()


def test_calibration_images_are_spread_over_the_set():
    assert int8._spread(10, 4) == [0, 2, 5, 7]
    assert int8._spread(3, 64) == [0, 1, 2]


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def test_nearest_upsampling_copies_pixels_in_8_bits(tmp_path):
    wide = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Resize", ["a", "", "scales"], ["b"], "near", **NEAREST),
        onnx.helper.make_node("Shape", ["b"], ["shape"], "shape"),
        onnx.helper.make_node("Conv", ["b", "w2"], ["c"], "second", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Expand", ["c", "shape"], ["y"], "whole"),
    ]
    constants = {"w1": wide, "w2": wide, "scales": np.array([1, 1, 2, 3], np.float32)}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("x", 1, ["N", 16, "H", "W"])],
        [value("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    x = np.random.default_rng(1).normal(size=(2, 16, 5, 7)).astype(np.float32)
    ranges = TensorsData(
        CalibrationMethod.MinMax, {name: (np.float32(-100), np.float32(100)) for name in ("x", "a", "b", "c")}
    )
    results = {}
    for name in ("resized", "copied"):
        path = tmp_path / f"{name}.onnx"
        with pytest.MonkeyPatch.context() as patch:
            if name == "resized":
                patch.setattr(int8, "rewrite_nearest_resize", lambda graph: None)
            int8._write(model, path, ranges, int8.select_int8_layers(model.graph))
        onnx.checker.check_model(str(path), full_check=True)
        results[name] = ort.InferenceSession(str(path)).run(None, {"x": x})[0]
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert ("Resize" in operators, "Expand" in operators[:-1]) == (name == "resized", name == "copied")
    assert results["copied"].shape == (2, 16, 10, 21)
    np.testing.assert_array_equal(results["copied"], results["resized"])
    shape = next(node for node in onnx.load(tmp_path / "copied.onnx").graph.node if node.name == "shape")
    assert not shape.input[0].endswith("DequantizeLinear_Output")


@pytest.mark.parametrize(
    ("scales", "changed"), [([1, 1, 1.5, 2], {}), ([1, 2, 2, 2], {}), ([1, 1, 2, 2], {"nearest_mode": "ceil"})]
)
def test_other_upsampling_is_no_copy(scales, changed):
    node = onnx.helper.make_node("Resize", ["a", "", "scales"], ["b"], "near", **(NEAREST | changed))
    assert qdq._factors(node, {"scales": np.array(scales, np.float32)}) is None
