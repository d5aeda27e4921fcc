"""The first networks of the field, in the form of SMP's, whose later ones are built, saved and read the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead, SegmentationModel
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn


def _block(inside: int, outside: int, size: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class _FCNDecoder(nn.Module):
    """What FCN-8s adds up: the last map, widened by a convolution, and the maps of stride 16 and 8."""

    def __init__(self, encoder_channels: Sequence[int], channels: int, dropout: float):
        super().__init__()
        *finer, last = encoder_channels[3:]
        self.last = nn.Sequential(_block(last, channels), nn.Dropout2d(dropout))
        self.skips = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in reversed(finer))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        x: Tensor = self.last(stages[-1])
        for skip, stage in zip(self.skips, stages[-2:2:-1], strict=True):
            x = _enlarged(x, stage) + skip(stage)
        return x


class FCN(SegmentationModel):
    """A fully convolutional network with skips at stride 16 and 8, FCN-8s (Long et al. 2015, arXiv 1411.4038).

    With any encoder; BatchNorm and one 3×3 convolution in place of VGG's two layers of 4096 channels, and bilinear
    upsampling, with which the paper's deconvolutions begin.

    Args:
        encoder_name: any of SMP's encoders, or of timm's as `tu-<name>`.
        encoder_depth: stages, 3 to 5.
        encoder_weights: pretrained weights by name, or None.
        decoder_channels: channels of the maps that are added.
        dropout: share of the last map's channels that are left out in training.
        in_channels: of the images.
        classes: channels of the logits.
    """

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "resnet18",
        encoder_depth: int = 5,
        encoder_weights: str | None = None,
        decoder_channels: int = 128,
        dropout: float = 0.1,
        in_channels: int = 3,
        classes: int = 1,
        **kwargs: Any,
    ):
        super().__init__()
        if not 3 <= encoder_depth <= 5:
            raise ValueError(f"encoder_depth {encoder_depth} must be 3 to 5, which is where the skips begin")
        made = {"in_channels": in_channels, "depth": encoder_depth, "weights": encoder_weights}
        self.encoder = get_encoder(encoder_name, **made, **kwargs)
        self.decoder = _FCNDecoder(self.encoder.out_channels, decoder_channels, dropout)
        self.segmentation_head = SegmentationHead(decoder_channels, classes, kernel_size=1, upsampling=8)
        self.classification_head = None
        self.name = f"fcn-{encoder_name}"
        self.initialize()


class _PlainEncoder(nn.Module):
    """Pairs of 3×3 convolutions, with max-pooling before each but the first."""

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        self._in_channels, self.output_stride = in_channels, 2 ** len(widths[1:])
        self.out_channels = [in_channels, *widths]
        pairs = zip(self.out_channels, widths, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(_block(i, o), _block(o, o)) for i, o in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for i, stage in enumerate(self.stages):
            maps.append(stage(F.max_pool2d(maps[-1], 2) if i else x))
        return maps


class _PlainDecoder(nn.Module):
    """Upsampling by 2 and a 3×3 convolution, as often as the encoder pools; nothing is carried over."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.stages = nn.ModuleList(_block(i, o) for i, o in pairs)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        x = stages[-1]
        for stage, finer in zip(self.stages, stages[-2:0:-1], strict=True):
            x = stage(_enlarged(x, finer))
        return x


class CNN(SegmentationModel):
    """A plain convolutional network, down and up again without skips or an encoder of others.

    Args:
        widths: channels at each scale, from the images' own to the coarsest.
        in_channels: of the images.
        classes: channels of the logits.
    """

    @supports_config_loading
    def __init__(
        self, widths: Sequence[int] = (16, 32, 64, 96, 128), in_channels: int = 3, classes: int = 1, **kwargs: Any
    ):
        super().__init__()
        if unknown := kwargs.keys() - {"encoder_name", "encoder_weights"}:  # of which it has none
            raise ValueError(f"{min(unknown)!r} is not an option of cnn, which has: widths")
        if not 2 <= len(widths) <= 6 or not all(isinstance(n, int) and n > 0 for n in widths):
            raise ValueError(f"widths {list(widths)} must be two to six whole numbers above 0")
        if weights := kwargs.get("encoder_weights"):
            raise ValueError(f"encoder_weights {weights!r}: cnn has none that are pretrained; set null")
        self.encoder = _PlainEncoder(in_channels, widths)
        self.decoder = _PlainDecoder(widths)
        self.segmentation_head = SegmentationHead(widths[0], classes, kernel_size=1)
        self.classification_head = None
        self.name = "cnn"
        self.initialize()
