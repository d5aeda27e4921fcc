"""Batches: images in the sampler's order, read and augmented by workers, with what a teacher said of them."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from distill.batch import Batch
from distill.data.datasets import Dataset
from distill.data.own import seeded
from distill.data.pixel_positions import coordinates
from distill.data.sampler import Key, StepSampler
from distill.data.teacher_cache import CachedTargets
from distill.data.transforms import Transform
from distill.errors import ConfigError

Item = tuple[np.ndarray, np.ndarray, str, np.ndarray | None]  # image, mask, name, what the teacher says


class View(TorchDataset):
    """Augmented items of a data set, by (epoch, index), with what a teacher said of them if there are such targets."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int, targets: CachedTargets | None = None):
        self.dataset, self.transform, self.seed, self.targets = dataset, transform, seed, targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        targets = self.targets
        if self.dataset.drawn:
            with seeded(self.seed, epoch, index):
                image, mask = self.dataset.drawn(index)
            if targets:
                targets.refuse_other_pixels(index, image, self.dataset.names[index])
        else:
            image, mask = self.dataset.read(index)
        where = coordinates(*image.shape[:2]) if targets else None
        try:
            image, mask, *moved = self.transform(image, mask, (self.seed, epoch, index), where)
        except Exception as error:  # OpenCV's, NumPy's and albumentations' own
            name = (*self.dataset.files[index], self.dataset.names[index])[0]
            size, reason = f"{image.shape[1]}×{image.shape[0]}", " ".join(str(error).split())[:150]
            raise ConfigError(
                f"{name}: is {size}, which data.augmentations cannot work on ({reason}); remove it or change them"
            ) from error
        return image, mask, self.dataset.names[index], targets.crop(index, moved[0]) if targets else None


def train_batches(
    dataset: Dataset,
    transform: Transform,
    sampler: StepSampler,
    num_workers: int,
    timeout_seconds: int,
    pin_memory: bool = False,
    targets: CachedTargets | None = None,
) -> Iterator[Batch]:
    """Endless micro-batches in the sampler's order, with a teacher's answers if there are `targets`.

    Raises:
        ChildProcessError: a worker died or was waited for longer than `timeout_seconds`; names the images.
    """
    loader = DataLoader(
        View(dataset, transform, sampler.seed, targets),
        batch_sampler=sampler,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,  # a data set is made of closures
        timeout=timeout_seconds if num_workers else 0,
        pin_memory=pin_memory,
        collate_fn=collate,
        generator=torch.Generator(),  # else the iterator would draw from, and move, the global generator
    )
    batches = iter(loader)
    return _watched(batches, copy.copy(sampler), dataset.names, timeout_seconds) if num_workers else batches


def _watched(
    batches: Iterator[Batch], sampler: StepSampler, names: Sequence[str], timeout_seconds: int
) -> Iterator[Batch]:
    for keys in sampler:
        # The loader's own limit does not hold while a batch is handed over; then a killed worker ends the waiting.
        alarm = threading.Timer(timeout_seconds + 1, _kill_workers)
        alarm.start()
        try:
            batch = next(batches)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
                raise
            _end_workers()  # or a stuck one would be waited for when this process ends
            images = ", ".join(names[index] for _, index in keys)
            reason = " ".join(str(error).split()) or "a worker is gone"
            raise ChildProcessError(f"{images}: {reason}; see data.num_workers and timeout_seconds") from error
        finally:
            alarm.cancel()
        yield batch


def _kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _end_workers() -> None:
    """Kills the workers for an error that is known already.

    PyTorch's handler would raise another of their death, wherever this process then is; once they are waited for, it
    finds none.
    """
    workers = multiprocessing.active_children()
    in_main = threading.current_thread() is threading.main_thread()  # where alone signals are handled
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    try:
        _kill_workers()
        for worker in workers:
            worker.join()
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, handler)


def val_batches(
    dataset: Dataset, batch: int, rank: int, world: int, progress: Callable = lambda x, **_: x
) -> Iterator[tuple[list[int], Batch]]:
    """This process's share of the images, each exactly once, as they are; a batch holds images of one size."""
    group: list[tuple[int, np.ndarray, np.ndarray]] = []
    indices = range(rank, len(dataset), world)

    def flush() -> tuple[list[int], Batch]:
        items: list[Item] = [(image, mask, dataset.names[i], None) for i, image, mask in group]
        return [i for i, _, _ in group], collate(items)

    for index in progress(indices):
        image, mask = dataset.read(index)
        if group and (len(group) == batch or group[0][1].shape != image.shape):
            yield flush()
            group = []
        group.append((index, image, mask))
    if group:
        yield flush()


def collate(items: Sequence[Item]) -> Batch:
    """Items of one size to a batch; images stay in channels-last memory order. Those of 16 bits become float32."""
    images, masks, names, teacher = zip(*items, strict=True)
    stacked = np.stack(images)
    if stacked.dtype == np.uint16:  # of which torch knows little more than the name
        stacked = stacked.astype(np.float32)
    image, mask = torch.from_numpy(stacked).permute(0, 3, 1, 2), torch.from_numpy(np.stack(masks))
    return Batch(image, mask, list(names), None if teacher[0] is None else torch.from_numpy(np.stack(teacher)))
