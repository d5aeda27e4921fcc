"""Files beside the network or file that they are to do the work of: image by image, on one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data import Dataset
from distill.deployment.runtime import OnnxModel, Segmenter
from distill.errors import ExportError
from distill.metrics import Comparison
from distill.storage import Record
from distill.visualize import resized

OTHER_SIZE = (97, 130)


@dataclass(kw_only=True)
class MaskProof(Record):
    """What the masks of a file cost against those of the float file that it was made from.

    Attributes:
        mean_iou: of the file on all labeled images.
        float_mean_iou: of the float file.
        mean_iou_lost: the latter less the former.
        argmax_agreement: share of pixels with the same class.
        pixels: how many pixels were compared.
    """

    mean_iou: float
    float_mean_iou: float
    mean_iou_lost: float
    argmax_agreement: float
    pixels: int


def compare(reference: Segmenter, candidate: Segmenter, dataset: Dataset) -> Comparison:
    """Masks of all images beside those of a reference; the same one twice is run once, for its score alone."""
    found = Comparison(len(candidate.classes), candidate.multilabel)
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        guess = candidate.mask(image)
        expected = guess if reference is candidate else reference.mask(image)
        found.add(*(torch.from_numpy(labels[None]) for labels in (expected, guess, mask)))
    return found


def compare_masks(float_path: Path, path: Path, dataset: Dataset) -> MaskProof:
    """A finished file beside the float one, on labeled images and on a batch of another size.

    Raises:
        ExportError: outputs that are not finite, or of another size than the image.
    """
    model = _FiniteModel(path)
    found = compare(OnnxModel(float_path), model, dataset)
    if not any(isinstance(n, int) for n in model.size):
        height, width = OTHER_SIZE
        small = resized(dataset.read(0)[0], height, width)
        planes = [len(model.classes)] if model.multilabel else []
        if model.masks(np.stack([small] * 3)).shape != (3, *planes, *OTHER_SIZE):
            raise ExportError(f"{path}: gives masks of another size than its images")
    return MaskProof(
        mean_iou=found.mean_iou,
        float_mean_iou=found.reference_mean_iou,
        mean_iou_lost=found.reference_mean_iou - found.mean_iou,
        argmax_agreement=found.agreement,
        pixels=found.pixels,
    )


class _FiniteModel(OnnxModel):
    """A file whose other outputs are looked at, too: a mask hides values that are not finite."""

    def mask(self, image: np.ndarray) -> np.ndarray:
        """As `OnnxModel.mask`."""
        return self.masks(image[None])[0]

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[N, H, W]` of images `[N, H, W, C]`.

        Raises:
            ExportError: an output is not finite.
        """
        found = dict(zip(self.outputs, self.session.run(list(self.outputs), {self.input: images}), strict=True))
        if not all(np.isfinite(values).all() for name, values in found.items() if name != "mask"):
            raise ExportError(f"{self.path}: outputs are not finite on images of shape {list(images.shape)}")
        return np.asarray(found["mask"])
