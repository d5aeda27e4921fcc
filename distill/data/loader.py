"""The order of samples. Every process computes it for itself from the seed and the step, so a run can stop and go on
anywhere, on any number of workers, and see the same images with the same augmentation.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from distill.batch import Batch
from distill.data.datasets import Dataset
from distill.data.own import seeded
from distill.data.positions import coordinates
from distill.data.teacher_cache import CachedTargets
from distill.data.transforms import Transform
from distill.errors import ConfigError

Key = tuple[int, int]  # epoch, index; those of the second data set come after those of the first


class StepSampler(Sampler[list[Key]]):
    """Micro-batches of one process, step after step, without end.

    The samples of all steps are one endless row of permutations, one an epoch. Step k takes the next `global_batch`
    of them and the processes share these out, so the images of a step do not depend on the number of processes.

    Args:
        length: number of samples.
        batch: samples a process and micro-batch.
        micro_batches: of a step.
        seed: of the permutations.
        start_step: step to begin with.
        rank: this process.
        world: number of processes.
        more: number of samples of a second data set, which is mixed in.
        share: of the second, 0 ≤ share < 1; it is kept in every stretch of the row.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        micro_batches: int,
        seed: int,
        start_step: int,
        rank: int,
        world: int,
        more: int = 0,
        share: float = 0.0,
    ):
        self.lengths, self.batch, self.micro_batches = (length, more), batch, micro_batches
        self.seed, self.start_step, self.rank, self.world = seed, start_step, rank, world
        self.share = share if more else 0.0
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.start_step * self.micro_batches * self.world * self.batch + self.rank * self.batch
        while True:
            yield [self.key(position) for position in range(first, first + self.batch)]
            first += self.world * self.batch

    def key(self, position: int) -> Key:
        """Epoch and index of the sample at a position of the endless row."""
        before = math.floor(position * self.share)  # samples of the second that the row has had
        which = int(math.floor((position + 1) * self.share) > before)
        epoch, place = divmod(before if which else position - before, self.lengths[which])
        if self._orders.get(which, (None,))[0] != epoch:
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, which]))
            self._orders[which] = epoch, generator.permutation(self.lengths[which])
        return epoch, int(self._orders[which][1][place]) + which * self.lengths[0]


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
        where = coordinates(*mask.shape) if targets else None
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
    """Items of one size to a batch; images stay in channels-last memory order."""
    images, masks, names, teacher = zip(*items, strict=True)
    image, mask = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(masks))
    return Batch(image, mask, list(names), None if teacher[0] is None else torch.from_numpy(np.stack(teacher)))
