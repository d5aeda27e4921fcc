"""Which layers of an ONNX graph gain by computing in 8 bits, and how the weights of the others are stored in them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = ("Add", "Mul", "Relu", "Clip", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
ACTIVATIONS = ("Relu", "Clip")  # these become part of the layer before them
MIN_TERMS = 96  # products that a layer sums up for one number of its output


def select_int8_layers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """What is to be done in 8 bits.

    A layer computes in 8 bits if it sums up at least `MIN_TERMS` products a number, or if only such layers take what it
    gives, which is then rounded in any case.

    Returns:
        For each layer with constant weights the names of the nodes that compute in 8 bits: the layer, its activation,
        and the nodes between it and the next such layer if all that they take is in 8 bits. None for a layer that only
        has its weights in 8 bits.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers: dict[str, list[str]] = {node.name: [] for node in graph.node if _terms(node, weights)}
    computing: set[str] = set()  # layers in 8 bits
    takers: dict[str, list[bool]] = {output.name: [False] for output in graph.output}  # whether these are in 8 bits
    for node in reversed(graph.node):  # against the topological order
        rounded = all(takers.get(node.output[0], [False]))
        if node.name in layers and (rounded or _terms(node, weights) >= MIN_TERMS):
            computing.add(node.name)
        for name in node.input:
            takers.setdefault(name, []).append(node.name in computing or (rounded and _is_between(node)))
    owner: dict[str, int] = {}  # tensor in 8 bits → the last layer that had a part in it
    for place, node in enumerate(graph.node):
        taken = [name for name in node.input if name and name not in weights]
        if node.name in computing:
            owner |= dict.fromkeys(node.output, place)
        elif _is_between(node) and taken and all(name in owner for name in taken):
            owner |= dict.fromkeys(node.output, max(owner[name] for name in taken))
    producers = {name: node for node in graph.node for name in node.output}
    leading: set[str] = set()  # tensors that a layer in 8 bits takes, itself or through others
    for node in reversed(graph.node):
        if node.output[0] not in owner:
            continue
        before = producers.get(node.input[0])
        ends = node.op_type in ACTIVATIONS and before is not None and before.name in computing
        if node.name in computing or ends or not leading.isdisjoint(node.output):
            leading.update(node.input)
            layers[graph.node[owner[node.output[0]]].name].append(node.name)
    return layers


def _is_between(node: onnx.NodeProto) -> bool:
    """Whether a node without weights may work on 8 bits as they are."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return node.op_type in BETWEEN and (node.op_type != "Resize" or attributes.get("mode", b"nearest") == b"nearest")


def _terms(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> int:
    """How many products a layer sums up for one number of its output; 0 if it is none, or has no constant weights."""
    if node.op_type not in WEIGHTED or node.input[1] not in weights:
        return 0
    shape = weights[node.input[1]].dims
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return math.prod(shape[1:])  # [out, in / groups, height, width]
    if node.op_type == "ConvTranspose":
        return math.prod(shape) // (shape[1] * attributes.get("group", 1))
    return shape[-1] if attributes.get("transB") else shape[-2]


def store_in_8_bits(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Replaces the weights of some layers by 8 bits with a scale a channel, of which loading the file makes floats."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        tensor = weights.pop(node.input[1], None) if node.name in layers else None
        if tensor is None:  # shared with another layer, and done
            continue
        values = onnx.numpy_helper.to_array(tensor)
        channel = 0 if node.op_type == "Conv" else 1
        others = tuple(axis for axis in range(values.ndim) if axis != channel)
        scale = (np.abs(values).max(others, keepdims=True) / 127).astype(np.float32)
        scale[scale == 0] = 1
        name = tensor.name
        model.graph.initializer.remove(tensor)
        for part, array in (("int8", np.round(values / scale).astype(np.int8)), ("scale", scale)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{part}"))
        nodes.append(onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def rewrite_nearest_resize(graph: onnx.GraphProto) -> None:
    """Does on the 8-bit numbers themselves what needs no others: reading shapes, and upsampling by copies.

    8-bit convolutions work in NHWC, in which onnxruntime's Resize goes number by number, so pixels with all their
    channels are copied at once instead: ten times as fast.
    """
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    bits = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    rounding = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    done: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Shape":
            node.input[0] = bits.get(node.input[0], node.input[0])
        factors = _factors(node, constants)
        if factors and node.input[0] in bits and node.output[0] in rounding:
            done.append(rounding[node.output[0]])
            copies, shapes = _copies(node.name, bits[node.input[0]], done[-1].output[0], *factors)
            nodes += copies
            graph.initializer.extend(shapes)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(node for node in nodes if node not in done)


def _factors(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """By how much a node upsamples height and width, if each number of its output is a copy of one that it takes."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    wanted = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    if node.op_type != "Resize" or len(node.input) != 3 or node.input[2] not in constants or "axes" in attributes:
        return None
    batch, channels, *factors = constants[node.input[2]].tolist()
    plain = all(attributes.get(name) == value for name, value in wanted.items()) and batch == channels == 1
    if not plain or len(factors) != 2 or not all(factor.is_integer() for factor in factors):
        return None
    return int(factors[0]), int(factors[1])


def _copies(
    name: str, source: str, result: str, vertical: int, horizontal: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that repeat the rows and columns of an NCHW map."""
    values = {"new": [2, 4], "copies": [1, 1, vertical, 1, horizontal, 1], "factors": [1, vertical, horizontal, 1]}
    constants = [onnx.numpy_helper.from_array(np.array(value), f"{name}_{key}") for key, value in values.items()]

    def node(op_type: str, takes: Sequence[str], gives: str, **attributes: Any) -> onnx.NodeProto:
        takes = [part if part == source else f"{name}_{part}" for part in takes]
        gives = gives if gives == result else f"{name}_{gives}"
        return onnx.helper.make_node(op_type, takes, [gives], name=f"{gives}_{op_type}", **attributes)

    nodes = [
        node("Transpose", [source], "pixels", perm=[0, 2, 3, 1]),
        node("Shape", ["pixels"], "before"),
        node("Mul", ["before", "factors"], "after"),
        node("Unsqueeze", ["pixels", "new"], "single"),
        node("Expand", ["single", "copies"], "repeated"),
        node("Reshape", ["repeated", "after"], "tall"),
        node("Transpose", ["tall"], result, perm=[0, 3, 1, 2]),
    ]
    return nodes, constants


def shorten_names(graph: onnx.GraphProto) -> None:
    """Gives what flows between nodes, which nobody asks for by name, names that take little of a small file."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # what an inner graph takes from this one, it takes by name
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"_{len(names):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        for names_of_node in (node.input, node.output):
            names_of_node[:] = [short(name) for name in names_of_node]
