"""Images for a small ONNX file."""

import numpy as np
from PIL import Image

from distill.data import Dataset
from distill.deployment.runtime import OnnxModel


def scenes(labels: OnnxModel, count: int, seed: int) -> Dataset:
    """Blurred noise, labeled by the float file itself, so that this one scores 1."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        images.append(np.asarray(small.resize((56, 40), Image.Resampling.BICUBIC)))
    names = [str(i) for i in range(count)]
    return Dataset(names, lambda i: (images[i], labels.mask(images[i])), [()] * count, lambda i: None)
