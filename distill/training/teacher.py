"""What answers "what does the teacher say of this batch": a frozen network, or what it said when it was asked before.

It stands outside everything that is trained: `.train()` cannot reach its BatchNorm, DDP does not wrap it, and no
checkpoint carries it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.batch import Batch, Outputs
from distill.data import CachedTargets
from distill.errors import ConfigError
from distill.metrics import Scores
from distill.models.asked import Asked

# Skill. On the drawn scenes networks had -0.01 to 0.02 after a step or two, 0.02 to 0.07 after six, 0.04 and more
# after ten; with their classes in another order -0.01 to 0.04, 0.005 in the middle.
NEAR_CHANCE = 0.015


class Teacher:
    """A frozen network in eval mode.

    Args:
        network: the network.
        dtype: half precision to run it in, or None.
        asked: who answers, if it is not the network alone.
    """

    targets: CachedTargets | None = None

    def __init__(self, network: Asked, dtype: torch.dtype | None = None, asked: Asked | None = None):
        self.network = network.eval().requires_grad_(False)
        self.asked = asked.eval().requires_grad_(False) if asked else network
        self.dtype = dtype

    @torch.no_grad()  # not inference_mode: feature terms could not save such tensors for their backward pass
    def __call__(self, batch: Batch, features: Sequence[str] = ()) -> Outputs:
        """The teacher's outputs for a batch, with the named feature maps.

        Raises:
            FloatingPointError: they are not finite; names the images.
        """
        with torch.autocast(batch.image.device.type, self.dtype, enabled=self.dtype is not None):
            outputs: Outputs = self.asked(batch.image, features)
        if not outputs.logits.isfinite().all():
            raise FloatingPointError(f"the teacher's logits are not finite on {', '.join(batch.names)}")
        return outputs


class CachedTeacher:
    """A frozen network that was asked before, and whose answers come with the images.

    Args:
        network: the network; asked for nothing more but its scores.
        targets: its answers for the images that are learned from.
    """

    def __init__(self, network: Asked, targets: CachedTargets):
        self.network = network.eval().requires_grad_(False)
        self.targets = targets

    def __call__(self, batch: Batch, features: Sequence[str] = ()) -> Outputs:
        """The teacher's outputs for a batch; it has no feature maps."""
        assert batch.teacher is not None and not features
        return self.targets.outputs(batch.teacher, (batch.image.shape[2], batch.image.shape[3]))


def check_teacher(scores: Scores, source: str, cause: object = None) -> None:
    """Stops before a useless teacher is distilled; with one class in the validation masks nobody can tell.

    Args:
        scores: the teacher's.
        source: where it is from.
        cause: what repairs it, in words, if that is known.

    Raises:
        ConfigError: its classes are met hardly better than by chance.
    """
    if scores.present > 1 and scores.skill < NEAR_CHANCE:
        usual = (
            "Other class order (data.classes)? Other normalization (teacher.mean, teacher.std)? Trained too briefly "
            "(teacher.max_train_steps)?"
        )
        raise ConfigError(
            f"teacher ({source}): mIoU {scores.mean_iou:.4f} on the validation images is near chance (skill "
            f"{scores.skill:.4f}; blind guesses of the same classes have 0, a perfect teacher 1). "
            f"{f'But {cause}.' if cause else usual} teacher.allow_near_chance true goes on with it"
        )
