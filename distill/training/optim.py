"""The optimizer and its learning rate, which is a function of the step: there is no state to lose."""

from __future__ import annotations

import torch
from torch import nn

from distill.config.schema import OptimizerConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; biases and norms do not decay."""
    # As timm's param_groups_weight_decay, which has the groups the other way round: saved states hold them like this.
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True) if config.name == "adamw" else torch.optim.SGD(groups, momentum=0.9)


def schedule(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the learning rate at a step: linear warm-up times (1 - step / steps) ^ power."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return float(warmup * (1 - step / steps) ** config.power)
