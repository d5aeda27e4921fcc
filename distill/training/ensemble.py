"""Better targets from networks that are there: an image asked at several sizes, mirrored, of several teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Outputs
from distill.losses.geometry import Cells, cell_position, interpolation, pixel_centers
from distill.models.asked import Asked, logits_from, probabilities_of


class Ensemble(Asked):
    """Networks whose probabilities are averaged, over sizes and mirror images of an image too (test-time augmentation).

    Every answer is interpolated at the cells of the first network's map of the image as it is.

    Args:
        networks: of the same classes.
        scales: factors by which the image is resized (bilinear, antialiased).
        flip: also ask for the mirror image.
        weights: how much each network counts; all the same if not given.
    """

    def __init__(
        self,
        networks: Sequence[Asked],
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.scales, self.flip = tuple(scales), flip
        given = torch.tensor(weights or [1.0] * len(networks))
        self.weights = (given / given.sum()).tolist()
        first = networks[0]
        self.model, self.classes, self.stride = first.model, first.classes, first.stride
        self.mean, self.std, self.image, self.bands = first.mean, first.std, first.image, first.bands
        self.multilabel = first.multilabel

    @property
    def _each(self) -> list[Asked]:
        return cast("list[Asked]", list(self.networks))

    def identity(self) -> dict[str, Any]:
        """See `Asked.identity`."""
        of_each = [one.identity() for one in self._each]
        return {"teachers": of_each, "weights": self.weights, "scales": self.scales, "flip": self.flip}

    def forward(self, image: Tensor, features: Sequence[str] = ()) -> Outputs:
        """Logits of the mean probabilities (their logarithms, or inverse sigmoids); see `Network.forward`.

        Raises:
            ValueError: feature maps are asked for.
        """
        if features:
            raise ValueError(f"an ensemble has no feature maps {', '.join(features)}")
        first = self._each[0]
        own = first(image)
        cells = Cells((own.logits.shape[2], own.logits.shape[3]), own.padded_size, own.align_corners)
        total = torch.zeros_like(own.logits, dtype=torch.float32)
        for network, weight, scale, mirrored in self._answers():
            plain = network is first and scale == 1 and not mirrored
            outputs = own if plain else network(_seen(image, scale, mirrored))
            logits = outputs.logits.float() if plain else _at_cells(outputs, cells, own.size, mirrored)
            total += weight * probabilities_of(logits, self.multilabel)
        return Outputs(logits_from(total, self.multilabel), own.size, own.padded_size, own.align_corners)

    def _answers(self) -> Iterator[tuple[Asked, float, float, bool]]:
        """Who is asked for what: network, weight, scale, whether mirrored."""
        mirrors = (False, True) if self.flip else (False,)
        each = list(product(self.scales, mirrors))
        for network, weight in zip(self._each, self.weights, strict=True):
            for scale, mirrored in each:
                yield network, weight / len(each), scale, mirrored


def _seen(image: Tensor, scale: float, mirrored: bool) -> Tensor:
    """The image resized and mirrored, in its own range."""
    if scale != 1:
        size = [max(1, round(scale * n)) for n in image.shape[2:]]
        image = F.interpolate(image.float(), size, mode="bilinear", antialias=True)
    return image.flip(3) if mirrored else image


def _at_cells(outputs: Outputs, cells: Cells, size: tuple[int, int], mirrored: bool) -> Tensor:
    """Logits, float32, of a resized and mirrored image of `size`, at the cells of the map of the image itself."""
    x, device = outputs.logits.float(), outputs.logits.device
    for axis, equation in enumerate(("nchw,yh->ncyw", "nchw,xw->nchx")):
        count, length = cells.grid[axis], cells.padded_size[axis]
        places = pixel_centers(count, device)
        places = (
            places * ((length - 1) / max(count - 1, 1))
            if cells.align_corners
            else (places + 0.5) * length / count - 0.5
        )
        if axis == 1 and mirrored:
            places = size[1] - 1 - places
        places = (places + 0.5) * (outputs.size[axis] / size[axis]) - 0.5
        there, covered = x.shape[2 + axis], outputs.padded_size[axis]
        matrix = interpolation(
            cell_position(places.clamp(0, covered - 1), there, covered, outputs.align_corners), there
        )
        x = torch.einsum(equation, x, matrix.to(x.dtype))
    return x
