"""How far masks lie beside their images after each geometric transform that is allowed."""

from __future__ import annotations

from pathlib import Path

import albumentations as A
import numpy as np
from harness import Figure

from distill.batch import VOID
from distill.config.data import DataConfig
from distill.data import build_transform
from distill.data.transforms import TRANSFORMS

LIMIT_PIXELS = 0.1
# Arguments of the transforms that need some, or that show more with them.
ARGUMENTS = {
    **{name: {"height": 60, "width": 70} for name in ("CenterCrop", "RandomCrop", "CropNonEmptyMaskIfExists")},
    **{name: {"max_size": [70, 100]} for name in ("LongestMaxSize", "SmallestMaxSize")},
    "Crop": {"x_min": 5, "y_min": 7, "x_max": 100, "y_max": 90},
    "RandomResizedCrop": {"size": [64, 72]},
    "RandomSizedCrop": {"min_max_height": [50, 110], "size": [64, 72]},
    "Resize": {"height": 64, "width": 133},  # exactly half: every label is as near as its neighbor
    "RandomScale": {"scale_limit": [-0.5, 0.5]},
    "PadIfNeeded": {"min_height": 140, "min_width": 180},
    "CropAndPad": {"percent": [-0.2, 0.2]},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 5},
}
REFUSED = {"Morphological", "Mosaic", "OverlayElements"} | {name for name in TRANSFORMS if "BBox" in name}
BLOTS = {"PixelDropout", "MaskDropout"}  # out of the image alone, or things out of both
GEOMETRIC = sorted({name for name, cls in TRANSFORMS.items() if issubclass(cls, A.DualTransform)} - REFUSED - BLOTS)


def offset(name: str, draws: int = 12) -> float:
    """How far masks lie beside their images in pixels, on average over draws; the larger of x and y."""
    config = DataConfig(crop_size=[128, 160], augmentations=[{name: {**ARGUMENTS.get(name, {}), "p": 1.0}}])
    transform = build_transform(config)
    y, x = np.mgrid[:128, :160].astype(np.float32)
    means: dict[int, list[float]] = {0: [], 1: []}
    for axis, position in enumerate((y, x)):
        image = np.dstack([position, np.ones_like(x), np.ones_like(x)])
        for key in range(draws):
            moved, mask = transform(image, position.astype(np.uint8), (axis, key))
            seen = (mask != VOID) & (moved[..., 1] > 0.9999)  # all of it from within the image
            means[axis].append((mask[seen] - moved[..., 0][seen]).mean())
    return max(abs(float(np.mean(values))) for values in means.values())


def alignment(draws: int, folder: Path) -> Figure:
    """The largest mean offset over all geometric transforms."""
    offsets = {name: offset(name, draws) for name in GEOMETRIC}
    worst = max(offsets, key=offsets.__getitem__)
    failures = [f"{name}: {value:.3f} px" for name, value in offsets.items() if not value < LIMIT_PIXELS]
    reached = f"{offsets[worst]:.3f} px ({worst}, of {len(offsets)} transforms)"
    return Figure("alignment", f"< {LIMIT_PIXELS} px", reached, not failures, failures)
