"""Teachers as exported programs of torch, `.pt2`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.foreign.arrays import DTYPES, STRIDE, Layout, Port, normalized, probe
from distill.models.foreign.network import Found
from distill.models.foreign.source import Source
from distill.models.own import logits_of


def open_exported(source: Source, config: TeacherConfig, classes: int, image: Tensor) -> Found:
    """An exported program; it stays on the device that it was exported on.

    Raises:
        ConfigError: it is not trusted: such a file may hold pickles, which can run any code; or it cannot be read.
    """
    if not config.trusted:
        raise ConfigError(
            f"teacher.checkpoint: {source.name}: an exported program can run any code when it is read; set "
            f"teacher.trusted true if you trust where it is from"
        )
    try:
        program = torch.export.load(source.path)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"teacher.checkpoint: {source.name} is no exported program ({reason})") from error
    channels = image.shape[1]
    layout = Layout.of(_input(program, source), f"teacher.checkpoint: {source.name}", channels)
    module = program.module()
    device = next((tensor.device for tensor in program.state_dict.values()), torch.device("cpu"))

    def run(x: Tensor) -> Tensor:
        answer: Tensor = logits_of(module(x.to(device)))
        return answer

    raw = layout.dtype == torch.uint8
    mean, std = ([0.0] * channels, [1 / 255] * channels) if raw else (config.mean, config.std)
    found = probe(run, layout, config, classes, normalized(image, mean, std, config.bgr), source.name)
    return Found(
        found.model,
        f"exported program {source.path.name}",
        found.outputs,
        found.kind,
        mean=mean if raw else None,
        std=std if raw else None,
        said_by="the file itself" if raw else "teacher.mean, teacher.std",
        stride=config.options.get("stride", STRIDE),
        size=layout.size,
        notes=found.notes,
    )


def _input(program: Any, source: Source) -> Port:
    """Its only input."""
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ConfigError(f"teacher.checkpoint: {source.name} takes {len(values)} inputs; expected images alone")
    dtype = next((name for name, known in DTYPES.items() if known == values[0].dtype), str(values[0].dtype))
    shape = tuple(int(n) if isinstance(n, int) else None for n in values[0].shape)
    return Port(str(names[0]), dtype, shape)
