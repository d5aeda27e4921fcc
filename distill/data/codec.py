"""How a teacher's logits are kept: a few bytes per cell of its map, which change its distribution by less than 1e-4.

Only differences of logits matter to a softmax, at any temperature, and interpolation keeps it so. So what is stored is
how far each class lies below the likeliest of its cell: finely near the top, where the mass is, coarsely below. A
sigmoid's logit is itself such a difference, to 0: finely near that, and coarsely far off on either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

CacheDtype = Literal["int8", "float16"]

DENSE = 40  # classes up to which all are kept; above, the likeliest and the mean of the others
KEPT = 20
FINEST, RANGE = 0.02, 40.0  # nats: the step at the top, and the distance from which on all is the same
_CURVE = (RANGE - 255 * FINEST) / 255**2
BELOW = (-(FINEST * np.arange(256) + _CURVE * np.arange(256) ** 2)).astype(np.float32)
"""What each byte stands for: nats below the likeliest class, with steps that grow from 0.02 to 0.29."""

_SIDE = np.arange(-127, 128)
_SIDE_CURVE = (RANGE - 127 * FINEST) / 127**2
BESIDE = (np.sign(_SIDE) * (FINEST * np.abs(_SIDE) + _SIDE_CURVE * _SIDE**2)).astype(np.float32)
"""What each byte stands for where classes do not exclude each other: a logit, with steps from 0.02 to 0.61."""


@dataclass(frozen=True)
class Codec:
    """Logits `[h, w, C]` to bytes `[h, w, B]` and back.

    Attributes:
        classes: C.
        dtype: `int8` keeps a byte a class, or the 20 likeliest of more than 40 classes and the mean probability of the
            others; `float16` keeps two bytes of every class.
        multilabel: classes do not exclude each other, and each logit is kept by itself.
    """

    classes: int
    dtype: CacheDtype = "int8"
    multilabel: bool = False

    @property
    def sparse(self) -> bool:
        """Whether only the likeliest classes are kept one by one."""
        return self.dtype == "int8" and self.classes > DENSE and not self.multilabel

    @property
    def width(self) -> int:
        """B, the bytes of a cell."""
        if self.dtype == "float16":
            return 2 * self.classes
        return 2 * KEPT + 1 if self.sparse else self.classes

    def encode(self, logits: np.ndarray) -> np.ndarray:
        """Bytes uint8 `[h, w, B]` of float logits (or log-probabilities) `[h, w, C]`."""
        below = logits if self.multilabel else logits - logits.max(-1, keepdims=True)
        if self.dtype == "float16":
            return np.ascontiguousarray(below.clip(-6e4, 6e4)).astype("<f2").view(np.uint8)
        if self.multilabel:
            places = _places(np.abs(below), _SIDE_CURVE).clip(0, 127) * np.sign(below)
            return (places + 127).astype(np.uint8)
        if not self.sparse:
            return _to_bytes(below)
        order = np.argsort(-below, axis=-1, kind="stable")
        ordered = np.take_along_axis(below, order, -1)
        others = ordered[..., KEPT:].astype(np.float64)
        mean = np.log(np.exp(others).mean(-1, keepdims=True).clip(1e-300))
        kept = order[..., :KEPT].astype(np.uint8)
        return np.concatenate([kept, _to_bytes(ordered[..., :KEPT]), _to_bytes(mean)], -1)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Float32 logits `[..., C]` of bytes `[..., B]`; unless `multilabel`, the largest is 0."""
        if self.dtype == "float16":
            return np.ascontiguousarray(stored).view("<f2").astype(np.float32)
        if self.multilabel:
            return BESIDE[stored.clip(0, 254)]
        if not self.sparse:
            return BELOW[stored]
        logits = np.repeat(BELOW[stored[..., -1:]], self.classes, -1)
        np.put_along_axis(logits, stored[..., :KEPT].astype(np.int64), BELOW[stored[..., KEPT:-1]], -1)
        return logits


def _to_bytes(below: np.ndarray) -> np.ndarray:
    """The bytes that stand nearest to distances below the likeliest class, which are at most 0."""
    return _places(-below, _CURVE).clip(0, 255).astype(np.uint8)


def _places(distances: np.ndarray, curve: float) -> np.ndarray:
    """The step n, a whole number, for which `FINEST` n + `curve` n² is nearest to a distance of at least 0."""
    roots = np.sqrt(FINEST**2 + 4 * curve * distances.astype(np.float64))
    return ((roots - FINEST) / (2 * curve)).round()
