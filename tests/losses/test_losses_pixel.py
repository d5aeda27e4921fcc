"""Divergences between the distributions of a pixel, against the formulas written out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from losses_reference import cosine, kl, leaves, mean_over_pixels, relative, scene, softmax

from distill import losses
from distill.batch import VOID, Outputs, Target
from distill.losses.pixel import DKD, KD, certainty, divergence, soften, standardized
from distill.losses.settings import DKDConfig, KDConfig

KINDS = ("forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "soft_cross_entropy")


def formula(kind: str, s: np.ndarray, t: np.ndarray, beta: float = 0.5) -> float:
    m = beta * t + (1 - beta) * s
    return {
        "forward_kl": kl(t, s),
        "reverse_kl": kl(s, t),
        "jeffreys": kl(t, s) + kl(s, t),
        "jensen_shannon": beta * kl(t, m) + (1 - beta) * kl(s, m),
        "soft_cross_entropy": -float(sum(a * np.log(b) for a, b in zip(t, s, strict=True))),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_its_formula(kind, temperature):
    student, teacher, mask = scene(1)
    term = KD(KDConfig(divergence=kind, temperature=temperature, beta=0.3))

    def pixel(s, t, _):
        return temperature**2 * formula(kind, softmax(s, temperature), softmax(t, temperature), 0.3)

    expected = mean_over_pixels(student, teacher, mask, pixel)
    assert float(term(student, teacher, Target.of(mask))) == pytest.approx(expected, rel=1e-12)


@examples(40)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 9), scale=st.floats(0.01, 30), beta=st.floats(0.01, 0.99))
def test_divergences_are_never_negative_and_zero_only_at_equality(seed, classes, scale, beta):
    random = torch.Generator().manual_seed(seed)
    s, t = (F.log_softmax(scale * torch.randn(1, classes, 3, 3, generator=random).double(), 1) for _ in range(2))
    for kind in KINDS:
        assert (divergence(s, t, kind, beta) >= -1e-12).all()
        if kind != "soft_cross_entropy":
            assert divergence(t, t, kind, beta).abs().max() < 1e-12
    assert torch.allclose(
        divergence(s, t, "jeffreys"), divergence(s, t, "forward_kl") + divergence(s, t, "reverse_kl"), atol=1e-10
    )
    assert torch.allclose(divergence(s, t, "jeffreys"), divergence(t, s, "jeffreys"), atol=1e-12)
    assert torch.allclose(divergence(s, t, "jensen_shannon"), divergence(t, s, "jensen_shannon"), atol=1e-12)
    assert divergence(s, t, "jensen_shannon", beta).max() <= np.log(2) + 1e-12
    entropy = -(t.exp() * t).sum(1)
    assert torch.allclose(divergence(s, t, "soft_cross_entropy"), divergence(s, t, "forward_kl") + entropy, atol=1e-10)


def test_jensen_shannon_tends_to_the_relative_entropies():
    s, t = (F.log_softmax(torch.randn(1, 4, 3, 3, dtype=torch.float64), 1) for _ in range(2))
    for beta, limit in ((1e-5, "forward_kl"), (1 - 1e-5, "reverse_kl")):
        scaled = divergence(s, t, "jensen_shannon", beta) / (beta * (1 - beta))
        assert torch.allclose(scaled, divergence(s, t, limit), rtol=1e-3)


def test_forward_covers_the_modes_and_reverse_picks_one():
    """A teacher with two modes and a student that can only have one wide or one narrow bump."""
    places = torch.arange(21, dtype=torch.float64)
    teacher = F.log_softmax(torch.logsumexp(torch.stack([-((places - c) ** 2) / 4.5 for c in (5.0, 15.0)]), 0), 0).view(
        1, -1, 1
    )

    def fit(kind):
        center, log_width = torch.tensor(7.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
        optimizer = torch.optim.Adam([center, log_width], 0.1)
        for _ in range(400):
            bump = F.log_softmax(-((places - center) ** 2) / (2 * (2 * log_width).exp()), 0).view(1, -1, 1)
            optimizer.zero_grad()
            divergence(bump, teacher, kind).mean().backward()
            optimizer.step()
        return float(center.detach()), float(log_width.detach().exp())

    center, width = fit("forward_kl")
    assert center == pytest.approx(10, abs=0.3) and width > 4.5
    center, width = fit("reverse_kl")
    assert center == pytest.approx(5, abs=0.3) and width < 2


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_keeps_its_size_with_the_temperature(kind):
    """T² is there for this: at high temperatures the gradient no longer depends on T."""
    student, teacher, mask = scene(2, scale=0.5)
    norms = []
    for temperature in (20.0, 80.0):
        fresh, (logits, *_) = leaves(student)
        KD(KDConfig(divergence=kind, temperature=temperature))(fresh, teacher, Target.of(mask)).backward()
        norms.append(float(logits.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


@examples(60)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.5, 20),
    exponent=st.floats(0, 4),
    offset=st.sampled_from([0.0, 9e3, -9e3]),
)
def test_float32_is_accurate(seed, kind, temperature, exponent, offset):
    random = torch.Generator().manual_seed(seed)
    s, t = (10**exponent * torch.randn(2, 6, 4, 5, generator=random) + offset for _ in range(2))
    s, t = s.clamp(-1e4, 1e4), t.clamp(-1e4, 1e4)
    results = []
    for dtype in (torch.float32, torch.float64):
        x = s.to(dtype).requires_grad_()
        value = divergence(soften(x, temperature), soften(t.to(dtype), temperature), kind).mean() * temperature**2
        results.append((value.detach().double(), torch.autograd.grad(value, x)[0].double()))
    assert relative(results[0][0], results[1][0]) <= 1e-3
    # Where both are sure of a class, gradients underflow: float32 has no 1e-200.
    error, size = (results[0][1] - results[1][1]).norm(), results[1][1].norm()
    assert error <= 1e-3 * size + 1e-6 * temperature  # gradients of T² KL are of the size T


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_common_logit_costs_no_accuracy(kind):
    """x / T rounds to multiples of 1e-3 near 1e4: as much as a whole unit at T = 0.7 would survive with 3 digits."""
    s, t = (torch.randn(1, 6, 8, 8) + 9e3 for _ in range(2))
    single, double = (
        divergence(soften(s.to(d), 0.7), soften(t.to(d), 0.7), kind) for d in (torch.float32, torch.float64)
    )
    assert relative(single.double(), double) < 2e-6


def test_low_precision_and_autocast_do_not_reach_the_arithmetic():
    student, teacher, mask = scene(3)
    student.logits, teacher.logits = student.logits.bfloat16(), teacher.logits.bfloat16()
    for term in (KD(KDConfig(temperature=20.0)), DKD()):
        exact = Outputs(student.logits.double(), student.size, student.size)
        expected = term(exact, Outputs(teacher.logits.double(), student.size, student.size), Target.of(mask))
        with torch.autocast("cpu", torch.bfloat16):
            value = term(student, teacher, Target.of(mask))
        assert value.dtype == torch.float32
        assert relative(value.double(), expected) < 1e-4


def test_confidence_is_probability_or_entropy():
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    for n in range(2):
        for y in range(3):
            for x in range(4):
                p = softmax(logits[n, :, y, x].numpy())
                assert float(certainty(logits, "max_probability")[n, y, x]) == pytest.approx(p.max())
                entropy = -float((p * np.log(p)).sum())
                assert float(certainty(logits, "entropy")[n, y, x]) == pytest.approx(1 - entropy / np.log(5))
    assert certainty(torch.zeros(1, 5, 1, 1), "entropy").item() == pytest.approx(0, abs=1e-6)
    assert certainty(torch.zeros(1, 1, 1, 1), "entropy").item() == 1


@pytest.mark.parametrize("kind", ["max_probability", "entropy"])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_confidence_gates_or_weights(kind, threshold):
    student, teacher, mask = scene(4)
    sure = certainty(teacher.logits, kind)

    def weight(s, t, _):
        p = softmax(t)
        c = p.max() if kind == "max_probability" else 1 + float((p * np.log(p)).sum()) / np.log(4)
        return (c if threshold is None else float(c >= threshold)) * 4 * kl(softmax(t, 2), softmax(s, 2))

    assert threshold is None or 0 < int((sure >= threshold).sum()) < sure.numel()
    term = KD(KDConfig(temperature=2.0, confidence=kind, confidence_threshold=threshold))
    expected = mean_over_pixels(student, teacher, mask, weight)
    assert float(term(student, teacher, Target.of(mask))) == pytest.approx(expected, rel=1e-12)


def test_standardization_is_a_z_score_over_the_classes():
    student, teacher, mask = scene(5)

    def pixel(s, t, _):
        s, t = ((x - x.mean()) / x.std() for x in (s, t))
        return 9 * kl(softmax(t, 3), softmax(s, 3))

    term = KD(KDConfig(temperature=3.0, standardize=True))
    expected = mean_over_pixels(student, teacher, mask, pixel)
    assert float(term(student, teacher, Target.of(mask))) == pytest.approx(expected, rel=1e-7)
    stretched = Outputs(5 * teacher.logits + 3, teacher.size, teacher.size)
    assert float(term(stretched, teacher, Target.of(mask))) == pytest.approx(0, abs=1e-12)
    flat = torch.zeros(1, 3, 2, 2, requires_grad=True)
    standardized(flat).square().sum().backward()
    assert torch.isfinite(flat.grad).all()


def others(name: str, s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss as other projects write it, on maps without void."""
    log_s, soft_t = F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1)
    if name == "CIRKD":  # pixels become rows first
        rows_s, rows_t = (x.permute(0, 2, 3, 1).reshape(-1, s.shape[1]) for x in (log_s, soft_t))
        return F.kl_div(rows_s, rows_t, reduction="batchmean") * temperature**2
    if name == "MMRazor":  # sum over everything / images
        return temperature**2 * F.kl_div(log_s, soft_t, reduction="none").sum() / len(s)
    if name == "torchdistill":
        return temperature**2 * F.kl_div(log_s, soft_t, reduction="batchmean")
    return F.kl_div(log_s, soft_t, reduction="none").mean() * temperature**2  # zh320


