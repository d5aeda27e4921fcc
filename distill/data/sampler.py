"""The order of samples. Every process computes it for itself from the seed and the step, so a run can stop and go on
anywhere, on any number of workers, and see the same images with the same augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

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
