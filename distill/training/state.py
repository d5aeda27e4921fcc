"""What a training is resumed from, and what the last bits of its result depend on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import accelerate
import timm
import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class TrainState:
    """Everything that decides how a training goes on.

    Randomness is not in it: order, augmentation and dropout are functions of the seed and the step.

    Attributes:
        step: optimizer steps done.
        tensors: named groups of tensors (`model`, `ema`, `best`).
        optimizer: state dict of the optimizer (and of the gradient scaler).
        best: best validation mIoU so far and its step.
        clipped: steps whose gradients were clipped.
        changes: settings that were allowed to change on the way: `{"step": …, "settings": {name: [before, after]}}`.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    best: dict[str, float] = field(default_factory=dict)
    clipped: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the last bits of a result depend on besides the settings."""
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": accelerator.device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # ATEN_CPU_CAPABILITY, or the most there is
        "amx_bf16": amx_bf16(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL"),
        "mixed_precision": accelerator.mixed_precision,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }


def amx_bf16() -> bool | None:
    """Whether the processor has instructions (Intel's AMX) that make bf16 faster than float32; None: not known."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return capabilities.get("amx_bf16")
