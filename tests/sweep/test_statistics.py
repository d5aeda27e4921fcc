"""Intervals and counts against closed forms, brute force and simulated experiments."""

import math

import numpy as np
import pytest
import torch

from distill.metrics import Scores
from distill.sweep.statistics import (
    count_images,
    difference,
    gap_closed,
    iou,
    mean_and_deviation,
    mean_iou,
    stretch,
)


def cells_of(matrices: np.ndarray) -> np.ndarray:
    images, classes, _ = matrices.shape
    flat = matrices.reshape(images, classes * classes)
    image, cell = flat.nonzero()
    return np.stack([image, cell, flat[image, cell]], axis=1)


def test_counts_and_scores_are_those_of_the_confusion_matrix():
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 50, (7, 4, 4)) * (generator.random((7, 4, 4)) < 0.6)
    matrices[:, 2] = 0  # a class that the truth lacks, though it is predicted
    counts = count_images(cells_of(matrices), 7, 4)
    for image, matrix in zip(counts, matrices, strict=True):
        assert image.tolist() == [np.diag(matrix).tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist()]
    scores = Scores(torch.from_numpy(matrices.sum(0)))
    assert mean_iou(counts.sum(0)) == pytest.approx(scores.mean_iou, rel=1e-12)
    assert [None if math.isnan(v) else v for v in iou(counts.sum(0))] == pytest.approx(scores.iou)
    assert mean_iou(np.zeros((3, 4), np.int64)) == 0


def test_mean_and_sample_deviation():
    mean, deviation = mean_and_deviation([1.0, 2.0, 4.0])
    assert (mean, deviation) == (pytest.approx(7 / 3), pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2)))
    assert mean_and_deviation([5.0]) == (5.0, None)


def test_the_gap_that_is_closed():
    assert gap_closed(0.6, 0.5, 0.7) == pytest.approx(0.5)
    assert gap_closed(0.4, 0.5, 0.7) == pytest.approx(-0.5)
    assert gap_closed(0.6, 0.7, 0.7) is None


def test_the_stretch_is_that_of_students_t():
    # Means drawn of n values scatter by s · √((n - 1) / n) / √n; times the stretch and z, that is t · s / √n.
    for seeds, t in ((2, 12.706), (3, 4.303), (5, 2.776), (12, 2.201), (31, 2.042)):
        assert stretch(seeds) * 1.959964 * math.sqrt((seeds - 1) / seeds) == pytest.approx(t, rel=1.5e-3)
    assert stretch(1) == 1


def simulated(generator, seeds: int, images: int, gain: float, of_seed: float = 0.0, of_image: float = 0.3):
    """Two settings of two classes; images and seeds are drawn, pixels right with a probability of their own."""
    hard = generator.normal(0, of_image, (1, images, 1))
    shift = generator.normal(0, of_seed, (2, seeds, 1, 1))
    own = generator.normal(0, of_image, (2, 1, images, 1))  # an image is easier for one setting than for the other
    skill = np.stack([np.full((seeds, images, 2), 1.0), np.full((seeds, images, 2), 1.0 + gain)])
    right = generator.binomial(400, 1 / (1 + np.exp(-(skill + hard + shift + own))))
    wrong = 400 - right
    truth = np.full_like(right, 400)
    return np.stack([right, truth, right + wrong[..., ::-1]], axis=3)


def test_equal_runs_differ_by_exactly_nothing():
    counts = simulated(np.random.default_rng(1), 3, 20, 0)[0]
    found = difference(counts, counts.copy(), 300)
    assert (found.mean, found.low, found.high, found.plain) == (0, 0, 0, (0, 0))


def test_the_interval_of_one_seed_is_that_of_brute_force():
    first, second = simulated(np.random.default_rng(2), 1, 15, 0.3)
    generator, drawn = np.random.default_rng(5), []
    for _ in range(4000):
        picked = generator.integers(0, 15, 15)
        drawn.append(float(mean_iou(second[0][picked].sum(0)) - mean_iou(first[0][picked].sum(0))))
    found = difference(second, first, 4000)
    assert found.mean == float(mean_iou(second[0].sum(0)) - mean_iou(first[0].sum(0)))
    assert (found.low, found.high) == found.plain
    width = found.high - found.low
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06 * width)


def test_seeds_alone_give_students_interval():
    """Images that are all alike leave the scatter of the seeds: mean ± t · s / √n."""
    generator = np.random.default_rng(3)
    right = generator.integers(200, 300, (2, 12, 1, 1)).repeat(2, 3)
    counts = np.stack([right, np.full_like(right, 400), np.full_like(right, 400)], axis=3).repeat(4, 2)
    of_seed = mean_iou(counts[0].sum(1)) - mean_iou(counts[1].sum(1))
    half = 2.201 * of_seed.std(ddof=1) / math.sqrt(12)
    found = difference(counts[0], counts[1], 20_000)
    assert [found.low, found.high] == pytest.approx([of_seed.mean() - half, of_seed.mean() + half], abs=0.08 * half)
    assert found.plain[1] - found.plain[0] < found.high - found.low


def test_the_same_numbers_give_the_same_interval():
    first, second = simulated(np.random.default_rng(4), 3, 20, 0.1)
    assert difference(second, first, 200) == difference(second, first, 200)
    assert difference(second, first, 200).mean == -difference(first, second, 200).mean


def coverage(seeds: int, of_seed: float, of_image: float, experiments: int, gain: float = 0.2) -> tuple[float, float]:
    """How often the interval, and the plain one, hold the difference of very many seeds and images."""
    generator = np.random.default_rng(6)
    many = simulated(generator, 400, 2000, gain, of_seed, of_image).sum(2)
    truth = float((mean_iou(many[1]) - mean_iou(many[0])).mean())
    inside = np.zeros(2)
    for _ in range(experiments):
        first, second = simulated(generator, seeds, 40, gain, of_seed, of_image)
        found = difference(second, first, 250, generator)
        inside += [found.low <= truth <= found.high, found.plain[0] <= truth <= found.plain[1]]
    return tuple(inside / experiments)


@pytest.mark.parametrize(("of_seed", "of_image"), [(0.15, 0.1), (0.03, 0.4)])
def test_the_interval_of_three_seeds_holds_the_truth_as_often_as_it_says(of_seed, of_image):
    held, plain = coverage(3, of_seed, of_image, 200)
    assert held >= 0.90
    assert plain <= held, "few seeds: percentiles alone claim too much"
