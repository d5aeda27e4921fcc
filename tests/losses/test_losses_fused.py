"""Strip by strip: the same numbers as the terms themselves, in a fraction of the memory."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import examples, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from losses_reference import relative

from distill.batch import UNLABELED, VOID, Outputs, Target
from distill.cli import measure
from distill.losses import TERMS
from distill.losses.chunk_ops import closed_form, is_closed_form
from distill.losses.chunked import fused
from distill.losses.pixel import DKD, KD
from distill.losses.sections import Schedule
from distill.losses.settings import CrossEntropyConfig, DKDConfig, KDConfig
from distill.losses.supervised import CrossEntropy, Focal
from distill.training.objective import Objective

WEIGHTS = [0.5, 2.0, 1.0, 3.0, 1.5]


def networks(seed=0, *, images=2, stride=4, teacher_stride=8, size=(19, 30), align_corners=True, dtype=torch.float64):
    """Two networks' outputs at their strides, padded to a multiple of 8, and a mask."""
    random = torch.Generator().manual_seed(seed)
    padded = (-(-size[0] // 8) * 8, -(-size[1] // 8) * 8)
    outputs = []
    for s in (stride, teacher_stride):
        logits = 3 * torch.randn(images, 5, padded[0] // s, padded[1] // s, generator=random, dtype=torch.float64)
        outputs.append(Outputs(logits.to(dtype), size, padded, align_corners))
    mask = torch.randint(0, 5, (images, *size), generator=random).byte()
    mask[0, :4] = VOID
    mask[-1, :, 5:9] = UNLABELED
    return outputs[0].logits.requires_grad_(), *outputs, mask


def plain(ce_weight, kd_weight, student, teacher, mask, temperature=1.0):
    """The usual way: both networks' logits upsampled, then cross-entropy and KL, each a mean over its pixels."""
    s, t = (
        F.interpolate(o.logits, o.padded_size, mode="bilinear", align_corners=o.align_corners)[
            ..., : o.size[0], : o.size[1]
        ]
        for o in (student, teacher)
    )
    labels = torch.where(mask < UNLABELED, mask.long(), -100)
    ce = F.cross_entropy(s, labels, ignore_index=-100)
    kl = F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1), reduction="none").sum(1)
    kd = kl[mask != VOID].mean() * temperature**2
    return ce_weight * ce + kd_weight * kd, ce, kd


@pytest.mark.parametrize("stride, teacher_stride", [(4, 4), (4, 8), (8, 2), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("strip_logits", [1, 700, 10**9])
def test_fused_is_the_usual_computation(stride, teacher_stride, align_corners, strip_logits):
    x, student, teacher, mask = networks(stride=stride, teacher_stride=teacher_stride, align_corners=align_corners)
    expected, ce, kd = plain(0.7, 3.0, student, teacher, mask, 2.0)
    (slope,) = torch.autograd.grad(expected, x)
    terms, weights, target = [CrossEntropy(), KD(KDConfig(temperature=2.0))], [0.7, 3.0], Target.of(mask)
    for norms in (False, True):
        result = fused(terms, weights, student, teacher, target, strip_logits=strip_logits, norms=norms)
        (ours,) = torch.autograd.grad(result.total, x)
        assert float(result.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert [float(v) for v in result.values] == pytest.approx([float(ce.detach()), float(kd.detach())], rel=1e-12)
        assert relative(ours, slope) < 1e-12
    for norm, weights in zip(result.norms, ((1.0, 0.0), (0.0, 1.0)), strict=True):
        (alone,) = torch.autograd.grad(plain(*weights, student, teacher, mask, 2.0)[0], x)
        assert float(norm) == pytest.approx(float(alone.norm()), rel=1e-12)


@examples(15)
@given(
    seed=st.integers(0, 10**6),
    stride=st.sampled_from([1, 2, 4, 8]),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    strip=st.integers(1, 3000),
    align_corners=st.booleans(),
)
def test_fused_is_what_the_terms_say(seed, stride, size, strip, align_corners):
    x, student, teacher, mask = networks(seed, stride=stride, teacher_stride=4, size=size, align_corners=align_corners)
    terms = [
        CrossEntropy(CrossEntropyConfig(class_weights=WEIGHTS, label_smoothing=0.1)),
        Focal(),
        KD(KDConfig(divergence="jensen_shannon", temperature=3.0, confidence="entropy")),
        KD(KDConfig(standardize=True, confidence="max_probability", confidence_threshold=0.6)),
        DKD(DKDConfig(beta=2.0)),
    ]
    weights = [1.0, 0.5, 2.0, 0.1, 0.3]
    target = Target.of(mask)
    values = [term(student, teacher, target) for term in terms]
    expected = sum(w * v for w, v in zip(weights, values, strict=True))
    (slope,) = torch.autograd.grad(expected, x)
    result = fused(terms, weights, student, teacher, target, strip_logits=strip)
    (ours,) = torch.autograd.grad(result.total, x)
    assert [float(v) for v in result.values] == pytest.approx([float(v.detach()) for v in values], rel=1e-9, abs=1e-12)
    assert (ours - slope).norm() <= 1e-9 * slope.norm() + 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_the_pair_by_hand_is_what_the_terms_say(temperature, class_weights):
    x, student, teacher, mask = networks(8)
    terms = [
        CrossEntropy(CrossEntropyConfig(class_weights=class_weights)),
        KD(KDConfig(temperature=temperature)),
    ]
    values = [term(student, teacher, Target.of(mask)) for term in terms]
    (slope,) = torch.autograd.grad(0.5 * values[0] + 0.1 * values[1], x)
    result = fused(terms, [0.5, 0.1], student, teacher, Target.of(mask))
    assert [float(v) for v in result.values] == pytest.approx([float(v.detach()) for v in values], rel=1e-12)
    assert relative(torch.autograd.grad(result.total, x)[0], slope) < 1e-12


@examples(40)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 20), exponent=st.floats(0, 4))
def test_the_pair_by_hand_is_accurate_in_float32(seed, temperature, exponent):
    random = torch.Generator().manual_seed(seed)
    s, t = ((10**exponent * torch.randn(3, 6, 4, generator=random)).clamp(-1e4, 1e4) for _ in range(2))
    mask = torch.randint(0, 6, (3, 4), generator=random).byte()
    scales = torch.tensor([1.0, 1.0])
    single = closed_form(None, s.new_tensor(temperature), scales, s, t, mask)
    double = closed_form(None, s.double().new_tensor(temperature), scales.double(), s.double(), t.double(), mask)
    for ours, exact in zip(single, double, strict=True):
        assert (ours.double() - exact).norm() <= 1e-3 * exact.norm() + 1e-6


@pytest.mark.parametrize("kd", [KD(KDConfig(temperature=2.0)), KD(KDConfig(divergence="jeffreys"))])
def test_asking_for_norms_changes_no_bit(kd):
    x, student, teacher, mask = networks(10, dtype=torch.float32)
    terms, weights, target = [CrossEntropy(CrossEntropyConfig(class_weights=WEIGHTS)), kd], [0.7, 3.0], Target.of(mask)
    without, with_norms = (fused(terms, weights, student, teacher, target, norms=norms) for norms in (False, True))
    assert torch.equal(without.total, with_norms.total)
    assert torch.equal(torch.stack(without.values), torch.stack(with_norms.values))
    slopes = [torch.autograd.grad(result.total, x)[0] for result in (without, with_norms)]
    assert torch.equal(*slopes)


def test_only_the_plain_pair_goes_closed_form():
    assert is_closed_form([CrossEntropy(CrossEntropyConfig(class_weights=WEIGHTS)), KD(KDConfig(temperature=3.0))])
    for other in (
        [KD(), CrossEntropy()],
        [CrossEntropy(CrossEntropyConfig(label_smoothing=0.1)), KD()],
        [Focal(), KD()],
        [CrossEntropy(), KD(KDConfig(divergence="reverse_kl"))],
        [CrossEntropy(), KD(KDConfig(standardize=True))],
        [CrossEntropy(), KD(KDConfig(confidence="entropy"))],
    ):
        assert not is_closed_form(other)


def test_float32_gradients_are_within_a_millionth_of_float64():
    for stride in (1, 4):
        x, student, teacher, mask = networks(1, stride=stride, teacher_stride=stride, size=(64, 96))
        (slope,) = torch.autograd.grad(plain(1.0, 1.0, student, teacher, mask, 1.0)[0], x)
        y, student, teacher, mask = networks(
            1, stride=stride, teacher_stride=stride, size=(64, 96), dtype=torch.float32
        )
        result = fused([CrossEntropy(), KD()], [1.0, 1.0], student, teacher, Target.of(mask))
        assert relative(torch.autograd.grad(result.total, y)[0].double(), slope) < 1e-6


def test_matrix_products_are_not_rounded():
    """Also where the caller lets them, as for networks; on a CPU without bfloat16 units this setting does nothing."""
    x, student, teacher, mask = networks(2, size=(64, 96), dtype=torch.float32)
    slopes = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            total = fused([CrossEntropy(), KD()], [1.0, 1.0], student, teacher, Target.of(mask)).total
            slopes.append(torch.autograd.grad(total, x)[0])
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")
    assert torch.equal(*slopes)


def test_half_precision_and_autocast():
    x, student, teacher, mask = networks(3, dtype=torch.bfloat16)
    terms, weights = [CrossEntropy(), KD(KDConfig(temperature=20.0))], [1.0, 1.0]
    with torch.autocast("cpu", torch.bfloat16):
        result = fused(terms, weights, student, teacher, Target.of(mask))
    exact = [Outputs(o.logits.detach().double(), o.size, o.padded_size) for o in (student, teacher)]
    exact[0].logits.requires_grad_()
    expected = fused(terms, weights, *exact, Target.of(mask))
    assert result.total.dtype == torch.float32
    assert float(result.values[1]) == pytest.approx(float(expected.values[1]), rel=1e-4)
    (slope,) = torch.autograd.grad(result.total, x)
    assert slope.dtype == torch.bfloat16
    assert relative(slope.double(), torch.autograd.grad(expected.total, exact[0].logits)[0]) < 0.01


def test_channels_last_and_a_scaled_loss():
    x, student, teacher, mask = networks(4)
    terms, weights, target = [CrossEntropy(), KD()], [1.0, 1.0], Target.of(mask)
    (slope,) = torch.autograd.grad(fused(terms, weights, student, teacher, target).total, x)
    y = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    last = Outputs(y, student.size, student.padded_size)
    (scaled,) = torch.autograd.grad(1024 * fused(terms, weights, last, teacher, target).total, y)
    assert torch.allclose(scaled / 1024, slope, rtol=1e-10, atol=1e-15)
    total = fused(terms, weights, student, teacher, target).total
    torch.autograd.grad(total, x, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(total, x)


def test_nothing_to_learn_and_no_teacher():
    x, student, teacher, mask = networks(5)
    mask[:] = VOID
    result = fused([CrossEntropy(), KD()], [1.0, 1.0], student, teacher, Target.of(mask))
    assert result.total == 0 and (torch.autograd.grad(result.total, x)[0] == 0).all()
    mask[:] = 1
    alone = fused([CrossEntropy()], [1.0], student, None, Target.of(mask))
    assert float(alone.total.detach()) == pytest.approx(float(CrossEntropy()(student, None, Target.of(mask)).detach()))
    with pytest.raises(ValueError, match="pass its outputs"):
        fused([KD()], [1.0], student, None, Target.of(mask))
    with pytest.raises(ValueError, match=r"KD with stride='native'"):
        fused([KD(KDConfig(stride="native"))], [1.0], student, teacher, Target.of(mask))


def test_steps_may_be_split():
    x, student, teacher, mask = networks(6, images=4)
    step = Target.of(mask)
    terms, weights = [CrossEntropy(), KD()], [1.0, 2.0]
    (whole,) = torch.autograd.grad(fused(terms, weights, student, teacher, step).total, x)
    parts = []
    for n in range(4):
        s, t = (Outputs(o.logits[n : n + 1], o.size, o.padded_size) for o in (student, teacher))
        target = Target(mask[n : n + 1], step.labeled_count, step.valid_count, 4)
        parts.append(torch.autograd.grad(fused(terms, weights, s, t, target).total, x)[0])
    assert relative(sum(parts), whole) < 1e-12


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("kd", [{}, {"kd__divergence": "jeffreys"}])
def test_compiled_is_the_same(tmp_path, kd):
    objectives = []
    for compiled in (False, True):
        config = tiny_config(tmp_path, compile_loss=compiled, **kd)
        terms = {"cross_entropy": CrossEntropy(), "kd": KD(KDConfig(divergence=config.kd.divergence))}
        warmer = {"kd.temperature": Schedule("linear", end=4.0)}
        objectives.append(Objective(terms, {"cross_entropy": 1.0, "kd": 2.0}, warmer, config.compile_loss))
    x, student, teacher, mask = networks(dtype=torch.float32)
    graphs = torch._dynamo.utils.counters["stats"]
    for step in range(9):
        gradients = []
        for objective in objectives:
            objective.set_step(step, 9)
            total = objective(student, teacher, Target.of(mask)).total
            gradients.append(torch.autograd.grad(total, x)[0])
        assert relative(gradients[1], gradients[0]) < 1e-5
        if step == 2:
            compiled = graphs["unique_graphs"]
    assert graphs["unique_graphs"] == compiled, "a schedule compiles nothing again"


def test_the_benchmark_of_terms_runs(capsys):
    measure.main(["terms", "--device", "cpu", "--shape", "2x3x64x64", "--repeat", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2 : len(TERMS) + 2]] == list(TERMS)
    assert all(float(line.split()[-2]) > 0 for line in lines[2:])


def test_the_benchmark_runs(capsys):
    measure.main(["loss", "--device", "cpu", "--shape", "2x3x16x24", "--repeat", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["torch", *2 * ["2×3×16×24,", "plain", "by"]]
    assert all(float(line.split("gradient error")[1]) < 1e-5 for line in lines if "error" in line)


@pytest.mark.parametrize("stride, limit", [(4, 2.5), (1, 5.0)])
def test_full_resolution_logits_are_never_held(stride, limit):
    size = (128, 192)
    x, student, teacher, mask = networks(
        7, images=8, stride=stride, teacher_stride=stride, size=size, dtype=torch.float32
    )
    target = Target.of(mask)
    logits = 8 * 5 * 128 * 192

    def ours():
        fused([CrossEntropy(), KD()], [1.0, 1.0], student, teacher, target, strip_logits=2**13).total.backward()
        x.grad = None

    def usual():
        plain(1.0, 1.0, student, teacher, mask)[0].backward()
        x.grad = None

    assert measure.peak_bytes(ours, torch.device("cpu")) / logits < limit
    assert measure.peak_bytes(usual, torch.device("cpu")) / logits > 4 * limit
