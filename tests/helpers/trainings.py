"""Trainings of one stage without the rest of a run."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_config

from distill import models
from distill.config.schema import Config
from distill.data import open_splits
from distill.errors import Stopped
from distill.training.context import Run
from distill.training.stage import STUDENT
from distill.training.teacher import Teacher
from distill.training.trainer import Trainer


def run_of(config: Config, stop=lambda: False) -> Run:
    torch.set_num_threads(1)
    config.folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(config.folder / "tensorboard"))
    return Run(config, accelerator, open_splits(config.data), stop)


def teacher_of(run: Run) -> Teacher:
    torch.manual_seed(7)
    return Teacher(models.build(run.config.teacher, run.splits.classes))


def digest(network: torch.nn.Module) -> str:
    state = network.state_dict()
    return hashlib.sha256(b"".join(state[k].contiguous().numpy().tobytes() for k in sorted(state))).hexdigest()


def same_bits(folder: Path, settings: dict[str, Any]) -> None:
    """Stops a student's training early and late, resumes it, and compares the weights with those of one left alone."""
    whole = Trainer(run := run_of(tiny_config(folder / "whole", **settings)), STUDENT, {}, teacher_of(run)).train()
    for stop_at in (1, 4):
        config = tiny_config(folder / f"stopped-{stop_at}", **settings)
        calls = itertools.count(1)
        run = run_of(config, stop=lambda calls=calls, stop_at=stop_at: next(calls) == stop_at)
        with pytest.raises(Stopped, match=f"stopped at step {stop_at} of 6"):
            Trainer(run, STUDENT, {}, teacher_of(run)).train()
        run = run_of(config)
        trainer = Trainer(run, STUDENT, {}, teacher_of(run))
        resumed = trainer.train()
        assert trainer.step == 6
        assert digest(resumed) == digest(whole), f"stopped at {stop_at}"
