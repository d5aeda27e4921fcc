"""Images that are too large for a network at once: window by window, or made smaller. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from distill.deployment.runtime import Segmenter
from distill.visualize import resized


class Tiled:
    """A network that is asked window by window; where windows overlap, its probabilities are blended.

    Windows overlap by at least a third. Each counts most in its middle and falls off linearly to its edges, where a
    network knows least, so that no seams show. Of all classes only one window and the overlap with the windows below
    are in memory.

    Masks are those of one pass as far as a network sees less than windows overlap. What it takes from all that it sees
    (pooling over the image, GroupNorm) is that of the window, whatever the overlap; on CamVid that scores higher than
    one pass (`checkpoints/results/seams.json`).

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
            return np.concatenate(list(self.bands(image, lambda found: (found > 0.5).astype(np.uint8))), 1)
        mask, top = np.empty(image.shape[:2], np.uint8), 0
        for band in self.bands(image, lambda found: found.argmax(0).astype(np.uint8)):
            mask[top : (top := top + len(band))] = band
        return mask

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits of the blended probabilities, float32 `[C, H, W]`, of an image `[H, W, C]`."""
        return np.concatenate(list(self.bands(image, self.logits_of)), 1)

    def logits_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Of probabilities, which may be 0, float32."""
        return logarithms(probabilities) - (logarithms(1 - probabilities) if self.multilabel else 0)

    def bands(self, image: np.ndarray, kept: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        """What is kept of the blended probabilities, from top to bottom; see `blended`."""
        of = _sigmoid if self.multilabel else _softmax
        return blended(lambda part: of(self.model.logits(part)), image, self.window, kept)


def blended(
    probabilities: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    window: Sequence[int],
    kept: Callable[[np.ndarray], np.ndarray] = lambda found: found,
) -> Iterator[np.ndarray]:
    """What windows over an image say, blended where they overlap.

    Sums over all classes are held of one window, and of the rows that the windows below it reach, too.

    Args:
        probabilities: of a window `[h, w, C']`: float32 `[C, h, w]`.
        image: `[H, W, C']`.
        window: `(height, width)`.
        kept: what becomes of blended probabilities `[C, h, w]`, such as their class ids: `[…, h, w]`.

    Yields:
        Bands of the whole width of what is kept, `[…, h, W]`, from top to bottom.
    """
    size = [min(wanted, there) for wanted, there in zip(window, image.shape[:2], strict=False)]
    tops, lefts = (list(starts(n, part)) for n, part in zip(image.shape[:2], size, strict=False))
    weight = np.outer(*(_slopes(part) for part in size))
    sums = above = band = np.zeros(0, np.float32)
    reached = done = 0  # rows of this row of windows, and columns of this window, that the last one has seen, too
    for top, below in itertools.pairwise([*tops, image.shape[0]]):
        for left, beyond in itertools.pairwise([*lefts, image.shape[1]]):
            found = probabilities(np.ascontiguousarray(image[top : top + size[0], left : left + size[1]]))
            if not sums.size:  # of each class, and of the weights
                sums = np.zeros((len(found) + 1, *size), np.float32)
                overlap = size[0] - min((b - a for a, b in itertools.pairwise(tops)), default=size[0])
                above = np.zeros((len(sums), overlap, image.shape[1]), np.float32)
            old = size[1] - done if left else 0
            sums[..., :old] = sums[..., size[1] - old :].copy()
            sums[..., old:] = 0
            sums[:, :reached, old:] = above[:, :reached, left + old : left + size[1]]
            sums[:-1] += weight * found
            sums[-1] += weight
            rows, done = below - top, beyond - left  # no later window reaches these rows and columns
            part = kept(sums[:-1, :rows, :done] / sums[-1, :rows, :done])
            above[:, : size[0] - rows, left:beyond] = sums[:, rows:, :done]
            if not left:
                band = np.empty((*part.shape[:-1], image.shape[1]), part.dtype)
            band[..., left:beyond] = part
        reached = size[0] - rows
        yield band


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


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Of probabilities, which may be 0, float32."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def _slopes(length: int) -> np.ndarray:
    """1 in the middle, falling to nearly 0 at both ends: float32 `[length]`."""
    steps = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(steps, length - steps) * 2 / length


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float32)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float32) - logits.max(0, keepdims=True))
    return exponents / exponents.sum(0, keepdims=True)
