"""What a training step costs: written out in plain PyTorch, with the teacher asked at every step, once, and without it.

All contenders take one step in turn, on the same images; medians, and ratios to the student's own supervised step.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import models
from distill.batch import UNLABELED, VOID, Batch
from distill.cli.torchdistill_step import torchdistill_step
from distill.config.parse import read_flags
from distill.config.schema import Config
from distill.data import CachedTargets, Dataset, val_batches
from distill.errors import ConfigError
from distill.pipeline import opened
from distill.storage import write_json
from distill.training.context import Run
from distill.training.stage import BASELINE, STUDENT
from distill.training.teacher import CachedTeacher, Teacher
from distill.training.teacher_answers import ask
from distill.training.trainer import Trainer

# The pair of configs/camvid_cpu.yaml, on drawn scenes.
PAIR = {
    "data.format": "synthetic",
    "data.synthetic_train": 32,
    "data.synthetic_val": 8,
    "data.synthetic_size": [360, 480],
    "data.crop_size": [192, 256],
    "teacher.encoder_name": "resnet34",
    "student.options": {"decoder_pyramid_channels": 96, "decoder_segmentation_channels": 64},
    "student.max_train_steps": 100_000,
    "kd.weight": 4,
    "mixed_precision": "bf16",
    "per_device_train_batch_size": 8,
    "logging_steps": 1_000_000,
}
PLAIN, ONCE = "plain PyTorch, float32", "asked once"
Step = Callable[[], object]


@contextmanager
def run_of(flags: list[str]) -> Iterator[Run]:
    """A run in a folder of its own unless one is given, whose networks have the weights they are built with."""
    with TemporaryDirectory() as folder:
        pair = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in PAIR.items()]
        config = read_flags([*pair, f"--output_dir={folder}", *flags])
        with opened(config) as run:
            yield run


def plain_step(config: Config, classes: list[str], batch: Batch) -> Step:
    """The loop as it is usually written: float32, full-size logits, KL by `kl_div`.

    Where a pixel has any number of classes, both terms are binary cross-entropies of each class.
    """
    torch.manual_seed(config.seed)
    teacher, student = (models.build(n, classes).model for n in (config.teacher, config.student))
    teacher, student = teacher.to(batch.image.device).eval(), student.to(batch.image.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    mean, std = (
        255 * torch.tensor(x, device=batch.image.device).view(1, 3, 1, 1)
        for x in (config.student.mean, config.student.std)
    )
    many, temperature = config.data.multilabel, config.kd.temperature
    labels = batch.mask.float() if many else torch.where(batch.mask < UNLABELED, batch.mask.long(), -100)
    known, valid = batch.mask < UNLABELED, batch.mask != VOID
    binary = partial(F.binary_cross_entropy_with_logits, reduction="none")

    def step() -> None:
        image = (batch.image.float() - mean) / std
        with torch.no_grad():
            theirs = teacher(image)
        ours = student(image)
        if many:
            loss = (binary(ours, labels) * known).sum() / known.sum()
            kl = binary(ours / temperature, (theirs / temperature).sigmoid())
        else:
            ours, theirs = of_both(ours), of_both(theirs)
            loss = F.cross_entropy(ours, labels, ignore_index=-100)
            soft = F.softmax(theirs / temperature, 1)
            kl = F.kl_div(F.log_softmax(ours / temperature, 1), soft, reduction="none").sum(1)
        loss = loss + config.kd.weight * temperature**2 * (kl * valid).sum() / valid.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.optimizer.max_grad_norm or 1e9)
        optimizer.step()
        optimizer.zero_grad()

    return step


def of_both(logits: Tensor) -> Tensor:
    """Logits of two classes `[N, 2, H, W]` where one channel tells them apart; others as they are."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def trainer_step(run: Run, batch: Batch, teacher: Teacher | CachedTeacher | None, **changes: Any) -> Step:
    """A step of this project's loop, with all that it does in one."""
    trainer = Trainer(
        replace(run, config=replace(run.config, **changes)), STUDENT if teacher else BASELINE, {}, teacher
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-4
    return lambda: trainer.train_step(0, [batch])


def timed(steps: Mapping[str, Step], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step, in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeat + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return times


def targets_of(run: Run) -> tuple[models.Network, CachedTargets]:
    """A teacher with the weights it is built with, and its answers."""
    teacher = models.build(run.config.teacher, run.splits.classes).to(run.accelerator.device).eval()
    return teacher, ask(run, teacher)


def of_classes(dataset: Dataset, classes: int) -> Dataset:
    """The same images; labels beyond the classes are the last of them."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = dataset.read(index)
        return image, np.where(mask < UNLABELED, np.minimum(mask, np.uint8(classes - 1)), mask)

    return replace(dataset, read=read)


def step(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Medians of all contenders, and their ratios."""
    with run_of(flags) as run:
        if args.classes and run.splits.multilabel:
            raise ConfigError("--classes: with data.multilabel the classes are the planes of the masks; leave it out")
        if args.classes:  # for networks that tell so many apart; the scenes show ten at most
            names = [f"class {i}" for i in range(args.classes)]
            train, palette = of_classes(run.splits.train, len(names)), [(0, 0, 0)] * len(names)
            run = replace(run, splits=replace(run.splits, train=train, classes=names, palette=palette))
        device, (teacher, targets) = run.accelerator.device, targets_of(run)
        batch = next(run.train_batches(0, unlabeled=False, targets=targets)).to(device)
        online = Teacher(teacher, run.precision)
        steps: dict[str, Step] = {
            PLAIN: plain_step(run.config, run.splits.classes, batch),
            "asked at every step": trainer_step(run, batch, online),
            ONCE: trainer_step(run, batch, CachedTeacher(teacher, targets)),
            "labels alone": trainer_step(run, batch, None),
            "the teacher's forward pass": lambda: online(batch),
        }
        if args.compile:
            steps["asked once, loss compiled"] = trainer_step(
                run, batch, CachedTeacher(teacher, targets), compile_loss=True
            )
        if args.against:
            steps[args.against] = torchdistill_step(run.config, run.splits.classes, batch)
        times = timed(steps, args.repeat, device)
        shape = [*batch.image.shape[:1], len(run.splits.classes), *batch.image.shape[2:]]
    median = {name: statistics.median(values) for name, values in times.items()}
    floor = median["labels alone"]
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; {'×'.join(map(str, shape))}")
    for name, value in median.items():
        ratios = f"{value / floor:5.2f} × labels alone  {median[PLAIN] / value:5.2f} × as fast as plain"
        print(f"  {name:30} {1e3 * value:8.1f} ms  {ratios}")
    if args.against:
        print(f"  asked once is {median[args.against] / median[ONCE]:.2f} × as fast as {args.against}")
    return {"shape": shape, "threads": torch.get_num_threads(), "torch": torch.__version__, "seconds": times}


def loader(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """How long a step waits for its images: workers read, augment and cut the teacher's answers while it computes."""
    found: dict[str, Any] = {"share_waited": {}}
    for workers in args.workers:
        with run_of([*flags, f"--data.num_workers={workers}"]) as run:
            teacher, targets = targets_of(run)
            batches = run.train_batches(0, unlabeled=False, targets=targets)
            trainer = Trainer(run, STUDENT, {}, CachedTeacher(teacher, targets))
            waited = spent = 0.0
            for number in range(args.repeat + 3):
                start = time.perf_counter()
                batch = next(batches).to(run.accelerator.device)
                got = time.perf_counter()
                trainer.train_step(0, [batch])
                if number >= 3:
                    waited, spent = waited + got - start, spent + time.perf_counter() - start
        found["share_waited"][workers] = waited / spent
        share, whole = 100 * waited / spent, 1e3 * spent / args.repeat
        print(f"  {workers} worker(s): {share:5.1f} % of {whole:.0f} ms a step is spent waiting for images", flush=True)
    return found


def validation(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What scoring costs beside the forward passes that it cannot do without."""
    with run_of(flags) as run:
        teacher, student = (
            models.build(n, run.splits.classes).to(run.accelerator.device).eval()
            for n in (run.config.teacher, run.config.student)
        )
        size = run.config.per_device_eval_batch_size
        images = [batch.to(run.accelerator.device) for _, batch in val_batches(run.splits.val, size, 0, 1)]

        @torch.no_grad()
        def forward(*networks: models.Network) -> None:
            for batch in images:
                for network in networks:
                    network(batch.image)

        def scored(remember: bool) -> None:
            run.remembered.clear()
            if remember:
                run.remembered["teacher"] = known
            run.evaluate({"student": student, "teacher": teacher})

        known: dict[int, bytes] = {}
        scored(True)
        steps: dict[str, Step] = {
            "both networks' forward passes": lambda: forward(teacher, student),
            "scored, the teacher asked": lambda: scored(False),
            "the student's forward passes": lambda: forward(student),
            "scored, the teacher known": lambda: scored(True),
        }
        times = timed(steps, args.repeat, run.accelerator.device)
    median = {name: statistics.median(values) for name, values in times.items()}
    names = list(median)
    for base, name in (names[:2], names[2:]):
        print(f"  {name:30} {1e3 * median[name]:8.1f} ms  {median[name] / median[base]:5.2f} × {base}")
    return {"seconds": times}


MEASURES: dict[str, tuple[Callable[[argparse.Namespace, list[str]], dict[str, Any]], str]] = {
    "step": (step, "what a training step costs with and without a teacher, and in plain PyTorch"),
    "loader": (loader, "how long a step waits for its images"),
    "validation": (validation, "what scoring costs beside the forward passes"),
}


def add_commands(commands: Any) -> None:
    """The sub-commands; what they do not know are settings of the run."""
    for name, (measure, text) in MEASURES.items():
        command = commands.add_parser(
            name, help=text, epilog="Settings of the run may follow: --config FILE, --data.root …"
        )
        command.add_argument("--repeat", type=int, default=10 if name == "step" else 20 if name == "loader" else 3)
        command.add_argument("--output", type=Path, help="JSON file for the numbers; printed only if not given")
        if name == "step":
            command.add_argument("--compile", action="store_true", help="also with the loss compiled")
            command.add_argument("--classes", type=int, help="for so many classes, rather than those of the data")
            command.add_argument("--against", choices=["torchdistill"], help="also by another library; needs it")
        if name == "loader":
            command.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
        command.set_defaults(measure=measure)


def measure(args: argparse.Namespace, flags: list[str], command: Sequence[str]) -> None:
    """Measures, and writes what was found with the arguments of the command that found it."""
    found = args.measure(args, flags)
    if args.output and os.environ.get("RANK", "0") == "0":
        write_json(args.output, {"command": shlex.join(["distill", "benchmark", *command]), **found})
