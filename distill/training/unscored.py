"""A teacher that no labels can score, judged by what it says: how often each class, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from distill.data import Dataset, val_batches
from distill.data.datasets import first
from distill.errors import ConfigError
from distill.models.asked import Asked, probabilities_of
from distill.training.context import Run
from distill.training.distributed import from_main

IMAGES = 16
CONSTANT = 1e-3  # standard deviation of every class's probability, below which all pixels get the same answer
ONE_CLASS = 0.995  # share of pixels of one class, from which on the others are missed; of two classes, all
UNIFORM = 0.95  # of the largest entropy
SHOWN = 6


@dataclass(frozen=True)
class Said:
    """What a teacher says of some images.

    Attributes:
        images: how many.
        classes: names of the classes.
        shares: of the pixels, for which each class is the likeliest.
        entropy: of its distributions, mean over the pixels, as a share of that of the uniform one: 0 to 1.
        spread: the largest standard deviation over the pixels that a class's probability has.
        multilabel: whether classes do not exclude each other; a share is then that of the pixels that have the class.
    """

    images: int
    classes: Sequence[str]
    shares: list[float]
    entropy: float
    spread: float
    multilabel: bool = False

    def __str__(self) -> str:
        order = sorted(range(len(self.shares)), key=lambda i: -self.shares[i])
        listed = [f"{self.classes[i]} {100 * self.shares[i]:.1f} %" for i in order if self.shares[i] > 0]
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        images = f"{self.images} image{'s' * (self.images > 1)}"
        return f"says on {images}: {', '.join(listed[:SHOWN])}{more}; entropy {self.entropy:.2f} of the most possible"

    @property
    def suspicion(self) -> str | None:
        """What looks wrong, in words."""
        top = max(self.shares)
        if self.entropy > UNIFORM:
            return "its distributions are nearly uniform"
        if self.multilabel:
            return "nowhere is any class" if top == 0 else None
        if top == 1 or (len(self.shares) > 2 and top > ONE_CLASS):
            return f"nearly all is {self.classes[self.shares.index(top)]!r}"
        return None


@torch.no_grad()
def listen(network: Asked, dataset: Dataset, device: torch.device | str) -> Said:
    """What a teacher says of the first images of a data set.

    Args:
        network: the teacher, on `device`.
        dataset: images of any sizes.
        device: where the teacher is.
    """
    few, count = first(dataset, IMAGES), len(network.classes)
    votes, sums, squares = torch.zeros(3, count, dtype=torch.float64)
    entropy, pixels, network = 0.0, 0, network.eval()
    for _, batch in val_batches(few, 1, 0, 1):
        logits = network(batch.to(device).image).upsampled().float()
        p = probabilities_of(logits, network.multilabel).movedim(1, -1).flatten(0, 2)
        said = p > 0.5 if network.multilabel else F.one_hot(p.argmax(1), count)
        votes += said.sum(0).cpu()
        sums += p.sum(0, dtype=torch.float64).cpu()
        squares += p.square().sum(0, dtype=torch.float64).cpu()
        of_pixels = torch.special.xlogy(p, p).sum(dtype=torch.float64)
        if network.multilabel:  # each class is a question of its own
            of_pixels += torch.special.xlogy(1 - p, 1 - p).sum(dtype=torch.float64)
        entropy -= float(of_pixels)
        pixels += len(p)
    most = count * math.log(2) if network.multilabel else math.log(count)
    spread = float((squares / pixels - (sums / pixels).square()).clamp(min=0).sqrt().max())
    shares = (votes / pixels).tolist()
    return Said(len(few), list(network.classes), shares, entropy / pixels / most, spread, network.multilabel)


def check_unscored(run: Run, network: Asked, source: str) -> None:
    """Tells what a teacher says of a few images that have no labels, and warns of what looks wrong.

    Args:
        run: what stages share.
        network: the teacher, on the run's device.
        source: where it is from.

    Raises:
        ConfigError: it says the same of every pixel, so there is nothing to learn from it.
    """
    said = from_main(run.accelerator, lambda: listen(network, run.splits.val, run.accelerator.device))
    run.say(f"teacher  {said}")
    causes = (
        "Other normalization (teacher.mean, teacher.std, teacher.bgr)? Outputs of another kind (teacher.output)? Other "
        "classes (teacher.class_names)?"
    )
    if said.spread < CONSTANT:
        raise ConfigError(
            f"teacher ({source}): gives the same answer for every pixel of {said.images} images. {causes} "
            f"teacher.allow_near_chance true goes on with it"
        )
    if said.suspicion:
        run.say(
            f"warning: teacher ({source}): no labels can tell whether it is right, and {said.suspicion}. {causes} If "
            f"these images are like that, all is well"
        )
