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
        helper.make_node("Sub", ["float", "mean"], ["centered"], "sub"),
        helper.make_node("Div", ["centered", "std"], ["scaled"], "div"),
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


def swollen(path: Path, operator: str) -> Path:
    """The same whose mask waits for an operator that asks for 13 GB, or for a loop that never ends.

    Args:
        path: where the file goes.
        operator: `ConstantOfShape` (while the file is opened), `Expand` (while it is run) or `Loop`.
    """
    model = build()
    graph, name = model.graph, numpy_helper.from_array
    if operator == "Loop":
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["still"]),
                helper.make_node("Add", ["x", "x"], ["y"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.INT64, []),
            ],
            [
                helper.make_tensor_value_info("still", TensorProto.BOOL, []),
                helper.make_tensor_value_info("y", TensorProto.INT64, []),
            ],
        )
        graph.initializer.extend([name(np.array(True), "yes"), name(np.int64(2**62), "often")])
        nodes = [
            helper.make_node("ReduceMax", ["best"], ["peak"], keepdims=0),
            helper.make_node("Loop", ["often", "yes", "peak"], ["huge"], body=body),
        ]
    else:
        shape = np.array([100, 5700, 5700], np.int64)
        graph.initializer.append(name(shape, "shape"))
        if operator == "ConstantOfShape":
            nodes = [helper.make_node("ConstantOfShape", ["shape"], ["filled"])]
        else:
            nodes = [
                helper.make_node("ReduceMax", ["logits"], ["peak"], keepdims=0),
                helper.make_node("Expand", ["peak", "shape"], ["filled"]),
            ]
        nodes += [
            helper.make_node("ReduceMax", ["filled"], ["top"], keepdims=0),
            helper.make_node("Cast", ["top"], ["huge"], to=TensorProto.INT64),
        ]
    graph.node[-1].input[0] = "sum"
    last = graph.node.pop()
    graph.node.extend([*nodes, helper.make_node("Add", ["best", "huge"], ["sum"]), last])
    path.write_bytes(model.SerializeToString())
    return path
