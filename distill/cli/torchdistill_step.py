"""The same training step by another library, torchdistill, to be measured beside this project's.

Its distillation box is set up from a dictionary of the form of its configuration files: outputs of teacher and student
at full size, KL divergence and cross-entropy by its `KDLoss`, one optimizer step for each batch. Its segmentation
examples train in float32. What they do in the loader, normalizing and widening the masks, is done beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from distill import models
from distill.batch import UNLABELED, Batch
from distill.config.schema import Config
from distill.errors import ConfigError

IGNORED = 255


def torchdistill_step(config: Config, classes: Sequence[str], batch: Batch) -> Callable[[], object]:
    """A step of its box with the networks of the settings.

    Its teacher is put into eval mode, which the library leaves to its caller. `batchmean` divides by the images alone;
    `beta` makes up for it, so that the loss is this project's but for void pixels.

    Raises:
        ConfigError: the library is not installed, or of another version.
    """
    try:
        from torchdistill.core.distillation import get_distillation_box
    except ImportError as error:
        raise ConfigError(f"--against torchdistill: {error}; pip install torchdistill") from None
    torch.manual_seed(config.seed)
    teacher, student = (models.build(n, list(classes)).model for n in (config.teacher, config.student))
    device, pixels = batch.image.device, batch.image.shape[2] * batch.image.shape[3]
    mean, std = (
        255 * torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (config.student.mean, config.student.std)
    )
    image = (batch.image.float() - mean) / std
    target = torch.where(batch.mask < UNLABELED, batch.mask.long(), IGNORED)
    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    box = get_distillation_box(
        teacher.to(device).eval(), student.to(device), {}, settings(config, pixels), device, None, False, 1
    )
    box.pre_epoch_process(epoch=0)

    def step() -> None:
        loss = box.forward_process(image, target, None)
        box.post_forward_process(loss=loss)
        if not loss.isfinite():  # its examples log the loss of each step, and look whether it is finite
            raise FloatingPointError("torchdistill's loss is not finite")

    return step


def settings(config: Config, pixels: int) -> dict[str, object]:
    """What its configuration files say of a training with KL and cross-entropy."""
    output = {"module_path": ".", "module_io": "output"}
    kd = {
        **{f"{who}_{name}": value for who in ("student", "teacher") for name, value in output.items()},
        "temperature": config.kd.temperature,
        "alpha": 1.0,
        "beta": config.kd.weight / pixels,
        "reduction": "batchmean",
        "ignore_index": IGNORED,
    }
    network = {"forward_proc": "forward_batch_only", "sequential": [], "forward_hook": {"input": [], "output": []}}
    criterion = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
    return {
        "num_epochs": 1,
        "train_data_loader": {},
        "val_data_loader": {},
        "teacher": {**network, "requires_grad": False},
        "student": {**network, "requires_grad": True, "frozen_modules": []},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-4}, "max_grad_norm": config.optimizer.max_grad_norm},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": criterion}}},
    }
