"""Teachers in files that take arrays, of any layout, type and size: ONNX, and exported programs of torch."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.foreign.contract import Kind, find_kind
from distill.models.foreign.network import Found
from distill.models.foreign.source import Source

STRIDE = 32  # to which images are padded, unless teacher.options says `stride`
PROBE = (96, 128)  # of an image for a file that takes any size
ALONE = "one channel, of the foreground"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: what it is called there.
        dtype: such as `float32`.
        shape: of each axis its length, or None if it may vary.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Runner(Protocol):
    """What runs a file.

    Attributes:
        about: its `inputs` and `outputs`, each with `name`, `dtype` and `shape` (see `Port`), and its `metadata`.
    """

    about: dict[str, Any]

    def run(self, output: str, array: np.ndarray) -> np.ndarray:
        """One output for the only input."""


OpenRunner = Callable[[Path], Runner]


@dataclass
class Layout:
    """How a file takes images.

    Attributes:
        last: channels come last.
        dtype: of the images.
        size: the only height and width that it takes, or None.
        batch: the only number of images that it takes, or None.
    """

    last: bool
    dtype: torch.dtype
    size: tuple[int, int] | None
    batch: int | None

    @classmethod
    def of(cls, port: Port, name: str, channels: int = 3) -> Layout:
        """Of an input.

        Args:
            port: the input.
            name: what has it, for messages.
            channels: of the images.

        Raises:
            ConfigError: it does not take such images.
        """
        shape, dtype = port.shape, port.dtype
        told = f"{port.name} {dtype} [{', '.join('?' if n is None else str(n) for n in shape)}]"
        if len(shape) != 4 or dtype not in DTYPES:
            raise ConfigError(f"{name}: its input is {told}; expected images, uint8, float16 or float32, of four axes")
        if shape[1] != channels and shape[3] == channels:
            last = True
        elif shape[1] in (channels, None):
            last = False
        else:
            takes = shape[3] if shape[3] == 3 else shape[1]
            fix = f"name those that it takes in teacher.channels, such as {list(range(takes))}"
            if channels < takes:
                fix = "leave data.in_channels out if the images are of 8 bits, or take another teacher"
            raise ConfigError(
                f"{name}: its input is {told}, so it takes {takes} channels; it gets {channels} here: {fix}"
            )
        height, width = shape[1:3] if last else shape[2:4]
        if (height is None) != (width is None):
            raise ConfigError(f"{name}: its input is {told}; one side of the image fixed is not read here")
        size = (height, width) if height and width else None
        return cls(last, DTYPES[dtype], size, shape[0])

    def __str__(self) -> str:
        size = f"{self.size[1]}×{self.size[0]} only" if self.size else "any size"
        return f"{'NHWC' if self.last else 'NCHW'} {str(self.dtype).removeprefix('torch.')}, {size}"

    def lay(self, x: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` as the file takes them."""
        x = x.round().clamp(0, 255).to(self.dtype) if self.dtype == torch.uint8 else x.to(self.dtype)
        return (x.permute(0, 2, 3, 1) if self.last else x).contiguous()


def chosen(outputs: Sequence[Port], wanted: str = "logits") -> Port:
    """The output that says most: `logits` if there is one, else the first map of floats, else the first map."""
    maps = [port for port in outputs if len(port.shape) in (3, 4)] or list(outputs)
    floats = [port for port in maps if port.dtype.startswith("float")]
    return next((port for port in maps if port.name == wanted), (floats or maps)[0])


