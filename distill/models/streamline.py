"""Networks that give the same logits for less work, for the exported file: what SMP's and timm's layers allow."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from distill.models.network import Network


class _FpnLogits(nn.Module):
    """SMP's FPN decoder and the 1×1 convolution of its head, with less to upsample.

    Upsampling by 2, the sum over the pyramid's levels and a 1×1 convolution are linear, so they may change places: the
    coarser levels are added and become logits while they are small, and are upsampled once for all of them.
    """

    def __init__(self, decoder: Any, head: nn.Conv2d):
        super().__init__()
        self.decoder, self.head = decoder, head
        for branch in decoder.seg_blocks[:3]:
            branch.block[-1].upsample = False

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        decoder = self.decoder
        levels = [decoder.p5(stages[-1])]
        for merge, stage in zip((decoder.p4, decoder.p3, decoder.p2), stages[-2:-5:-1], strict=True):
            levels.append(merge(levels[-1], stage))
        *coarse, fine = (branch(level) for branch, level in zip(decoder.seg_blocks, levels, strict=True))
        small = F.conv2d(sum(coarse[1:], coarse[0]), self.head.weight)
        return self.head(fine) + F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=True)


def _with_constant_padding(same: Conv2dSame) -> nn.Sequential:
    """TensorFlow's "same" padding for maps whose sizes are multiples of its stride: it is then the same for all."""
    sizes = zip(same.kernel_size, same.stride, same.dilation, strict=True)
    rows, columns = (max(dilation * (kernel - 1) + 1 - stride, 0) for kernel, stride, dilation in sizes)
    left, top = columns // 2, rows // 2
    shape = (same.kernel_size, same.stride, 0, same.dilation, same.groups, same.bias is not None)
    convolution = nn.Conv2d(same.in_channels, same.out_channels, *shape).to(same.weight)  # type: ignore[arg-type]
    convolution.load_state_dict(same.state_dict())
    return nn.Sequential(nn.ZeroPad2d((left, columns - left, top, rows - top)), convolution)


def streamlined(network: Network) -> Network:
    """A copy that gives the same logits for less work; it has no feature maps and is not to be trained."""
    twin = copy.deepcopy(network)
    for name, layer in list(twin.model.named_modules()):
        if isinstance(layer, Conv2dSame):
            twin.model.set_submodule(name, _with_constant_padding(layer))
    if isinstance(twin.model, smp.FPN) and twin.model.decoder.merge.policy == "add":
        convolution, *rest = twin.model.segmentation_head
        twin.model.decoder = _FpnLogits(twin.model.decoder, convolution)
        twin.model.segmentation_head = nn.Sequential(nn.Identity(), *rest)
    return twin
