"""Images seen window by window, for teachers of one size and for images that are too large at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.asked import logits_from, probabilities_of


class Windows:
    """Overlapping windows over an image, whose answers are blended: the mean of their probabilities.

    Windows overlap by at least a third. Each counts most in its middle and falls off linearly to its edges, where a
    network knows least, so that no seams show. Windows begin at multiples of the map's stride, so that the cells of all
    of them fall together and nothing is interpolated.

    Args:
        ask: from a window, `[N, 3, *window]`, to logits `[N, C, h, w]`.
        window: its height and width, multiples of the stride.
        stride: pixels of a cell of the map.
        multilabel: whether classes do not exclude each other.
    """

    def __init__(self, ask: Callable[[Tensor], Tensor], window: Sequence[int], stride: int, multilabel: bool = False):
        self.ask, self.window, self.stride = ask, (window[0], window[1]), stride
        self.multilabel = multilabel

    def pad(self, x: Tensor) -> Tensor:
        """Adds zeros below and on the right: at least a window, and whole cells."""
        height, width = (
            max(wanted, -(-n // self.stride) * self.stride) for n, wanted in zip(x.shape[-2:], self.window, strict=True)
        )
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of the blended probabilities, float32 `[N, C, H / stride, W / stride]`, of a padded image."""
        cells = [n // self.stride for n in self.window]
        weight = slopes(cells[0])[:, None] * slopes(cells[1])
        weight = weight.to(x.device)
        total = seen = torch.empty(0)
        rows, columns = (list(starts(n, w, self.stride)) for n, w in zip(x.shape[-2:], self.window, strict=True))
        for top in rows:
            for left in columns:
                logits = self.ask(x[..., top : top + self.window[0], left : left + self.window[1]].contiguous())
                if not total.numel():
                    grid = [n // self.stride for n in x.shape[-2:]]
                    total = torch.zeros(*logits.shape[:2], *grid, device=x.device)
                    seen = torch.zeros(*grid, device=x.device)
                y, x0 = top // self.stride, left // self.stride
                found = probabilities_of(logits.float(), self.multilabel)
                total[..., y : y + cells[0], x0 : x0 + cells[1]] += weight * found
                seen[y : y + cells[0], x0 : x0 + cells[1]] += weight
        return logits_from(total / seen, self.multilabel)


def starts(length: int, window: int, step: int) -> Iterator[int]:
    """Where windows begin that cover a length and overlap by at least a third (or by a step less): multiples of it."""
    count = 1 + max(0, -(-3 * (length - window) // (2 * window)))
    for i in range(count):
        yield i * (length - window) // max(1, count - 1) // step * step


def slopes(length: int) -> Tensor:
    """1 in the middle, falling to nearly 0 at both ends: float32 `[length]`."""
    steps = torch.arange(length) + 0.5
    return torch.minimum(steps, length - steps) * 2 / length