class Arrays(nn.Module):
    """A function on arrays as a module from images `[N, 3, H, W]` to a map `[N, K, h, w]`; copies share the function.

    Args:
        run: from an image in the file's layout to its output.
        layout: how it takes images.
        channels: how many channels to look for in its output, to tell which axis they are.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], layout: Layout, channels: int = 0):
        super().__init__()
        self.run, self.layout, self.channels = run, layout, channels

    def __deepcopy__(self, memo: dict[int, Any]) -> Arrays:
        return Arrays(self.run, self.layout, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """The output, channels first."""
        count = self.layout.batch or len(x)
        parts = []
        for part in x.split(count):
            # A file for so many images gets so many, the last of them black.
            laid = self.layout.lay(F.pad(part, (0, 0, 0, 0, 0, 0, 0, count - len(part))))
            parts.append(self.run(laid)[: len(part)])
        return self.channels_first(torch.cat(parts)).to(x.device)

    def channels_first(self, answer: Tensor) -> Tensor:
        """`[N, h, w]`, `[N, h, w, K]` or `[N, K, h, w]` as the last of these."""
        if answer.ndim == 3:
            return answer.unsqueeze(1)
        if answer.ndim != 4:
            raise ConfigError(
                f"teacher.checkpoint: gives an output of the shape {list(answer.shape)}, as a classifier does; "
                f"expected a map [images, classes, height, width]"
            )
        first, last = answer.shape[1], answer.shape[3]
        at_the_end = last < first if self.layout.last else False
        if self.channels and (first == self.channels) != (last == self.channels):
            at_the_end = last == self.channels
        return answer.permute(0, 3, 1, 2) if at_the_end else answer


@dataclass
class Probed:
    """What was found by asking once."""

    model: Arrays
    layout: Layout
    outputs: int
    kind: Kind
    notes: list[str] = field(default_factory=list)


def probe(
    run: Callable[[Tensor], Tensor], layout: Layout, config: TeacherConfig, classes: int, image: Tensor, name: str
) -> Probed:
    """Asks for one image, and tells what comes.

    Args:
        run: see `Arrays`.
        layout: how it takes images.
        config: says what its output is, if it is not to be found out.
        classes: how many classes are expected.
        image: a real one, normalized, `[1, 3, H, W]`.
        name: for messages.

    Raises:
        ConfigError: it fails.
    """
    model = Arrays(run, layout, classes)
    stride = config.options.get("stride", STRIDE)
    size = layout.size or config.window or [max(stride, n // stride * stride) for n in PROBE]
    missing = [max(0, wanted - there) for wanted, there in zip(size, image.shape[-2:], strict=True)]
    image = F.pad(image, (0, missing[1], 0, missing[0]))[..., : size[0], : size[1]]
    try:
        answer = model(image)
    except ConfigError:
        raise
    except Exception as error:  # torch's
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"teacher.checkpoint: {name}: fails on an image of {size[0]}×{size[1]}: {reason}") from error
    across, down = size[1] / answer.shape[3], size[0] / answer.shape[2]
    if not 0.5 < across / down < 2 or max(across, down) < 0.25:  # a map's cells are about square
        raise ConfigError(
            f"teacher.checkpoint: {name}: gives an output of {list(answer.shape)} for an image of {size[0]}×{size[1]}, "
            f"which is no map of it; is it a detector? Expected [images, classes, height, width]"
        )
    kind: Kind = find_kind(answer) if config.output == "auto" else config.output
    if kind == "labels" and answer.shape[1] != 1:
        raise ConfigError(f"teacher.checkpoint: {name}: gives {answer.shape[1]} channels, which are no labels")
    outputs = classes if kind == "labels" else max(2, answer.shape[1])
    alone = [ALONE] if answer.shape[1] == 1 and kind != "labels" else []
    return Probed(model, layout, outputs, kind, [str(layout), *alone])


def open_onnx(source: Source, config: TeacherConfig, classes: int, image: Tensor, runner: Runner) -> Found:
    """An ONNX file.

    Args:
        source: the file.
        config: what it does not say itself.
        classes: how many classes are expected, if it does not name them.
        image: a real one, 0 to 255, `[1, C, H, W]`.
        runner: runs the file.
    """
    inputs, outputs = (
        [Port(port["name"], port["dtype"], tuple(port["shape"])) for port in runner.about[side]]
        for side in ("inputs", "outputs")
    )
    if len(inputs) != 1:
        takes = ", ".join(port.name for port in inputs)
        raise ConfigError(f"teacher.checkpoint: {source.name} takes {takes}; expected images alone")
    channels = image.shape[1]
    layout = Layout.of(inputs[0], f"teacher.checkpoint: {source.name}", channels)
    output = chosen(outputs)
    names = _names(runner.about["metadata"])
    raw = layout.dtype == torch.uint8  # scaling and normalization are in the file
    mean, std = ([0.0] * channels, [1 / 255] * channels) if raw else (config.mean, config.std)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(runner.run(output.name, x.cpu().numpy()))

    expected = len(names or []) or classes
    found = probe(run, layout, config, expected, normalized(image, mean, std, config.bgr), source.name)
    return Found(
        found.model,
        f"ONNX {source.path.name}",
        found.outputs,
        found.kind,
        classes=names,
        mean=mean if raw else None,
        std=std if raw else None,
        said_by="the file itself" if raw else "teacher.mean, teacher.std",
        stride=config.options.get("stride", STRIDE),
        size=layout.size,
        notes=[*found.notes, f"output {output.name}"],
    )


def normalized(image: Tensor, mean: Sequence[float], std: Sequence[float], bgr: bool) -> Tensor:
    """An image in 0 to 255 as a network takes it."""
    m, s = (255 * torch.tensor(list(value)).view(1, -1, 1, 1) for value in (mean, std))
    x = (image.float() - m) / s
    return x.flip(1) if bgr else x


def _names(metadata: Mapping[str, str]) -> list[str] | None:
    """Class names: this project's and QGIS's are JSON, Ultralytics writes a Python dict."""
    for key, read in (("classes", json.loads), ("class_names", json.loads), ("names", ast.literal_eval)):
        try:
            found = read(metadata[key])
        except (KeyError, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            found = [found[key] for key in sorted(found, key=int)]
        if isinstance(found, list) and found:
            return [str(name) for name in found]
    return None
