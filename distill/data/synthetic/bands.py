"""The drawn scenes as a camera of other channels and depth would see them."""

from __future__ import annotations

import numpy as np

from distill.data.synthetic.shapes import Array

LARGEST_UINT16 = 65535


def spread(image: Array, seed: int, index: int, channels: int, dtype: str) -> Array:
    """A scene in so many channels.

    Each channel is a mixture of red, green and blue of its own, with noise of its own: none has all that the others
    have together. Of 16 bits, each also has its own offset and range, as sensors have, and few use all of it.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        seed: of the set, which the noise depends on.
        index: of the scene in it.
        channels: wanted.
        dtype: `uint8` or `uint16`.

    Returns:
        `[H, W, channels]`; the image itself for 3 channels of 8 bits.
    """
    if (channels, dtype) == (3, "uint8"):
        return image
    sensor = np.random.default_rng(np.random.SeedSequence([channels, 1]))  # the same for every scene
    mixture = sensor.dirichlet((0.5, 0.5, 0.5), channels).T.astype(np.float32)
    noise = np.random.default_rng(np.random.SeedSequence([seed, index, channels]))
    seen = image.astype(np.float32) @ mixture if channels != 3 else image.astype(np.float32)
    seen += noise.standard_normal(seen.shape, dtype=np.float32)
    if dtype == "uint8":
        return seen.clip(0, 255).round().astype(np.uint8)
    offset, gain = sensor.uniform(50, 2000, channels), sensor.uniform(4, 120, channels)
    return (offset + gain * seen).clip(0, LARGEST_UINT16).round().astype(np.uint16)
