"""Hostile ONNX files, videos and images, given to what predicts; and clean ones, to compare with."""

import os
from collections.abc import Callable
from pathlib import Path

import giant_files
import numpy as np
import onnx_files
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from distill import predict
from distill.deployed import open_model

ADDRESS = "http:127.0.0.1:9999?"


def model(folder: Path, make: Callable[[Path], Path]) -> None:
    """Opens an ONNX file and runs it."""
    folder.mkdir()
    open_model(make(folder / "model.onnx")).mask(np.zeros((64, 96, 3), np.uint8))


def media(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    """Predicts for a file, from its folder: only a name that no path stands before is taken for an address."""
    folder.mkdir()
    make(folder / name)
    os.chdir(folder)
    arguments = [str(onnx_files.write(folder.parent / "clean.onnx")), ".", "--output_dir", str(folder / "out")]
    if code := predict.main(arguments):
        raise ValueError(f"exit code {code}")


def crowded(path: Path) -> Path:
    """Ten million empty nodes: two bytes each in the file, a hundred in memory."""
    content = onnx_files.build().SerializeToString()
    nodes = b"\x0a\x00" * 10_000_000
    size, varint = len(nodes), b""
    while size:
        size, low = size >> 7, size & 127
        varint += bytes([low | (128 if size else 0)])
    path.write_bytes(content + b"\x3a" + varint + nodes)  # merged into the graph
    return path


def wide(path: Path, operator: str) -> Path:
    """One whose constants, folded while it is opened, or whose padding takes gigabytes."""
    graph = onnx_files.build()
    if operator == "Pad":
        pads = numpy_helper.from_array(np.array([0, 0, 30_000, 30_000] * 2, np.int64), "pads")
        node = helper.make_node("Pad", ["logits", "pads"], ["wide"])
    else:
        pads = numpy_helper.from_array(np.arange(60_000, dtype=np.float32)[:, None], "pads")
        graph.graph.initializer.append(numpy_helper.from_array(np.arange(60_000, dtype=np.float32)[None], "row"))
        node = helper.make_node(operator, ["pads", "row"], ["wide"])
    graph.graph.initializer.append(pads)
    nodes = [node, helper.make_node("ReduceMax", ["wide"], ["top"], keepdims=0)]
    nodes += [helper.make_node("Cast", ["top"], ["huge"], to=TensorProto.INT64)]
    last = graph.graph.node.pop()
    last.input[0] = "sum"
    graph.graph.node.extend([*nodes, helper.make_node("Add", ["best", "huge"], ["sum"]), last])
    path.write_bytes(graph.SerializeToString())
    return path


def sparse(path: Path) -> Path:
    """100 GB of nothing."""
    with path.open("wb") as file:
        file.truncate(100 << 30)
    return path


def film(path: Path) -> None:
    """Twelve frames."""
    path.write_bytes(giant_files.avi([giant_files.jpeg(64, 48)] * 12, 64, 48))


def playlist(address: str) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}/a.ts\n#EXT-X-ENDLIST\n"


CLEAN: dict[str, Callable[[Path], object]] = {
    "an ONNX file": lambda folder: model(folder, onnx_files.write),
    "a video": lambda folder: media(folder, "a.avi", film),
    "a picture": lambda folder: media(folder, "a.png", lambda p: Image.new("RGB", (96, 64)).save(p)),
}
LISTS = {
    "HLS playlist": playlist("http://127.0.0.1:9999"),
    "concat list": "ffconcat version 1.0\nfile http://127.0.0.1:9999/a.mp4\n",
    "session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9999 RTP/AVP 96\n",
    "DASH manifest": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>http://127.0.0.1:9999/</BaseURL></Representation></AdaptationSet></Period></MPD>",
}
HOSTILE: dict[str, Callable[[Path], object]] = {
    **{
        f"an ONNX file with {operator}": lambda folder, operator=operator: model(
            folder, lambda path: onnx_files.swollen(path, operator)
        )
        for operator in ("ConstantOfShape", "Expand", "Loop")
    },
    **{
        f"an ONNX file with a large {operator}": lambda folder, operator=operator: model(
            folder, lambda path: wide(path, operator)
        )
        for operator in ("MatMul", "Add", "Pad")
    },
    "an ONNX file of ten million nodes": lambda folder: model(folder, crowded),
    "an ONNX file of 100 GB": lambda folder: model(folder, sparse),
    "an ONNX file with tensors elsewhere": lambda folder: model(folder, onnx_files.external),
    "an ONNX file with foreign operators": lambda folder: model(folder, onnx_files.foreign),
    "a video of giant frames": lambda folder: media(folder, "a.avi", giant_files.video),
    "a video that turns giant": lambda folder: media(folder, "a.avi", lambda p: giant_files.video(p, honest=False)),
    "a video named like an address": lambda folder: media(folder, f"{ADDRESS}.mp4", lambda p: p.write_bytes(b"x")),
    **{
        f"a video that is a {name}": lambda folder, text=text: media(folder, "a.mp4", lambda p: p.write_text(text))
        for name, text in LISTS.items()
    },
    "a video of 100 GB": lambda folder: media(folder, "a.mp4", sparse),
    "a picture of one giant tile": lambda folder: media(folder, "a.tif", giant_files.tile),
    "a picture named like a video's address": lambda folder: media(
        folder, f"{ADDRESS}.png", lambda p: p.write_bytes(b"x")
    ),
    "a picture of 16000×12000": lambda folder: media(folder, "a.jpg", lambda p: p.write_bytes(giant_files.jpeg())),
    "a picture of 100 GB": lambda folder: media(folder, "a.webp", sparse),
}
