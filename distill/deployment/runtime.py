"""A finished network as others meet it, an ONNX file, an SMP folder or a run, behind one interface.

ONNX files are run by onnxruntime alone, in a process with limits on memory and time (`sandbox`): a file of a kilobyte
can ask for any amount of both. Torch is imported only for a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from distill.deployment import sandbox
from distill.errors import ConfigError
from distill.visualize import default_palette

OWN_DOMAINS = ("", "ai.onnx")  # of operators that onnxruntime brings itself
MAX_CLASSES = 254
TYPES = {"tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(float)": "float32"}  # of images
RANKS = {"mask": 3, "logits": 4, "confidence": 3}  # of the outputs: [N, H, W], [N, C, H, W], [N, H, W]
MULTILABEL = "multilabel"  # in the metadata of such a file
MANY_RANKS = dict.fromkeys(RANKS, 4)  # with many labels a pixel, each class has its own mask and confidence
# What a file run in a process of its own may take. Measured on FPN, Unet and Segformer: 2.7 bytes per byte of the file,
# 300 to 2,000 bytes and 2 to 9 µs per pixel on one core.
MAX_FILE_BYTES = 1 << 31  # protobuf reads no more
BASE_BYTES, BYTES_PER_FILE_BYTE, BYTES_PER_PIXEL = 200_000_000, 6, 8_000
BYTES_PER_THREAD = 8 << 20  # its stack, by the system's count
BASE_SECONDS, SECONDS_PER_PIXEL = 20, 100e-6


class Segmenter(Protocol):
    """What can be asked of a finished network; safe to ask from several threads.

    Attributes:
        classes: their names, by id.
        palette: a color a class.
        image: the images that it takes: their channels, and `uint8`, `uint16` or `float32`.
        multilabel: a pixel may have any number of the classes: a mask is uint8 `[C, H, W]` of 0 and 1, and a class's
            probability the sigmoid of its logit.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    image: tuple[int, str]
    multilabel: bool

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`."""

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits float32 `[C, H, W]` of an image `[H, W, C]`."""


def open_model(path: str | Path, threads: int = 0, trusted: bool = False) -> Segmenter:
    """A network from wherever it lies.

    Args:
        path: an ONNX file, a folder written by SMP's `save_pretrained`, or a run (its student, as ONNX if exported).
        threads: that an ONNX file runs on; 0 leaves it to onnxruntime.
        trusted: run an ONNX file in this process, without limits on memory and time.

    Raises:
        ConfigError: none of these, or one that cannot be used.
    """
    path = Path(path)
    if (path / "student").is_dir():
        path = path / "student"
        if (path / "model.onnx").is_file():
            path = path / "model.onnx"
    if path.is_file():
        return OnnxModel(path, threads) if trusted else OnnxProcess(path, threads)
    if not (path / "config.json").is_file():
        state = "holds no config.json" if path.is_dir() else "is neither" if path.exists() else "is not there"
        if (path / "foreign.json").is_file():
            state = "holds the record of a teacher whose weights lie elsewhere"
        raise ConfigError(f"{path}: expected an ONNX file, a folder written by SMP's save_pretrained or a run; {state}")
    from distill.deployment.torch_runtime import SmpFolder  # imports torch

    return SmpFolder(path)


class LimitedProcess:
    """An ONNX file of anybody's, opened in a process with limits on memory and time.

    Args:
        path: the file.
        threads: that it runs on; 0 leaves it to onnxruntime.
        module: of this package, whose `serve` opens the file and answers.
        trust: setting that lifts the limits.

    Attributes:
        told: what the process says of the file.

    Raises:
        ConfigError: not such a file, or one that needs more than it may; every answer of a process that had to be
            stopped is a `SandboxError`.
    """

    def __init__(self, path: Path, threads: int, module: str, trust: str):
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; an ONNX file has at most {MAX_FILE_BYTES:,}")
        self.process = sandbox.Sandbox(
            f"from {module} import serve; serve()",
            str(path),
            BASE_BYTES + BYTES_PER_FILE_BYTE * size + BYTES_PER_THREAD * (threads or os.cpu_count() or 1),
            f"; {trust} runs it without limits, if you trust it",
        )
        self.told, _ = self.process.ask(BASE_SECONDS + size * 1e-6, path=str(path), threads=threads)

    def ask(self, output: str, array: np.ndarray, pixels: int) -> np.ndarray:
        """One output for an array, with the time and memory that so many pixels may take."""
        seconds, memory = BASE_SECONDS + pixels * SECONDS_PER_PIXEL, pixels * BYTES_PER_PIXEL
        _, found = self.process.ask(seconds, memory, array, output=output)
        if found is None:
            raise ConfigError(f"{self.process.name}: gives no {output}")
        return found


class OnnxProcess(LimitedProcess):
    """An `OnnxModel` in a process with limits.

    Args:
        path: the file.
        threads: that it runs on; 0 leaves it to onnxruntime.
    """

    def __init__(self, path: Path, threads: int = 0):
        super().__init__(path, threads, __name__, "--trusted")
        self.classes: list[str] = self.told["classes"]
        self.palette = [(r, g, b) for r, g, b in self.told["palette"]]
        self.image: tuple[int, str] = (self.told["image"][0], self.told["image"][1])
        self.multilabel: bool = self.told["multilabel"]

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`."""
        return self.run("mask", image)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits float32 `[C, H, W]` of an image `[H, W, C]`."""
        return self.run("logits", image)

    def run(self, output: str, image: np.ndarray) -> np.ndarray:
        """One output for one image."""
        return self.ask(output, image, image.shape[0] * image.shape[1])


