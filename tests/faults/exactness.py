"""The same answer for any number of workers, processes and micro-batches, and for any size of the validation set."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_config
from harness import Figure, digests, distil, run
from kills import SETTINGS
from known_answers import Brightness, made_up
from torch import nn
from trainings import teacher_of

import distill.training.context
import distill.training.trainer
from distill import models
from distill.batch import VOID
from distill.data import Dataset, Splits, open_splits
from distill.evaluation.scores import evaluate
from distill.training.distributed import start
from distill.training.stage import BASELINE, STUDENT
from distill.training.teacher import Teacher
from distill.training.trainer import Trainer

TOLERANCE = 1e-10
SPLITS_OF_FOUR = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1))  # processes and micro-batches of a step of 4 images
CLASSES = 5
MANY = {"data__multilabel": True, "teacher__head": "multilabel", "student__head": "multilabel"}


def workers(counts: Sequence[int], worlds: Sequence[int], folder: Path) -> Figure:
    """Runs that differ only in how many workers read the images."""
    others = []
    for world in worlds:
        whole: dict[str, str] | None = None
        for count in counts:
            name = f"{world}-{count}"
            run(distil, (folder / name, SETTINGS | {"data__num_workers": count}), world, folder / f"{name}.log")
            whole = whole or digests(folder / name)
            if digests(folder / name) != whole:
                others.append(f"{world} process(es), {count} workers: other bits")
    tried = f"{len(counts) * len(worlds)} runs, {', '.join(map(str, counts))} workers"
    return Figure(
        "runs with other worker counts that give other bits", "0", f"{len(others)} ({tried})", not others, others
    )


def processes(
    steps: int, splits: Sequence[tuple[int, int]], optimizers: Sequence[str], folder: Path, many: bool = False
) -> Figure:
    """The same training in float64 without BatchNorm, its steps split over processes and micro-batches.

    With `many`, a pixel has any number of the classes.
    """
    worst, failures = 0.0, []
    for optimizer in optimizers:
        whole: torch.Tensor | None = None
        for world, micro in splits:
            name = f"{optimizer}-{world}-{micro}"
            run(
                _double_rank,
                (folder / name, 4 // world // micro, micro, steps, optimizer, many),
                world,
                folder / f"{name}.log",
            )
            weights = torch.load(folder / f"{name}.pt", weights_only=True)
            whole = weights if whole is None else whole
            error = float((weights - whole).norm() / whole.norm())
            worst = max(worst, error)
            if error > TOLERANCE:
                failures.append(f"{optimizer}, {world} process(es) × {micro} micro-batches: {error:.1e}")
    worlds = " vs ".join(str(world) for world in sorted({world for world, _ in splits}))
    return Figure(
        f"{worlds} processes × accumulation, float64, {steps} steps, uneven void: relative difference of the weights",
        f"≤ {TOLERANCE:.0e}",
        f"{worst:.1e}",
        not failures,
        failures,
    )


def _double_rank(folder: Path, batch: int, micro_batches: int, steps: int, optimizer: str, many: bool) -> None:
    config = tiny_config(
        folder,
        **(MANY if many else {}),
        student__max_train_steps=steps,
        student__options={
            "decoder_pyramid_channels": 16,
            "decoder_segmentation_channels": 32,
            "decoder_dropout": 0.0,  # drawn for each process anew
        },
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=micro_batches,
        optimizer__name=optimizer,
        optimizer__max_grad_norm=5.0 if optimizer == "adamw" else 0.0,  # neither clipped SGD nor AdamW sees a factor
        optimizer__ema_decay=0.9,
        focal__weight=0.5,
        eval_steps=1000,
        checkpointing_steps=1000,
        keep="last",
    )
    build = models.build
    distill.training.trainer.build = lambda *arguments: _in_double(build(*arguments))  # type: ignore[assignment]
    accelerator = start(config)
    data = Dataset([str(i) for i in range(12)], _uneven_planes if many else _uneven, [()] * 12, lambda _: None)
    splits = Splits(data, data, [str(i) for i in range(CLASSES)], [(0, 0, 0)] * CLASSES, multilabel=many)
    torch.manual_seed(7)
    teacher = Teacher(_in_double(build(config.teacher, splits.classes)))
    network = Trainer(distill.training.context.Run(config, accelerator, splits), STUDENT, {}, teacher).train()
    if accelerator.is_main_process:
        weights = torch.cat([value.flatten() for value in network.state_dict().values()])
        assert weights.dtype == torch.float64
        torch.save(weights, folder.with_name(f"{folder.name}.pt"))
    accelerator.end_training()


def memory_rank(folder: Path, batch: int) -> None:
    """Trains with a memory; the last state holds it."""
    config = tiny_config(
        folder,
        student__max_train_steps=2,
        per_device_train_batch_size=batch,
        cirkd__weight=0.1,
        eval_steps=1000,
        checkpointing_steps=1000,
    )
    accelerator = start(config)
    run = distill.training.context.Run(config, accelerator, open_splits(config.data))
    Trainer(run, STUDENT, {}, teacher_of(run)).train()
    accelerator.end_training()


def average_rank(folder: Path) -> None:
    """Trains with a moving average, and scores again what the first process kept."""
    config = tiny_config(folder, optimizer__ema_decay=0.9, keep="last", student__max_train_steps=3)
    accelerator = start(config)
    run = distill.training.context.Run(config, accelerator, open_splits(config.data))
    trainer = Trainer(run, BASELINE, {})
    network = trainer.train()
    if accelerator.is_main_process:
        models.save(network, folder / "kept")
    accelerator.wait_for_everyone()
    kept = models.load(folder / "kept", run.splits.classes, config.student.mean, config.student.std)
    again = run.evaluate({"student": kept}).scores["student"].mean_iou
    if accelerator.is_main_process:
        (folder / "scores.json").write_text(json.dumps([trainer.best["mean_iou"], again]))
    accelerator.end_training()


def _uneven(index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise; every other mask has labels on 2 % of its pixels, one has none at all."""
    rng = np.random.default_rng(index)
    mask = rng.integers(0, CLASSES, (64, 64), dtype=np.uint8)
    if index % 2:
        mask[rng.random(mask.shape) < 0.98] = VOID
    if index == 4:
        mask[:] = VOID
    return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), mask


