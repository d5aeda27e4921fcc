"""Quantization-aware training: a network learns while its convolutions see the numbers that 8 bits leave of them.

The forward pass rounds, the gradient passes through unchanged where nothing was clipped (Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv 1712.05877). What is rounded is what
`deployment.int8` rounds: all weights, a scale a channel, which folding a BatchNorm into them does not change; and the
inputs of the layers that compute in 8 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distill.deployment.qdq import MIN_TERMS

MOMENTUM = 0.1
INPUT = "rounded_input"


class FakeQuantWeight(nn.Module):
    """Weights as signed 8-bit numbers give them, a scale a channel of the output."""

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Of weights of any shape, the same shape."""
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        scale = (weight.detach().abs().amax(others) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, self.axis, -127, 127)


class RoundedInput(nn.Module):
    """A map as unsigned 8-bit numbers give it; the range follows what it saw in training."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of a map of any shape, the same shape."""
        if self.training:
            low, high = (bound.float() for bound in x.detach().aminmax())
            share = MOMENTUM if self.high > self.low else 1.0
            self.low.lerp_(low.clamp(max=0), share)
            self.high.lerp_(high.clamp(min=0), share)
        scale = ((self.high - self.low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-self.low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)


def insert_fake_quant(network: nn.Module) -> None:
    """Has the convolutions of a network round, in place; `remove_fake_quant` undoes it."""
    for layer in list(network.modules()):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if layer.weight[0].numel() >= MIN_TERMS and isinstance(layer, nn.Conv2d):
            layer.add_module(INPUT, RoundedInput().to(layer.weight.device))
            layer.register_forward_pre_hook(_round_input)
        parametrize.register_parametrization(
            layer, "weight", FakeQuantWeight(int(isinstance(layer, nn.ConvTranspose2d)))
        )


def remove_fake_quant(network: nn.Module) -> None:
    """Undoes `insert_fake_quant`, and keeps the weights that were learned; other networks are left alone."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        if hasattr(layer, INPUT):
            delattr(layer, INPUT)
            hooks: dict[int, Any] = layer._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _round_input]:
                del hooks[key]


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (getattr(layer, INPUT)(inputs[0]), *inputs[1:])