def serve() -> None:
    """In the process of an `OnnxProcess`: opens the file, then answers for images."""
    opened: list[OnnxModel] = []

    def answer(request: dict[str, Any], image: np.ndarray | None) -> sandbox.Message:
        if image is None:
            model = OnnxModel(Path(request["path"]), request["threads"])
            opened.append(model)
            told = {"classes": model.classes, "palette": model.palette, "image": model.image}
            return told | {"multilabel": model.multilabel}, None
        return {}, opened[0].run(request["output"], image)

    sandbox.serve(answer)


class OnnxModel:
    """A file that takes raw images, as `export_onnx` writes it, run in this process: for files that this project wrote.

    Args:
        path: the file.
        threads: that it runs on; 0 leaves it to onnxruntime.

    Raises:
        ConfigError: not such a file, or one that would make onnxruntime open others.
    """

    def __init__(self, path: Path, threads: int = 0):
        self.path = path
        self.session, self.only_asked = start_session(path, threads)
        inputs = [f"{i.name} {i.type} {i.shape}" for i in self.session.get_inputs()]
        first = self.session.get_inputs()[0]
        if len(inputs) != 1 or first.type not in TYPES or len(first.shape) != 4 or type(first.shape[3]) is not int:
            raise ConfigError(
                f"{path}: its input is {'; '.join(inputs)}, expected raw images, uint8 [N, H, W, 3], as distill's own "
                f"files take them; a network of another kind can teach: distill train --teacher.checkpoint"
            )
        self.input, self.size, self.image = first.name, first.shape[1:3], (first.shape[3], TYPES[first.type])
        self.outputs = {o.name: o.type for o in self.session.get_outputs()}
        if self.outputs.get("mask") != "tensor(uint8)":
            raise ConfigError(f"{path}: has the outputs {self.outputs}, expected a mask, tensor(uint8)")
        about = self.session.get_modelmeta().custom_metadata_map
        self.multilabel = about.get(MULTILABEL) == "true"
        for output in self.session.get_outputs():
            known = MANY_RANKS if self.multilabel else RANKS
            if output.shape and len(output.shape) != (rank := known.get(output.name, len(output.shape))):
                raise ConfigError(f"{path}: its {output.name} has the shape {output.shape}, expected {rank} dimensions")
        self.classes, self.palette = _metadata(path, about)

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`."""
        return self.run("mask", image)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits float32 `[C, H, W]` of an image `[H, W, C]`."""
        return self.run("logits", image)

    def run(self, output: str, image: np.ndarray) -> np.ndarray:
        """One output for one image."""
        if output not in self.outputs:
            raise ConfigError(f"{self.path}: gives {', '.join(self.outputs)}, but no {output}")
        if any(isinstance(fixed, int) and fixed != n for fixed, n in zip(self.size, image.shape, strict=False)):
            height, width = image.shape[:2]
            raise ConfigError(
                f"{self.path}: was exported for images of {self.size[1]}×{self.size[0]}, not {width}×{height}"
            )
        try:
            found = np.asarray(self.session.run([output], {self.input: image[None]}, self.only_asked)[0])[0]
        except Exception as error:
            raise ConfigError(f"{self.path}: failed on an image of {image.shape}: {_line(error)}") from None
        planes = output == "logits" or self.multilabel
        expected = (len(self.classes), *image.shape[:2]) if planes else image.shape[:2]
        if found.shape != expected:
            raise ConfigError(f"{self.path}: gives {output} of {found.shape} for an image, expected {expected}")
        return found


def start_session(path: Path, threads: int = 0) -> tuple[ort.InferenceSession, ort.RunOptions]:
    """A file opened by onnxruntime, and options with which it computes nothing but what is asked for.

    Raises:
        ConfigError: not such a file, or one that would make onnxruntime open others.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    content = read_onnx(path)
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind
        raise ConfigError(f"{path}: onnxruntime refuses it: {_line(error)}") from None
    only_asked = ort.RunOptions()
    only_asked.only_execute_path_to_fetches = True  # not what leads to other outputs
    return session, only_asked


def read_onnx(path: Path) -> bytes:
    """The content of an ONNX file, once it is sure that it needs no other file and no foreign operators.

    Raises:
        ConfigError: names the first tensor or operator that is not allowed.
    """
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's and the system's
        raise ConfigError(f"{path}: is not an ONNX file ({_line(error)})") from None
    if not model.graph.node:
        raise ConfigError(f"{path}: is not an ONNX file (it holds no graph)")
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in message.external_data}.get("location")
            raise ConfigError(
                f"{path}: keeps the tensor {message.name!r} in another file ({where!r}), which is not opened; "
                f"save it as one file, with onnx.save(…, save_as_external_data=False)"
            )
        if isinstance(message, onnx.NodeProto) and message.domain not in OWN_DOMAINS:
            raise ConfigError(
                f"{path}: has the operator {message.domain}::{message.op_type}; only ONNX's own operators are run"
            )
    return content


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all those inside it, in whatever field a file may hide them."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for description, value in message.ListFields():
        if description.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def _metadata(path: Path, entries: dict[str, str]) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and colors that the file holds; the names must be there, colors are made up if they are not."""
    try:
        classes = [str(name) for name in json.loads(entries["classes"])]
        colors = json.loads(entries["palette"]) if "palette" in entries else default_palette(len(classes))
        palette = [(int(r), int(g), int(b)) for r, g, b in colors]
        known = 1 <= len(classes) <= MAX_CLASSES and len(palette) == len(classes)
        if not known or not all(0 <= value <= 255 for color in palette for value in color):
            raise ValueError(f"{len(classes)} classes, {len(palette)} colors")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its metadata lists no classes with their colors ({_line(error)})") from None
    return classes, palette


def _line(error: Exception) -> str:
    if isinstance(error, MemoryError) or sandbox.OUT_OF_MEMORY.search(str(error)):
        return "out of memory"
    return " ".join(str(error).split())[:200] or type(error).__name__
