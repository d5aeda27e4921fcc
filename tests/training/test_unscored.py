"""A teacher without labels is judged by what it says."""

import math

import numpy as np
import pytest
import torch

from distill.batch import UNLABELED, Outputs
from distill.data.datasets import Dataset
from distill.models.asked import Asked
from distill.training.unscored import CONSTANT, listen

CLASSES = ["sky", "road", "car"]


class Says(Asked):
    """A network whose probability of each class follows from the brightness of the pixel."""

    def __init__(self, dark: list[float], bright: list[float]):
        super().__init__()
        self.classes, self.ends = CLASSES[: len(dark)], torch.tensor([dark, bright])

    def forward(self, image, features=()):
        share = image[:, :1].float() / 255
        dark, bright = (end.view(1, -1, 1, 1) for end in self.ends)
        return Outputs.of((dark + share * (bright - dark)).log())


def images(*brightness: int) -> Dataset:
    """Images of one brightness each, of two sizes."""
    mask = np.full((8, 12), UNLABELED, np.uint8)
    return Dataset(
        [str(i) for i in range(len(brightness))],
        lambda i: (np.full((*mask.shape, 3), brightness[i], np.uint8)[: 8 - i % 2], mask[: 8 - i % 2]),
        [()] * len(brightness),
        lambda i: None,
        labeled=False,
    )


def test_shares_and_entropy_are_those_of_the_closed_form():
    said = listen(Says([0.8, 0.1, 0.1], [0.25, 0.5, 0.25]), images(0, 255), "cpu")
    assert said.shares == pytest.approx([8 / 15, 7 / 15, 0])
    entropies = (-0.8 * math.log(0.8) - 0.2 * math.log(0.1), 0.5 * math.log(2) + 0.5 * math.log(4))
    assert said.entropy == pytest.approx((8 * entropies[0] + 7 * entropies[1]) / 15 / math.log(3), abs=1e-6)
    a, b = 8 / 15, 7 / 15
    assert said.spread == pytest.approx(0.55 * math.sqrt(a * b), abs=1e-6)
    assert str(said) == f"says on 2 images: sky 53.3 %, road 46.7 %; entropy {said.entropy:.2f} of the most possible"
    assert said.suspicion is None


def test_classes_that_do_not_exclude_each_other_are_judged_one_by_one():
    """A softmax over them would add up to 1, and be 1 everywhere for a single class."""
    network = Says([0.9, 0.1], [0.6, 0.8])  # probabilities of each class by itself, whose logits it then gives
    network.multilabel = True
    network.forward = lambda image, features=(): Outputs.of(Says.forward(network, image).logits.exp().logit())
    said = listen(network, images(0, 255), "cpu")
    assert said.shares == pytest.approx([1, 7 / 15])
    bits = {p: -p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.9, 0.1, 0.6, 0.8)}
    assert said.entropy == pytest.approx((8 * (bits[0.9] + bits[0.1]) + 7 * (bits[0.6] + bits[0.8])) / 30, abs=1e-5)
    assert said.suspicion is None
    network.classes, network.ends = ["lane"], torch.tensor([[0.1], [0.4]])
    alone = listen(network, images(0, 255), "cpu")
    assert alone.suspicion == "nowhere is any class" and alone.spread > CONSTANT


def test_what_looks_wrong_is_said():
    assert listen(Says([0.1, 0.8, 0.1], [0.2, 0.7, 0.1]), images(0, 255), "cpu").suspicion == "nearly all is 'road'"
    uniform = listen(Says([0.34, 0.33, 0.33], [0.3, 0.3, 0.4]), images(0, 255), "cpu")
    assert uniform.suspicion == "its distributions are nearly uniform" and uniform.spread > CONSTANT
    assert listen(Says([0.2, 0.8], [0.7, 0.3]), images(*[0] * 15, 255), "cpu").suspicion is None  # rare, but there
    assert listen(Says([0.2, 0.8], [0.2, 0.8]), images(0, 255), "cpu").spread < CONSTANT
