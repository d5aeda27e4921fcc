"""What can be asked about images: a network, several together, or a teacher of any other kind."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from distill.batch import RGB, ImageKind


class Asked(nn.Module):
    """A module from raw images `[N, C, H, W]`, their numbers as stored, to `Outputs`.

    Attributes:
        model: what computes, inside of it.
        classes: class names in the order of their ids.
        stride: images are padded to multiples of it, below and on the right.
        image: the images.
        bands: which of their channels it takes, counted from 0; None for all.
        mean: of each that it takes, in the images' own units, `[1, C, 1, 1]`.
        std: standard deviation likewise.
        multilabel: its logits `[N, C, h, w]` are of C classes that do not exclude each other: each is z, and stands for
            the logits `[0, z]` of a pixel without and with the class.
    """

    model: Any
    classes: list[str]
    stride: int
    image: ImageKind = RGB
    bands: list[int] | None = None
    mean: Tensor
    std: Tensor
    multilabel: bool = False

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every map that it can return, and of the `logits`."""
        return {"logits": len(self.classes)}

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, by which they are known again: its weights and its input."""
        usual = self.image == RGB and self.bands is None  # of which older caches say nothing
        kind: dict[str, Any] = {} if usual else {"image": str(self.image), "bands": self.bands}
        kind |= {"multilabel": True} if self.multilabel else {}
        return kind | {
            "teacher": fingerprint(self)[:32],
            "architecture": type(self.model).__name__,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "stride": self.stride,
        }

    def decide(self, logits: Tensor) -> Tensor:
        """Class ids int64 `[N, H, W]` of logits `[N, C, H, W]`; with many labels a pixel, `[N, C, H, W]` of 0 and 1."""
        return (logits > 0).long() if self.multilabel else logits.max(1).indices

    def confidence(self, logits: Tensor) -> Tensor:
        """Probability, 0 to 1, of what `decide` says, in its shape."""
        if self.multilabel:
            return logits.abs().sigmoid()
        return (logits.amax(1) - logits.logsumexp(1)).exp().clamp(max=1)


def probabilities_of(logits: Tensor, multilabel: bool) -> Tensor:
    """Of logits `[N, C, ...]`, to be averaged: softmax over the classes, or the sigmoid of each."""
    return logits.sigmoid() if multilabel else logits.softmax(1)


def logits_from(probabilities: Tensor, multilabel: bool) -> Tensor:
    """Logits of averaged probabilities: their logarithms, or inverse sigmoids."""
    return probabilities.logit(1e-7) if multilabel else probabilities.clamp(min=1e-30).log()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's state on the CPU, each tensor with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a module's state."""
    known = hashlib.sha256()
    for name, tensor in sorted(weights(module).items()):
        known.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        known.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()
