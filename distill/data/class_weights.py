"""Class weights from how often the training masks show each class."""

from __future__ import annotations

import torch
from torch import Tensor


def class_weights(pixels: Tensor, around: Tensor, scheme: str = "log") -> Tensor:
    """Class weights from how many pixels each class has in the training set.

    - `median`: median(f) / f_c, with f_c the pixels of class c / the labeled pixels of the images that show c: a
      rare class is one that is small where it is, not one that is in few images. Eigen and Fergus, 2015,
      arXiv:1411.4734.
    - `log`: 1 / log(1.02 + f_c), with f_c the pixels of class c / all labeled pixels. Paszke et al., ENet, 2016,
      arXiv:1606.02147.

    They are scaled so that the mean weight of a labeled pixel is 1: cross-entropy keeps its size, and with it the
    learning rate and the weights of the other terms keep their meaning.

    Args:
        pixels: labeled pixels of each class `[C]`.
        around: labeled pixels, of any class, of the images that show each class `[C]`.
        scheme: one of the above.

    Returns:
        `[C]`, float64; 0 for a class that has no pixel.

    Raises:
        ValueError: an unknown scheme, or no class has a pixel.
    """
    total = pixels.sum()
    if total == 0:
        raise ValueError("class weights from pixel counts that are all 0: is the training set labeled?")
    present = pixels > 0
    frequency = pixels.double() / total
    if scheme == "log":
        weights = 1 / torch.log(1.02 + frequency)
    elif scheme == "median":
        shown = pixels.double() / around.clamp(min=1)
        weights = shown[present].median() / shown.clamp(min=1e-12)
    else:
        raise ValueError(f"class weights {scheme!r}: one of median, log")
    weights = torch.where(present, weights, 0)
    return weights / (weights * frequency).sum()
