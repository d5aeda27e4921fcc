"""Knowledge distillation for semantic segmentation: a teacher, a student, and the loss between them.

    import distill

    results = distill.run(distill.load_config("configs/camvid_cpu.yaml", {"data.root": "/data/camvid"}))
    results = distill.distill(student=module, teacher=other, train=pairs, val=more, classes=names, output_dir="run")
    mask = distill.load("run").mask(image)

Importing this loads no torch; the first use of a name does.
"""

import os
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigError, ExportError, Stopped

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, onnxruntime reports what it runs to its maker

if TYPE_CHECKING:
    from distill import losses
    from distill.api import distill, evaluate, export, load, load_config, open_data, predict, run
    from distill.batch import Batch, Outputs, Target
    from distill.config.schema import Config

__all__ = [
    "Batch",
    "Config",
    "ConfigError",
    "ExportError",
    "Outputs",
    "Stopped",
    "Target",
    "distill",
    "evaluate",
    "export",
    "load",
    "load_config",
    "losses",
    "open_data",
    "predict",
    "run",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    if name == "losses":
        import distill.losses as losses

        return losses
    value: Any
    if name == "Config":
        from distill.config import schema

        value = schema.Config
    elif name in ("Batch", "Outputs", "Target"):
        from distill import batch

        value = getattr(batch, name)
    else:
        from distill import api

        value = getattr(api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
