"""What labels teach, against the formulas written out and against SMP where it is right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from losses_reference import counted, gradients_of, mean_over_pixels, scene, softmax

from distill.batch import VOID, Outputs, Target
from distill.data.class_weights import class_weights
from distill.losses.settings import CrossEntropyConfig, DiceConfig, FocalConfig, JaccardConfig, OHEMConfig
from distill.losses.supervised import OHEM, CrossEntropy, Dice, Focal, Jaccard, Lovasz, largest_first

WEIGHTS = [0.5, 2.0, 1.0, 3.0]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_its_formula(weights, smoothing):
    student, _, mask = scene(1)
    w = weights or [1.0] * 4

    def pixel(s, _, y):
        log_p = np.log(softmax(s))
        return -(1 - smoothing) * w[y] * log_p[y] - smoothing / 4 * sum(w[k] * log_p[k] for k in range(4))

    term = CrossEntropy(CrossEntropyConfig(class_weights=weights, label_smoothing=smoothing))
    expected = mean_over_pixels(student, None, mask, pixel, labeled=True)
    assert float(term(student, None, Target.of(mask))) == pytest.approx(expected, rel=1e-12)


def test_a_pixel_weighs_what_its_class_weighs_however_the_batch_is_mixed():
    """PyTorch's weighted mean gives a pixel of a rare class less where there are many of them."""
    logits = torch.zeros(1, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    slopes = []
    for labels in ([0, 1, 1, 1], [0, 0, 0, 1]):
        value = CrossEntropy(CrossEntropyConfig(class_weights=[1.0, 9.0]))(
            Outputs(logits, (1, 4), (1, 4)), None, Target.of(torch.tensor([[labels]], dtype=torch.uint8))
        )
        slopes.append(float(torch.autograd.grad(value, logits)[0][0, 1, 0, 3]))
    assert slopes == pytest.approx([-9 / 8, -9 / 8])


def test_class_weights_have_mean_one_over_the_pixels():
    pixels, around = torch.tensor([600, 300, 100, 0]), torch.tensor([1000, 800, 200, 0])
    p = pixels[:3].double() / 1000
    for scheme, raw in (("log", 1 / torch.log(1.02 + p)), ("median", torch.tensor([1 / 0.6, 8 / 3, 2.0]).double())):
        weights = class_weights(pixels, around, scheme)
        assert weights[3] == 0
        assert float((weights[:3] * p).sum()) == pytest.approx(1)
        assert torch.allclose(weights[:3] / weights[0], raw / raw[0])
    with pytest.raises(ValueError, match="all 0"):
        class_weights(torch.zeros(3), torch.zeros(3))


def test_focal_is_its_formula():
    student, _, mask = scene(2)
    for gamma in (0.0, 0.5, 2.0):

        def pixel(s, _, y, gamma=gamma):
            p = softmax(s)[y]
            return -WEIGHTS[y] * (1 - p) ** gamma * np.log(p)

        expected = mean_over_pixels(student, None, mask, pixel, labeled=True)
        value = Focal(FocalConfig(gamma=gamma, class_weights=WEIGHTS))(student, None, Target.of(mask))
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_focal_of_two_classes_is_smp_binary_focal():
    logits = 2 * torch.randn(2, 1, 6, 5, dtype=torch.float64)
    mask = torch.randint(0, 2, (2, 6, 5)).byte()
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    expected = smp.losses.FocalLoss("binary", gamma=2.0)(logits, mask.unsqueeze(1).double())
    value = Focal(FocalConfig(gamma=2.0))(Outputs(two, (6, 5), (6, 5)), None, Target.of(mask))
    assert float(value) == pytest.approx(float(expected), rel=1e-9)


def test_focal_has_a_slope_where_a_pixel_is_surely_right():
    logits = torch.tensor([40.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    value = Focal(FocalConfig(gamma=0.5))(
        Outputs(logits, (1, 1), (1, 1)), None, Target.of(torch.zeros(1, 1, 1, dtype=torch.uint8))
    )
    assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


@pytest.mark.parametrize("threshold, min_kept", [(0.7, 0.0), (0.0, 0.3), (0.05, 0.3), (0.3, 1.0)])
def test_ohem_keeps_the_hard_pixels(threshold, min_kept):
    student, _, mask = scene(3)
    probabilities = sorted(
        softmax(student.logits[n, :, y, x].numpy())[int(mask[n, y, x])] for n, y, x in counted(mask, labeled=True)
    )
    hard = [p for p in probabilities if p < threshold]
    kept = max(len(hard), math.ceil(min_kept * len(probabilities)))
    expected = -np.mean(np.log(probabilities[:kept]))
    value = OHEM(OHEMConfig(threshold=threshold, min_kept=min_kept))(student, None, Target.of(mask))
    assert float(value) == pytest.approx(expected, rel=1e-12)


def overlaps(student: Outputs, mask: torch.Tensor) -> list[tuple[float, float, float]]:
    """For each class that is present: Σ p over its pixels, Σ p over all pixels, its number of pixels."""
    sums = np.zeros((3, student.logits.shape[1]))
    for n, y, x in counted(mask, labeled=True):
        p, label = softmax(student.logits[n, :, y, x].numpy()), int(mask[n, y, x])
        sums[0, label] += p[label]
        sums[1] += p
        sums[2, label] += 1
    return [tuple(column) for column in sums.T if column[2]]  # type: ignore[misc]


@pytest.mark.parametrize("smooth", [0.0, 2.0])
def test_dice_and_jaccard_are_their_formulas(smooth):
    student, _, mask = scene(4)
    mask[mask == 2] = 1  # class 2 is absent: it counts nothing
    sums = overlaps(student, mask)
    assert len(sums) == 3
    dice = np.mean([1 - (2 * i + smooth) / (p + y + smooth) for i, p, y in sums])
    jaccard = np.mean([1 - (i + smooth) / (p + y - i + smooth) for i, p, y in sums])
    assert float(Dice(DiceConfig(smooth=smooth))(student, None, Target.of(mask))) == pytest.approx(dice, rel=1e-12)
    assert float(Jaccard(JaccardConfig(smooth=smooth))(student, None, Target.of(mask))) == pytest.approx(
        jaccard, rel=1e-12
    )


def test_region_losses_are_smp_where_every_class_is_present():
    student, _, mask = scene(5, unlabeled=0)
    labels, target = mask.long(), Target.of(mask)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=VOID)(student.logits, labels)
    assert float(Dice()(student, None, target)) == pytest.approx(float(dice), rel=1e-6)
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=VOID)(student.logits.float(), labels)
    assert float(Lovasz()(student, None, target)) == pytest.approx(float(lovasz), rel=1e-6)
    student, _, mask = scene(5, void=0, unlabeled=0)
    jaccard = smp.losses.JaccardLoss("multiclass")(student.logits, mask.long())
    assert float(Jaccard()(student, None, Target.of(mask))) == pytest.approx(float(jaccard), rel=1e-6)


def test_lovasz_is_one_minus_iou_for_hard_predictions():
    """And so is every value at the corners that it continues."""
    labels = [0, 0, 1, 1, 0]
    for prediction in itertools.product(range(2), repeat=5):
        logits = 1e3 * F.one_hot(torch.tensor(prediction), 2).T.reshape(1, 2, 1, 5).double()
        expected = []
        for c in (0, 1):
            hit = sum(p == c and y == c for p, y in zip(prediction, labels, strict=True))
            union = sum(p == c or y == c for p, y in zip(prediction, labels, strict=True))
            expected.append(1 - hit / union)
        target = Target.of(torch.tensor([[labels]], dtype=torch.uint8))
        value = Lovasz()(Outputs(logits, (1, 5), (1, 5)), None, target)
        assert float(value) == pytest.approx(np.mean(expected), abs=1e-9)


def test_the_sort_of_lovasz_is_pytorch_s():
    values = torch.rand(5000).mul(400).round().div(400)  # many equal ones, zeros among them
    values[:3] = torch.tensor([0.0, 1e-40, 1.0])  # and a denormal
    assert torch.equal(largest_first(values), values.argsort(dim=0, descending=True, stable=True))


def test_lovasz_is_the_sum_over_level_sets():
    """The Lovász extension of 1 - IoU: its mean over thresholds of the errors, integrated by steps."""
    student, _, mask = scene(6)
    truth = np.array([int(mask[i]) for i in counted(mask, labeled=True)])
    p = np.array([softmax(student.logits[n, :, y, x].numpy()) for n, y, x in counted(mask, labeled=True)])
    losses = []
    for c in sorted(set(truth)):
        errors = np.abs((truth == c) - p[:, c])
        steps = np.concatenate([[0], np.sort(errors)])
        total = 0.0
        for low, high in itertools.pairwise(steps):
            wrong = errors >= high
            hit, union = ((truth == c) & ~wrong).sum(), ((truth == c) | wrong).sum()
            total += (high - low) * (1 - hit / union)
        losses.append(total)
    assert float(Lovasz()(student, None, Target.of(mask))) == pytest.approx(np.mean(losses), rel=1e-10)


@pytest.mark.parametrize("classes, side", [(5, 512), (3, 64)])
def test_lovasz_in_float32_is_that_in_float64(classes, side):
    """However many pixels there are: the growth of 1 - IoU is no difference of two numbers near 1."""
    random = torch.Generator().manual_seed(0)
    exact = torch.randn(2, classes, side, side, generator=random, dtype=torch.float64).float().double()
    target = Target.of(torch.randint(0, classes, (2, side, side), generator=random).byte())
    norms = []
    for logits in (exact, exact.float()):
        logits.requires_grad_()
        value = Lovasz()(Outputs(logits, (side, side), (side, side)), None, target)
        norms.append(float(gradients_of(value, [logits]).double().norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


@pytest.mark.parametrize("term", [CrossEntropy(), OHEM(), Dice(), Jaccard(), Lovasz(), Focal()])
def test_perfect_predictions_cost_nothing(term):
    _, _, mask = scene(7)
    labels = mask.long().clamp(max=3)
    logits = (60 * F.one_hot(labels, 4).movedim(-1, 1).double()).requires_grad_()
    value = term(Outputs(logits, (5, 7), (5, 7)), None, Target.of(mask))
    assert 0 <= float(value.detach()) < 1e-9
    assert torch.isfinite(gradients_of(value, [logits])).all()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="label_smoothing: 2"):
        CrossEntropy(CrossEntropyConfig(label_smoothing=2))
    with pytest.raises(ValueError, match="class_weights"):
        CrossEntropy(CrossEntropyConfig(class_weights=[1, -1]))
    with pytest.raises(ValueError, match="gamma: -1"):
        Focal(FocalConfig(gamma=-1))
    with pytest.raises(ValueError, match="min_kept: 3"):
        OHEM(OHEMConfig(min_kept=3))
