"""Why a teacher is of no use: what is usually wrong is tried on a few images, and what repairs it is named.

Wrong are, most often, the numbers of the classes (shifted by one, or in another order) and the input (channels the
other way round, not scaled, normalized otherwise). The first is seen in the confusion matrix; for the second the
teacher is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from distill.batch import Outputs
from distill.data.datasets import first
from distill.metrics import Scores
from distill.models.asked import Asked
from distill.training.context import Run

LOW, MIDDLING = 0.2, 0.5  # skill below which the causes are looked for: of networks made here, and of foreign ones
GAIN = 0.1  # of skill, below which nothing counts as a repair
IMAGES = 16
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
INPUTS = {
    "ImageNet's normalization": IMAGENET,
    "images in -1 to 1": ([0.5] * 3, [0.5] * 3),
    "images in 0 to 1": ([0.0] * 3, [1.0] * 3),
    "images in 0 to 255": ([0.0] * 3, [1 / 255] * 3),
    "images in 0 to 255 less ImageNet's mean": (IMAGENET[0], [1 / 255] * 3),
}
AS_IT_IS = "its input as it is"


@dataclass(frozen=True)
class Repair:
    """What would make a teacher better.

    Attributes:
        skill: see `Scores.skill`, on the images that were looked at.
        changes: what was changed, in words.
    """

    skill: float
    changes: tuple[str, ...]

    def __str__(self) -> str:
        return f"it has skill {self.skill:.2f} with {' and '.join(self.changes)}"


class Otherwise(Asked):
    """A network that gets images as another one would.

    Args:
        network: the network.
        normalization: mean and standard deviation of RGB images in 0 to 1, in place of its own; None keeps these.
        swapped: as BGR.
    """

    def __init__(self, network: Asked, normalization: tuple[Sequence[float], Sequence[float]] | None, swapped: bool):
        super().__init__()
        self.network, self.normalization, self.swapped = network, normalization, swapped
        self.classes, self.multilabel = network.classes, network.multilabel

    def forward(self, image: Tensor, features: Sequence[str] = ()) -> Outputs:
        """See `Network.forward`."""
        x = image.flip(1) if self.swapped else image
        if self.normalization:
            mean, std = (
                255 * torch.tensor(list(value), device=image.device).view(1, 3, 1, 1) for value in self.normalization
            )
            x = (x.float() - mean) / std * self.network.std + self.network.mean  # which the network undoes
        outputs: Outputs = self.network(x, features)
        return replace(outputs, logits=outputs.logits.nan_to_num())  # what it was never meant to see may overflow


def likely_cause(run: Run, network: Asked, skill: float) -> Repair | None:
    """The best of the usual repairs, if one helps; asks the network about 16 times for each of a few images.

    Args:
        run: what stages share.
        network: the teacher.
        skill: that it has.
    """
    ways: dict[str, Asked] = {}
    for (name, normalization), swapped in product({AS_IT_IS: None, **INPUTS}.items(), (False, True)):
        ways[name + (" and BGR" if swapped else "")] = Otherwise(network, normalization, swapped)
    few = replace(run, splits=replace(run.splits, val=first(run.splits.val, IMAGES)), remembered={})
    found: list[Repair] = []
    called = run.config.teacher.class_names or ()
    for name, scores in few.evaluate(ways, "looking for the cause").scores.items():
        changed = (_told(name),) if name != AS_IT_IS else ()
        repairs = [Repair(scores.skill, changed)] if changed else []
        repairs += [Repair(s, (*changed, told)) for s, told in of_classes(scores, network.classes, called)]
        found += repairs
    # Of repairs that are nearly as good as the best, the one that changes least.
    best = max(repair.skill for repair in found)
    simplest = min((r for r in found if r.skill > 0.9 * best), key=lambda r: (len(r.changes), -r.skill), default=None)
    if simplest is None or simplest.skill <= max(skill, 0) + GAIN:
        return None
    return replace(simplest, changes=(*simplest.changes, *_out_of_reach(run, network, simplest)))


def renumbered(scores: Scores, classes: Sequence[str], called: Sequence[str] = ()) -> Repair | None:
    """What its confusion matrix alone says of a teacher: other class ids with which it would be far better.

    Args:
        scores: the teacher's.
        classes: the data's.
        called: `teacher.class_names` as they are set.
    """
    repairs = [Repair(skill, (told,)) for skill, told in of_classes(scores, classes, called)]
    best = max(repairs, key=lambda repair: repair.skill, default=None)
    return best if best and best.skill > max(scores.skill, 0) + GAIN else None


def _out_of_reach(run: Run, network: Asked, repair: Repair) -> list[str]:
    """What to do where the settings do not reach: SMP's networks take RGB, and some teachers say their mean and std."""
    told, settings = " ".join(repair.changes), run.config.teacher
    said = (network.mean.flatten().cpu() / 255 - torch.tensor(settings.mean)).abs().max() > 1e-4
    found = ["a correction of the file that says its mean and std"] if "teacher.mean" in told and said else []
    if "teacher.bgr" in told and (run.foreign is None or run.foreign.copied):
        found.append("a module around it that swaps them, handed over or by teacher.python, for SMP's take RGB")
    return found


def of_classes(scores: Scores, classes: Sequence[str], called: Sequence[str] = ()) -> list[tuple[float, str]]:
    """Skill with the classes renumbered: by one up or down, and in the order that fits the confusion matrix best.

    Args:
        scores: the teacher's.
        classes: the data's.
        called: `teacher.class_names` as they are set; the data's if they are not.
    """
    matrix, found = scores.matrix, []

    def instead(names: Sequence[str]) -> str:
        truly = dict(zip(classes, names, strict=True))
        return f"(teacher.class_names {_list([truly.get(name, name) for name in called or classes])})"

    if matrix.ndim == 3:  # of classes that do not exclude each other it does not say which one is taken for which
        return []
    for shift, word in ((1, "up"), (-1, "down")):
        skill = Scores(torch.roll(matrix, shift, 1)).skill
        names = [classes[(i + shift) % len(classes)] for i in range(len(classes))]
        found.append((skill, f"its class ids shifted {word} by one {instead(names)}"))
    order = best_order(scores)
    if order != list(range(len(classes))):
        moved = torch.zeros_like(matrix)
        moved[:, order] = matrix
        # The best of so many orders fits chance, too.
        skill = 0.8 * Scores(moved).skill
        names = [classes[i] for i in order]
        found.append((skill, f"its classes in another order {instead(names)}"))
    return found


def best_order(scores: Scores) -> list[int]:
    """For each predicted class the true one that it fits best, one to one: the largest overlaps first."""
    matrix = scores.matrix.double()
    union = matrix.sum(1, keepdim=True) + matrix.sum(0, keepdim=True) - matrix
    overlap = matrix / union.clamp(min=1)
    order = [-1] * len(matrix)
    for _ in order:
        truth, predicted = divmod(int(overlap.argmax()), len(matrix))
        order[predicted] = truth
        overlap[truth], overlap[:, predicted] = -1, -1
    return order


def _told(name: str) -> str:
    base, _, swapped = name.partition(" and BGR")
    if base == AS_IT_IS:
        return "its channels as BGR (teacher.bgr true)"
    mean, std = (_list([f"{n:.4g}" for n in value]) for value in INPUTS[base])
    return f"{base}{', as BGR' if swapped else ''} (teacher.mean {mean}, teacher.std {std}" + (
        ", teacher.bgr true)" if swapped else ")"
    )


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(values)}]"
