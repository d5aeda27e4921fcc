"""Images that are too large for a network at once: window by window, or made smaller. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from distill.deployment.runtime import Segmenter
from distill.visualize import resized


class Tiled:
    """A network that is asked window by window; where windows overlap, its probabilities are blended.

    Windows overlap by at least a third. Each counts most in its middle and falls off linearly to its edges, where a
    network knows least, so that no seams show. Only one row of windows is in memory.

    Args:
        model: the network.
        window: `(height, width)`; images smaller than that are looked at as they are.
    """

    def __init__(self, model: Segmenter, window: Sequence[int]):
        self.model, self.window = model, window
        self.classes, self.palette, self.image = model.classes, model.palette, model.image
        self.multilabel = model.multilabel

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`; with many labels a pixel, `[C, H, W]` of 0 and 1."""
        if self.multilabel:
            return np.concatenate([(band > 0.5).astype(np.uint8) for band in self._bands(image)], 1)
        return np.concatenate([band.argmax(0).astype(np.uint8) for band in self._bands(image)])

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits of the blended probabilities, float32 `[C, H, W]`, of an image `[H, W, C]`."""
        found, least = np.concatenate(list(self._bands(image)), 1), np.finfo(np.float32).tiny
        if self.multilabel:
            return np.log(np.maximum(found, least)) - np.log(np.maximum(1 - found, least))
        return np.log(np.maximum(found, least))

    def _bands(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Probabilities float32 `[C, h, W]`, from top to bottom."""
        of = _sigmoid if self.multilabel else _softmax
        return blended(lambda part: of(self.model.logits(part)), image, self.window)


def blended(
    probabilities: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: Sequence[int]
) -> Iterator[np.ndarray]:
    """What windows over an image say, blended where they overlap; only one row of windows is in memory.

    Args:
        probabilities: of a window `[h, w, C']`: float32 `[C, h, w]`.
        image: `[H, W, C']`.
        window: `(height, width)`.

    Yields:
        Bands of the whole width, float32 `[C, h, W]`, from top to bottom.
    """
    size = [min(wanted, there) for wanted, there in zip(window, image.shape[:2], strict=False)]
    tops, lefts = (list(starts(n, part)) for n, part in zip(image.shape[:2], size, strict=False))
    weight = np.outer(*(_slopes(part) for part in size))
    band, seen = np.zeros(0, np.float32), np.zeros((size[0], image.shape[1]), np.float32)
    for top, after in zip(tops, [*tops[1:], image.shape[0]], strict=True):
        for left in lefts:
            found = probabilities(np.ascontiguousarray(image[top : top + size[0], left : left + size[1]]))
            if not band.size:
                band = np.zeros((len(found), *seen.shape), np.float32)
            band[..., left : left + size[1]] += weight * found
            seen[:, left : left + size[1]] += weight
        done = after - top  # no later window reaches these rows
        yield band[:, :done] / seen[:done]
        for buffer in (band, seen):
            rest = buffer[..., done:, :].copy()
            buffer[...] = 0
            buffer[..., : rest.shape[-2], :] = rest


class Shrunk:
    """A network that sees large images made smaller; its answers have their own size.

    Args:
        model: the network.
        longest: pixels of the longer side; smaller images are looked at as they are.
    """

    def __init__(self, model: Segmenter, longest: int):
        self.model, self.longest = model, longest
        self.classes, self.palette, self.image = model.classes, model.palette, model.image
        self.multilabel = model.multilabel

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`; with many labels a pixel, `[C, H, W]` of 0 and 1."""
        small = self._smaller(image)
        if small is image:
            return self.model.mask(image)
        if self.multilabel:
            planes = (cv2.resize(logits, image.shape[1::-1]) > 0 for logits in self.model.logits(small))
            return np.stack([plane.view(np.uint8) for plane in planes])
        best = np.full(image.shape[:2], -np.inf, np.float32)
        mask = np.zeros(image.shape[:2], np.uint8)
        for i, logits in enumerate(self.model.logits(small)):  # all classes at once would be too much for memory
            larger = cv2.resize(logits, image.shape[1::-1])
            better = larger > best
            best[better], mask[better] = larger[better], i
        return mask

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits float32 `[C, H, W]` of an image `[H, W, C]`."""
        logits = self.model.logits(self._smaller(image))
        return np.stack([cv2.resize(one, image.shape[1::-1]) for one in logits])

    def _smaller(self, image: np.ndarray) -> np.ndarray:
        scale = self.longest / max(image.shape[:2])
        if scale >= 1:
            return image
        height, width = (max(1, round(n * scale)) for n in image.shape[:2])
        return resized(image, height, width)


def starts(length: int, window: int) -> Iterator[int]:
    """Where windows begin that cover a length and overlap by at least a third."""
    count = 1 + max(0, -(-3 * (length - window) // (2 * window)))
    for i in range(count):
        yield i * max(0, length - window) // max(1, count - 1)


def _slopes(length: int) -> np.ndarray:
    """1 in the middle, falling to nearly 0 at both ends: float32 `[length]`."""
    steps = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(steps, length - steps) * 2 / length


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float32)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float32) - logits.max(0, keepdims=True))
    return exponents / exponents.sum(0, keepdims=True)
