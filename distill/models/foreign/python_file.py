"""Teachers from a Python file of the user's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.foreign.arrays import ALONE, STRIDE, Layout, normalized, probe
from distill.models.foreign.network import Found
from distill.models.foreign.source import Source
from distill.models.own import logits_of


class Called(nn.Module):
    """A module of somebody's own, whatever it wraps its output in."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The map, `[N, K, h, w]`."""
        answer = logits_of(self.module(x))
        if not isinstance(answer, Tensor) or answer.ndim not in (3, 4):
            found = f"a tensor {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ConfigError(
                f"teacher.python: {type(self.module).__name__} gives {found}; expected a map [N, K, h, w]"
            )
        return answer.unsqueeze(1) if answer.ndim == 3 else answer


def open_python(source: Source, config: TeacherConfig, classes: int, image: Tensor) -> Found:
    """Runs the file, and what its function gives.

    Raises:
        ConfigError: the file or its function fails, or gives something else than a module of maps.
    """
    module = _called(source.path, source.name.rpartition(":")[2])
    called = Called(module).eval().requires_grad_(False)
    layout = Layout(False, torch.float32, None, None)
    with torch.no_grad():
        seen = normalized(image, config.mean, config.std, config.bgr)
        found = probe(called, layout, config, classes, seen, source.name)
    names = getattr(module, "classes", None)
    return Found(
        called,
        f"{type(module).__name__} of {source.path.name}",
        found.outputs,
        found.kind,
        classes=[str(name) for name in names] if isinstance(names, (list, tuple)) else None,
        stride=config.options.get("stride", STRIDE),
        notes=[*(note for note in found.notes if note == ALONE), f"the code in {source.path} is run"],
    )


def _called(path: Path, function: str) -> nn.Module:
    """What a function in a file gives."""
    where = f"teacher.python: {path}:{function}"
    spec = importlib.util.spec_from_file_location(f"_teacher_{path.stem}", path)
    assert spec and spec.loader
    file = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = file  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # it may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(file)
        build = getattr(file, function, None)
        if not callable(build):
            raise ConfigError(f"{where}: the file has no function {function}")
        made = build()
    except ConfigError:
        raise
    except Exception as error:  # it is somebody's own code
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where}: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{where}: gives {type(made).__name__}; expected a torch.nn.Module")
    return made
