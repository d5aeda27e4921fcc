"""Tiny ONNX files with the inputs and outputs of an exported student, built in milliseconds and without torch."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ["sky", "land", "sea"]
PALETTE = [[10, 20, 200], [40, 160, 40], [0, 90, 160]]


def build(input_type: int = TensorProto.UINT8, size: tuple[int | str, int | str] = ("H", "W")) -> onnx.ModelProto:
    """Image → scale → two convolutions with ReLU → 1×1 convolution → logits → mask."""
    generator = np.random.default_rng(0)
    constants = {
        "mean": np.float32(127.5),
        "std": np.float32(60),
        "w1": generator.normal(size=(12, 3, 3, 3)).astype(np.float32) / 5,
        "b1": generator.normal(size=12).astype(np.float32) / 10,
        "w2": generator.normal(size=(8, 12, 3, 3)).astype(np.float32) / 7,
        "w3": generator.normal(size=(3, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"], "sub"),
        helper.make_node("Div", ["centred", "std"], ["scaled"], "div"),
        helper.make_node("Conv", ["scaled", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["logits"], "conv3"),
        helper.make_node("ArgMax", ["logits"], ["best"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["mask"], "to_bytes", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("image", input_type, ["N", *size, 3])],
        [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", *size]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, *size]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES), "palette": json.dumps(PALETTE)})
    return model


def write(path: Path, **options) -> Path:
    """The file itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build(**options), str(path))
    return path


def external(path: Path) -> Path:
    """The same with one tensor in another file."""
    model = build()
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    return path


def foreign(path: Path) -> Path:
    """The same with an operator that is not ONNX's, in a branch of a condition."""
    model = build()
    inner = helper.make_graph(
        [helper.make_node("Shell", [], ["x"], domain="evil.ops")],
        "branch",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=inner, else_branch=inner))
    path.write_bytes(model.SerializeToString())
    return path
