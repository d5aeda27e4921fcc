"""The one contract that teachers of every kind are brought to: a map, and what its numbers are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distill.errors import ConfigError

Kind = Literal["logits", "probabilities", "scores", "sigmoid", "labels"]
CLAIMED = 0.5  # sum of the scores, from which on a pixel is claimed at all; a query's mask begins at one half, too
WHISPER = 5e-7  # times logits of at most 14 nats, which is less than `SILENT`
LEAST = 1e-6  # of a probability: a teacher that says 0 would make every loss infinite
ROUNDING = 2e-3  # by which probabilities in half precision miss 0, 1 and their sum


def log_probabilities(answer: Tensor, kind: Kind, classes: int, smoothing: float = 0.1) -> Tensor:
    """A teacher's map as logits, float32 `[N, classes, h, w]`.

    - `logits`: as they are. One channel z is that of a sigmoid and becomes the two logits 0 and z, background first.
    - `probabilities`: log p, at least log 1e-6. One channel p is that of the second of two classes.
    - `scores`: not negative, of any sum S, such as those of networks of queries: log(s / S), with s at least 1e-6.
      Where S is below one half, no query claims the pixel, and what is left of their scores says hardly anything of
      it: the same in so small numbers that all are the same to losses, which leave it out, while the likeliest stays
      so. The softmax of scores would be nearly uniform: with 19 classes at most 13 % for the likeliest.
    - `sigmoid`: probabilities of classes that do not exclude each other; of one channel as above, else as `scores`.
    - `labels`: class ids `[N, 1, h, w]`: 1 - smoothing for the label, the rest evenly for the others; a label that is
      no class says nothing: all the same.

    Args:
        answer: `[N, K, h, w]`.
        kind: what its numbers are.
        classes: how many classes there are.
        smoothing: see `labels`.
    """
    if kind == "labels":
        return _of_labels(answer, classes, smoothing)
    answer = answer.float()
    if answer.shape[1] == 1 and classes == 2:
        z = answer if kind == "logits" else answer.clamp(LEAST, 1 - LEAST).logit()
        return torch.cat([torch.zeros_like(z), z], 1)
    if kind == "logits":
        return answer
    claimed = answer.sum(1, keepdim=True) >= CLAIMED
    answer = answer.clamp(min=LEAST)
    if kind in ("scores", "sigmoid"):
        answer = answer / answer.sum(1, keepdim=True)
    logits = answer.log()
    return torch.where(claimed, logits, WHISPER * logits) if kind == "scores" else logits


def many_logits(answer: Tensor, kind: Kind) -> Tensor:
    """A teacher's map of classes that do not exclude each other as logits, float32 `[N, C, h, w]`, one of each sigmoid.

    Args:
        answer: `[N, C, h, w]`.
        kind: `logits` or `sigmoid`, see `check_many`.
    """
    return answer.float() if kind == "logits" else answer.float().logit(LEAST)


def check_many(kind: Kind, name: str) -> None:
    """Raises ConfigError if a map of some kind is of classes that exclude each other."""
    if kind not in ("logits", "sigmoid"):
        raise ConfigError(
            f"{name}: its outputs are {kind}, of classes that exclude each other; data.multilabel takes logits or "
            f"probabilities of each class by itself (teacher.output logits, sigmoid)"
        )


def _of_labels(answer: Tensor, classes: int, smoothing: float) -> Tensor:
    labels = answer.long()
    known = (labels >= 0) & (labels < classes)
    others = max(smoothing, LEAST) / max(classes - 1, 1)
    shape = (len(labels), classes, *labels.shape[2:])
    p = torch.full(shape, others, device=labels.device).scatter_(1, labels.clamp(0, classes - 1), 1 - smoothing)
    return torch.where(known, p, 1 / classes).log()


def find_kind(answer: Tensor) -> Kind:
    """What the numbers of a map `[N, K, h, w]` are, from an answer for a real image."""
    if not answer.is_floating_point():
        return "labels"
    answer = answer.float()
    if answer.min() < -ROUNDING or answer.max() > 1 + ROUNDING:
        return "logits"
    if answer.shape[1] == 1:
        return "sigmoid"
    sums = answer.sum(1)
    return "probabilities" if (sums - 1).abs().max() < 5 * ROUNDING else "sigmoid"


def check_kind(answer: Tensor, kind: Kind, name: str) -> None:
    """Raises ConfigError if a map holds numbers that its kind cannot have."""
    if kind in ("logits", "labels"):
        return
    low, high = float(answer.min()), float(answer.max())
    if low < -ROUNDING or (high > 1 + ROUNDING and kind != "scores"):
        raise ConfigError(
            f"{name}: its outputs go from {low:.3g} to {high:.3g}, which are no {kind}; set teacher.output (logits?)"
        )
