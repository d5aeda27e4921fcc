"""What the tests of the losses share: small random scenes, and the formulas again, naively, in numpy loops.

The references know nothing of batches, autograd or stability: one pixel after the other, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from distill.batch import UNLABELED, VOID, Outputs, Target

LAYER_CHANNELS = {"encoder.3": 4, "encoder.4": 3, "encoder.5": 5, "decoder": 4}


def scene(
    seed: int = 0,
    *,
    images: int = 2,
    classes: int = 4,
    size: tuple[int, int] = (5, 7),
    teacher_channels: int = 0,
    scale: float = 2.0,
    void: float = 0.2,
    unlabeled: float = 0.1,
) -> tuple[Outputs, Outputs, Tensor]:
    """Outputs of a student and a teacher, with maps as large as the images, and a mask; float64.

    `teacher_channels` are the channels that the teacher's features have more than the student's.
    """
    random = torch.Generator().manual_seed(seed)

    def network(more: int) -> Outputs:
        logits = scale * torch.randn(images, classes, *size, generator=random, dtype=torch.float64)
        features = {
            name: torch.randn(images, channels + more, *size, generator=random, dtype=torch.float64)
            for name, channels in LAYER_CHANNELS.items()
        }
        return Outputs(logits, size, size, features=features)

    mask = torch.randint(0, classes, (images, *size), generator=random).byte()
    draw = torch.rand(images, *size, generator=random)
    mask[draw < void + unlabeled] = UNLABELED
    mask[draw < void] = VOID
    return network(0), network(teacher_channels), mask


def channels_of(outputs: Outputs) -> dict[str, int]:
    """What `build` takes."""
    return {name: x.shape[1] for name, x in outputs.features.items()} | {"logits": outputs.logits.shape[1]}


def select(outputs: Outputs, images: slice) -> Outputs:
    """Some of the images."""
    features = {name: x[images] for name, x in outputs.features.items()}
    return Outputs(outputs.logits[images], outputs.size, outputs.padded_size, outputs.align_corners, features)


def change(outputs: Outputs, function) -> Outputs:  # type: ignore[no-untyped-def]
    """All maps changed by a function."""
    features = {name: function(x) for name, x in outputs.features.items()}
    return Outputs(function(outputs.logits), outputs.size, outputs.padded_size, outputs.align_corners, features)


def leaves(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """The same outputs as leaves that gather gradients, and those leaves."""
    fresh = change(outputs, lambda x: x.detach().clone().requires_grad_())
    return fresh, [fresh.logits, *fresh.features.values()]


def gradients_of(value: Tensor, inputs: list[Tensor]) -> Tensor:
    """All gradients as one vector; 0 for what the value does not depend on."""
    grads = torch.autograd.grad(value, inputs, allow_unused=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for x, g in zip(inputs, grads, strict=True)])


def relative(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def counted(mask: Tensor, *, labeled: bool = False) -> Iterator[tuple[int, int, int]]:
    """The pixels (n, y, x) that count."""
    limit = UNLABELED if labeled else VOID
    for n, y, x in product(*map(range, mask.shape)):
        if mask[n, y, x] < limit:
            yield n, y, x


def softmax(x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Along a vector."""
    powers = np.exp((x - x.max()) / temperature)
    return powers / powers.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Σ p log(p/q) of two vectors."""
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def mean_over_pixels(student: Outputs, teacher: Outputs | None, mask: Tensor, function, labeled: bool = False):  # type: ignore[no-untyped-def]
    """The mean of function(student's logits, teacher's, label) over the pixels that count."""
    values = []
    for n, y, x in counted(mask, labeled=labeled):
        theirs = None if teacher is None else teacher.logits[n, :, y, x].numpy()
        values.append(function(student.logits[n, :, y, x].numpy(), theirs, int(mask[n, y, x])))
    return np.mean(values)


def shares(mask: Tensor, parts: int, processes: int) -> list[Target]:
    """The targets of a step split into equal parts, some of them micro-batches of each process."""
    step = Target.of(mask)
    micro_batches = parts // processes
    labeled, valid = step.labeled_count.double() / processes, step.valid_count.double() / processes
    return [Target(part, labeled, valid, micro_batches) for part in mask.chunk(parts)]
