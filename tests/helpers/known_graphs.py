"""Torch's exporter without its seconds of work, for runs whose subject it is not: a known graph with other weights."""

import fcntl
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from distill.reporting import artifacts

SMALL = ((33, 50),)
_exporter = torch.onnx.export
_prove_and_publish = artifacts.export_onnx


def export(folder: Path, module: nn.Module, images: tuple[Tensor, ...], **options: Any) -> SimpleNamespace:
    """What `torch.onnx.export` gives: the graph of the first network that was built like this one, with its weights.

    Networks built alike that have another graph would fail the proof that follows.

    Args:
        folder: where graphs are kept, for all processes.
        module: what is exported.
        images: an example.
        options: for torch.
    """
    built = f"{module} {[image.shape for image in images]} {options['opset_version']} {options['dynamic_shapes']}"
    path = folder / f"{hashlib.sha256(built.encode()).hexdigest()}.onnx"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            program = _exporter(module, images, optimize=False, **options)  # which may fold weights into one another
            onnx_ir.save(program.model, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
    model = onnx_ir.load(path)
    weights = module.state_dict()
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = onnx_ir.tensor(weights[name].numpy(), name=name)
    program = torch.onnx.ONNXProgram(model, None)
    program.optimize()
    return SimpleNamespace(model=program.model)


def quick_exports(folder: Path, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """From now on files are made of known graphs, and proven at the images' own size and a small one.

    Args:
        folder: where graphs are kept.
        put: sets attributes: that of a `MonkeyPatch`, unless it is for the whole life of this process.
    """
    put(torch.onnx, "export", functools.partial(export, folder))
    put(artifacts, "export_onnx", functools.partial(_prove_and_publish, sizes=SMALL))
