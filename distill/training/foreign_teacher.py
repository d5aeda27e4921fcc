"""Opens the teacher that the settings name, whatever it is, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config.networks import TeacherConfig
from distill.data import Splits
from distill.deployment.any_onnx import AnyOnnx, AnyOnnxProcess
from distill.models.foreign import Opened, open_teacher
from distill.models.foreign.arrays import Runner
from distill.storage import sha256


def open_foreign(config: TeacherConfig, splits: Splits) -> Opened | None:
    """The teacher, on the CPU; None for a run or a folder of SMP's with the data's classes, which is read later.

    Args:
        config: the settings.
        splits: the data: its classes, and an image to find out with what the teacher gives.

    Raises:
        ConfigError: it cannot be opened, or its classes are others.
    """

    def open_runner(path: Path) -> Runner:
        threads = torch.get_num_threads()
        return AnyOnnx(path, threads) if config.trusted else AnyOnnxProcess(path, threads)

    picture = splits.val.read(0)[0]
    picture = picture.copy() if splits.image.dtype == "uint8" else picture.astype("float32")
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return open_teacher(config, splits.classes, image, open_runner, sha256, splits.image)