@pytest.mark.parametrize(
    ("name", "factor"), [("CIRKD", "1"), ("MMRazor", "H·W"), ("torchdistill", "H·W"), ("zh320", "1/C")]
)
@pytest.mark.parametrize("stride", ["full", "native"])
def test_weights_of_other_projects_are_converted_as_documented(name, factor, stride):
    student, teacher, mask = scene(6, void=0, unlabeled=0)
    _, classes, height, width = student.logits.shape
    value = float(KD(KDConfig(temperature=4.0, stride=stride))(student, teacher, Target.of(mask)))
    converted = value * {"1": 1, "H·W": height * width, "1/C": 1 / classes}[factor]
    assert converted == pytest.approx(float(others(name, student.logits, teacher.logits, 4.0)), rel=1e-12)
    readme = Path(losses.__file__).with_name("README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| {name} |"))
    assert row.split("|")[3].strip() == factor


def test_dkd_is_its_formula():
    student, teacher, mask = scene(7)

    def pixel(s, t, y):
        p, q = softmax(t, 3), softmax(s, 3)
        target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        rest = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        return 9 * (1.5 * target + 2 * rest)

    term = DKD(DKDConfig(alpha=1.5, beta=2.0, temperature=3.0))
    expected = mean_over_pixels(student, teacher, mask, pixel, labeled=True)
    assert float(term(student, teacher, Target.of(mask))) == pytest.approx(expected, rel=1e-10)


