"""Several networks scored in one pass over the same tensors, so that a difference is never one of preprocessing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distill.batch import VOID, Batch
from distill.data import Dataset, val_batches
from distill.metrics import Scores, confusion_matrix
from distill.models.asked import Asked


@dataclass(frozen=True)
class Evaluation:
    """Scores by network name, and the share of pixels in which each agrees with the network called `teacher`.

    Attributes:
        scores: over the whole set.
        agreement: 0 to 1, over labeled pixels.
        image_iou: mIoU of each image by itself, where that was asked for; None for one without labels.
    """

    scores: dict[str, Scores]
    agreement: dict[str, float]
    image_iou: dict[str, list[float | None]] = field(default_factory=dict)


def predict(network: Asked, batch: Batch, name: str) -> Tensor:
    """What a network decides (see `Asked.decide`); raises FloatingPointError if the logits are not finite."""
    logits = network(batch.image).upsampled()
    highest, ids = (logits.abs(), network.decide(logits)) if network.multilabel else logits.max(1)
    if not highest.isfinite().all():
        raise FloatingPointError(f"the {name} network gives values that are not finite on {', '.join(batch.names)}")
    return ids


@torch.no_grad()
def evaluate(
    networks: Mapping[str, Asked],
    dataset: Dataset,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
    progress: Callable = lambda items, **_: items,
    remembered: dict[str, dict[int, bytes]] | None = None,
    each_image: bool = False,
) -> Evaluation:
    """Scores networks on every image of a data set, in float32, the arithmetic of the exported file.

    Args:
        networks: by name, on `device`; their training mode is restored afterwards.
        dataset: images of any sizes.
        batch_size: images at once.
        device: where the networks are.
        rank: this process; it takes the images `rank, rank + world, …`.
        world: number of processes.
        reduce: sums an integer tensor over processes.
        progress: wraps the loop over images, such as tqdm.
        remembered: predictions of networks that do not change, by name and image, compressed: read where they are
            there, and added where not.
        each_image: score each image by itself, too.

    Raises:
        FloatingPointError: a network gave a value that is not finite; names network and images.
    """
    one = next(iter(networks.values()))
    classes = len(one.classes)
    shape = (classes, 2, 2) if one.multilabel else (classes, classes)
    training = {name: network.training for name, network in networks.items()}
    matrices = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name in networks}
    agreeing = dict.fromkeys(networks, torch.zeros((), dtype=torch.int64, device=device))
    compared = torch.zeros((), dtype=torch.int64, device=device)
    billionths = torch.zeros(len(networks), len(dataset) if each_image else 0, dtype=torch.int64)
    for network in networks.values():
        network.eval()
    for indices, batch in val_batches(dataset, batch_size, rank, world, progress):
        batch = batch.to(device)
        predictions = {}
        for name, network in networks.items():
            memory = (remembered or {}).get(name)
            if memory is not None and all(index in memory for index in indices):
                known = b"".join(zlib.decompress(memory[index]) for index in indices)
                ids = torch.frombuffer(bytearray(known), dtype=torch.uint8).view(batch.mask.shape)
                predictions[name] = ids.to(device, torch.int64)
            else:
                predictions[name] = predict(network, batch, name)
                if memory is not None:
                    ids = predictions[name].byte().cpu()
                    memory |= {i: zlib.compress(one.numpy().tobytes(), 1) for i, one in zip(indices, ids, strict=True)}
            matrices[name] += confusion_matrix(predictions[name], batch.mask, classes)
        if each_image:
            for place, ids in enumerate(predictions.values()):
                billionths[place, indices] = _each(ids, batch.mask, classes)
        if "teacher" in predictions:
            valid = batch.mask != VOID
            compared = compared + valid.sum()
            for name in networks:
                agreeing[name] = agreeing[name] + ((predictions[name] == predictions["teacher"]) & valid).sum()
    for name, network in networks.items():
        network.train(training[name])
    counts = [matrices[n].flatten() for n in networks] + [torch.stack([compared, *agreeing.values()])]
    total = reduce(torch.cat([*counts, billionths.flatten().to(device)])).cpu()
    size = int(np.prod(shape))
    scores = {name: Scores(total[i * size : (i + 1) * size].view(shape)) for i, name in enumerate(networks)}
    pixels, *equal = total[len(networks) * size :][: len(networks) + 1].tolist()
    each = total[len(networks) * (size + 1) + 1 :].view(len(networks), -1).tolist() if each_image else []
    image_iou = {n: [None if v < 0 else v / 1e9 for v in values] for n, values in zip(networks, each, strict=False)}
    agreement = {name: n / max(1, pixels) for name, n in zip(networks, equal, strict=True)} if pixels else {}
    return Evaluation(scores, agreement, image_iou)


def _each(ids: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Billionths of mIoU of each image by itself, int64 `[N]`, since sums over processes are of whole numbers.

    -1 for an image without labels.
    """
    found = [Scores(confusion_matrix(one[None], mask[None], classes)) for one, mask in zip(ids, masks, strict=True)]
    return torch.tensor([round(1e9 * scores.mean_iou) if scores.present else -1 for scores in found])