def _uneven_planes(index: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with a plane for each class, which are void in different places."""
    image, mask = _uneven(index)
    planes = np.stack([mask % (c + 2) == 0 for c in range(CLASSES)]).astype(np.uint8)
    for c, plane in enumerate(planes):
        plane[np.roll(mask, c, axis=0) == VOID] = VOID
    return image, planes


def _in_double(network: models.Network) -> models.Network:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return network.double()


def matrices(sizes: Sequence[int], worlds: Sequence[int], batches: Sequence[int], folder: Path) -> Figure:
    """Confusion matrices of validation sets of every size, counted by real processes, against counting by hand."""
    failures, done = [], 0
    for world in worlds:
        path = folder / f"{world}.json"
        run(_matrices_rank, (folder, path, sizes, batches), world, folder / f"{world}.log")
        for size, batch, found in json.loads(path.read_text()):
            done += 1
            if found != _closed_form(size).tolist():
                failures.append(f"{size} images, {world} process(es), batch {batch}: another matrix")
    count = len(sizes) * len(worlds) * len(batches)
    name = f"val sizes {min(sizes)}…{max(sizes)} × processes {_list(worlds)} × batch {_list(batches)}"
    return Figure(
        f"{name}: confusion matrix exact",
        f"{count} / {count}",
        f"{done - len(failures)} / {done}",
        not failures and done == count,
        failures,
    )


def _matrices_rank(folder: Path, path: Path, sizes: Sequence[int], batches: Sequence[int]) -> None:
    accelerator = start(tiny_config(folder))
    rank, world = accelerator.process_index, accelerator.num_processes
    found: list[Any] = []
    for size, batch in itertools.product(sizes, batches):
        networks: Any = {"teacher": Brightness(CLASSES)}
        result = evaluate(networks, made_up(size), batch, "cpu", rank, world, lambda c: accelerator.reduce(c, "sum"))
        found.append((size, batch, result.scores["teacher"].matrix.tolist()))
    if accelerator.is_main_process:
        path.write_text(json.dumps(found))
    accelerator.end_training()


def _closed_form(size: int) -> np.ndarray:
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for index in range(size):
        image, mask = made_up(size).read(index)
        for truth, value in zip(mask.flat, image[..., 0].flat, strict=True):
            if truth != VOID:
                matrix[truth, value % CLASSES] += 1
    return matrix


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