@examples(30)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 7), temperature=st.floats(0.5, 20))
def test_kd_is_tckd_and_nckd_weighted_by_what_the_teacher_leaves(seed, classes, temperature):
    student, teacher, mask = scene(seed, classes=classes)
    labels = mask.long().clamp(max=classes - 1).unsqueeze(1)
    left = 1 - F.softmax(teacher.logits / temperature, 1).gather(1, labels).squeeze(1)
    mask = labels.squeeze(1).byte()
    parts = [
        DKD(DKDConfig(alpha=a, beta=b, temperature=temperature)).per_pixel(student.logits, teacher.logits, mask)
        for a, b in ((1, 0), (0, 1))
    ]
    whole = KD(KDConfig(temperature=temperature)).per_pixel(student.logits, teacher.logits, mask)
    assert torch.allclose(parts[0] + left * parts[1], whole, rtol=1e-8, atol=1e-12)


def test_dkd_survives_sure_teachers_and_students():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]])
    student = logits.T.reshape(1, 3, 1, 3).requires_grad_()
    teacher = logits.flip(0).T.reshape(1, 3, 1, 3)
    for label in range(3):
        value = DKD(DKDConfig(temperature=0.5)).total(student, teacher, torch.full((1, 1, 3), label, dtype=torch.uint8))
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, student)[0]).all()


