"""Small things that many tests need: a tiny data set on disk, tiny settings, a way to start the script."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config.parse import parse
from distill.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "data.synthetic_train": 8,
    "data.synthetic_val": 3,
    "data.synthetic_size": [64, 96],
    "data.crop_size": [64, 64],
    "teacher.encoder_name": "tu-test_resnet",
    "student.encoder_name": "tu-test_resnet",
    "student.options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "teacher.max_train_steps": 6,
    "student.max_train_steps": 6,
    "per_device_train_batch_size": 2,
    "eval_steps": 3,
    "checkpointing_steps": 2,
    "logging_steps": 1,
    "num_threads": 1,
}

torch.set_num_threads(1)


def flags(settings: dict) -> list[str]:
    """Settings as command line flags."""
    return [f"--{key}={value}" for key, value in settings.items()]


def tiny_config(folder: Path, **settings) -> Config:
    """A run of seconds; names with `__` for dots."""
    wanted = TINY | {"output_dir": str(folder)} | {k.replace("__", "."): v for k, v in settings.items()}
    return parse(flags(wanted))


def start_script(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), **settings
) -> subprocess.CompletedProcess:
    """Runs scripts/distill.py from a folder that is not the repository's."""
    wanted = TINY | {"output_dir": str(folder)} | {k.replace("__", "."): v for k, v in settings.items()}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "distill.py"), *flags(wanted), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Six images in SegNet's layout: four to train, two to validate, classes 0 to 10 and void 11."""
    generator = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for split, count in (("train", 4), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            mask = generator.integers(0, 12, (40, 56), dtype=np.uint8)
            Image.fromarray(image).save(root / split / f"{split}_{i}.jpg")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{split}_{i}.png")
    return root
