"""The confusion matrix of each image by itself, so that images can be drawn again to see what a score owes to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from distill.data import Dataset, val_batches
from distill.evaluation.scores import predict
from distill.metrics import confusion_matrix
from distill.models.asked import Asked


@torch.no_grad()
def confusion_per_image(
    network: Asked,
    dataset: Dataset,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    progress: Callable = lambda items, **_: items,
    name: str = "student",
) -> np.ndarray:
    """The cells of each image's confusion matrix that are not 0; their sum over images is what `evaluate` counts.

    Args:
        network: on `device`; its training mode is restored afterwards.
        dataset: images of any sizes.
        batch_size: images at once.
        device: where the network is.
        rank: this process; it takes the images `rank, rank + world, …`.
        world: number of processes.
        progress: wraps the loop over images, such as tqdm.
        name: what messages call the network.

    Returns:
        int64 `[K, 3]`: index of the image, true class × classes + predicted class, pixels. With many labels a pixel
            there is a class more, that of none: each class is counted where it is found, missed and invented.

    Raises:
        FloatingPointError: the network gave a value that is not finite; names network and images.
    """
    classes, training, found = len(network.classes), network.training, [np.zeros((0, 3), np.int64)]
    network.eval()
    try:
        for indices, batch in val_batches(dataset, batch_size, rank, world, progress):
            batch = batch.to(device)
            for index, ids, mask in zip(indices, predict(network, batch, name), batch.mask, strict=True):
                matrix = confusion_matrix(ids[None], mask[None], classes)
                counts = (with_none(matrix) if network.multilabel else matrix).flatten().cpu().numpy()
                (cells,) = counts.nonzero()
                found.append(np.stack([np.full_like(cells, index), cells, counts[cells]], axis=1))
    finally:
        network.train(training)
    return np.concatenate(found)


def with_none(matrices: torch.Tensor) -> torch.Tensor:
    """One matrix `[C + 1, C + 1]` of those without and with each of C classes `[C, 2, 2]`; the last class is none."""
    square = torch.diag(torch.nn.functional.pad(matrices[:, 1, 1], (0, 1)))
    square[:-1, -1], square[-1, :-1] = matrices[:, 1, 0], matrices[:, 0, 1]
    return square