def test_native_stride_counts_each_cell_as_its_pixels():
    random = torch.Generator().manual_seed(0)
    s, t = (torch.randn(1, 3, 2, 3, generator=random, dtype=torch.float64) for _ in range(2))
    student, teacher = (Outputs(x, (4, 9), (4, 9), align_corners=False) for x in (s, t))
    mask = torch.zeros(1, 4, 9, dtype=torch.uint8)
    mask[0, :2, :2] = VOID  # of the 2 × 3 pixels of the first cell, 4
    mask[0, 2:, 3:6] = VOID  # all of the cell in the middle below
    weights = [[2, 6, 6], [6, 0, 6]]
    expected = sum(
        weights[y][x] * kl(softmax(t[0, :, y, x].numpy()), softmax(s[0, :, y, x].numpy()))
        for y in range(2)
        for x in range(3)
    )
    value = KD(KDConfig(stride="native"))(student, teacher, Target.of(mask))
    assert float(value) == pytest.approx(expected / 26, rel=1e-12)


def test_native_stride_is_close_to_full_resolution_on_smooth_maps():
    smooth = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    s, t = (F.interpolate(x, (16, 16), mode="bicubic") for x in (smooth, smooth + 0.5 * smooth.flip(0)))
    s.requires_grad_()
    mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
    student, teacher = (Outputs(x, (64, 64), (64, 64)) for x in (s, t))
    grads = [
        torch.autograd.grad(KD(KDConfig(stride=stride))(student, teacher, Target.of(mask)), s)[0].flatten().numpy()
        for stride in ("full", "native")
    ]
    assert cosine(*grads) > 0.97


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 0},
        {"beta": 1.0},
        {"divergence": "kl"},
        {"confidence": "yes"},
        {"confidence_threshold": 2.0},
        {"stride": "4"},
    ],
)
def test_bad_settings_are_refused(settings_):
    (name,) = settings_
    with pytest.raises(ValueError, match=f"^{name}: "):
        KD(KDConfig(**settings_))
    with pytest.raises(ValueError, match="temperature: -1"):
        DKD(DKDConfig(temperature=-1))


@pytest.mark.parametrize(("kind", "center", "width"), [("forward_kl", 10.0, 7.1), ("reverse_kl", 5.0, 1.5)])
def test_forward_kl_covers_both_modes_and_reverse_kl_picks_one(kind, center, width):
    places = torch.arange(21, dtype=torch.float64)

    def bump(at, wide):
        return -0.5 * ((places - at) / wide) ** 2

    teacher = torch.logsumexp(torch.stack([bump(5, 1.5), bump(15, 1.5)]), 0).log_softmax(0)[None]
    fits = []
    for start in (6.0, 10.0):  # the better of two minima
        x = torch.tensor([start, math.log(2)], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([x], 0.05)
        for _ in range(600):
            value = divergence(bump(x[0], x[1].exp()).log_softmax(0)[None], teacher, kind).sum()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        fits.append((value.item(), x[0].item(), x[1].exp().item()))
    _, at, wide = min(fits)
    assert at == pytest.approx(center, abs=0.05)
    assert wide == pytest.approx(width, abs=0.05)
