"""What holds for every term: void does not count, precision, invariances, and steps split in any way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from losses_reference import change, channels_of, gradients_of, leaves, relative, scene, select, shares
from torch import nn

from distill import losses
from distill.batch import UNLABELED, VOID, Outputs, Target
from distill.losses import KD, TERMS, DKDConfig, KDConfig

LABELS = ("cross_entropy", "ohem", "dice", "jaccard", "lovasz", "focal")
ON_LOGITS = (*LABELS, "kd", "dkd", "dist", "cwd")
SIZES = [(3, 5), (5, 7), (1, 1)]

SETTINGS = {
    "cross_entropy": {"class_weights": [0.5, 2.0, 1.0, 3.0], "label_smoothing": 0.1},
    "focal": {"class_weights": [0.5, 2.0, 1.0, 3.0]},
    "kd": {"temperature": 2.0},
    "hint": {"layers": ["encoder.4", "decoder"]},
    "cirkd": {"region_slots": 3, "pixel_slots": 4},
    # Without holes: these come from the random generator, and its adapter looks at neighbors.
    "mgd": {"layers": ["decoder"], "mask_ratio": 0.0},
}

VARIANTS = {
    "kd_reverse": ("kd", {"divergence": "reverse_kl"}),
    "kd_js": ("kd", {"divergence": "jensen_shannon", "beta": 0.3}),
    "kd_sure": ("kd", {"confidence": "entropy", "standardize": True}),
    "kd_native": ("kd", {"stride": "native", "temperature": 3.0}),
    "dist_inter": ("dist", {"gamma": 0.0}),
    "cwd_decoder": ("cwd", {"layers": ["decoder"]}),
    "cirkd_batch": ("cirkd", {"pixel_memory": 0, "region_memory": 0}),
}
NAMES = (*TERMS, *VARIANTS)


def make(name: str, student: Outputs, teacher: Outputs, classes: int = 4) -> nn.Module:
    base, options = VARIANTS.get(name, (name, SETTINGS.get(name, {})))
    options = {k: v[:classes] if k == "class_weights" else v for k, v in options.items()}
    torch.manual_seed(0)
    term = TERMS[base](TERMS[base].Config(**options))
    term.build(channels_of(student), channels_of(teacher))
    return term.double()


def run(term: nn.Module, student: Outputs, teacher: Outputs, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Value, and gradients at all of the student's maps and at the adapters."""
    fresh, inputs = leaves(student)
    torch.manual_seed(0)
    value = term(fresh, teacher, target)
    return value.detach(), gradients_of(value, [*inputs, *term.parameters()])


def test_every_term_is_named():
    assert set(SETTINGS) | {base for base, _ in VARIANTS.values()} <= set(TERMS)
    for name, term in TERMS.items():
        assert term.needs_teacher == (name not in LABELS)
        assert term.needs_labels == (name in (*LABELS, "dkd", "ifvd"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_right(name, size):
    student, teacher, mask = scene(1, size=size, teacher_channels=1, void=0.15)
    if size == (1, 1):
        mask[:] = torch.tensor([1, 2], dtype=torch.uint8).view(2, 1, 1)
    term = make(name, student, teacher)
    used = [k for k in ("logits", *student.features) if k == "logits" or k in term.features]

    def function(*maps):
        features = dict(zip(used[1:], maps[1:], strict=True))
        torch.manual_seed(0)
        return term.eval()(Outputs(maps[0], size, size, features=features), teacher, Target.of(mask))

    maps = [(student.logits if k == "logits" else student.features[k]).clone().requires_grad_() for k in used]
    assert torch.autograd.gradcheck(function, maps, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_void_does_not_count(name):
    """Whatever networks say at void pixels, value and gradient stay the same, and no gradient goes there."""
    student, teacher, mask = scene(2, void=0.3)
    uncounted = mask == VOID
    if TERMS[VARIANTS.get(name, (name,))[0]].needs_labels:
        uncounted = mask >= UNLABELED
    term = make(name, student, teacher).eval()
    noise = torch.Generator().manual_seed(5)

    def disturb(x):
        return torch.where(uncounted.unsqueeze(1), 30 * torch.randn(x.shape, generator=noise, dtype=x.dtype), x)

    # The 3×3 convolutions of MGD's adapter look at the student's neighbors.
    other = student if name == "mgd" else change(student, disturb)
    value, grads = run(term, student, teacher, Target.of(mask))
    value_2, grads_2 = run(term, other, change(teacher, disturb), Target.of(mask))
    assert float(value) > 0
    assert float(value_2) == pytest.approx(float(value), rel=1e-12)
    assert relative(grads_2, grads) < 1e-10
    if name != "mgd":
        fresh, inputs = leaves(student)
        for x, g in zip(
            inputs, torch.autograd.grad(term(fresh, teacher, Target.of(mask)), inputs, allow_unused=True), strict=True
        ):
            assert g is None or (g.movedim(1, -1)[uncounted] == 0).all(), x.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", [VOID, UNLABELED])
def test_batches_without_anything_to_learn_give_zero(name, fill):
    student, teacher, _ = scene(3)
    mask = torch.full((2, 5, 7), fill, dtype=torch.uint8)
    term = make(name, student, teacher)
    value, grads = run(term, student, teacher, Target.of(mask))
    assert torch.isfinite(value) and torch.isfinite(grads).all()
    if fill == VOID or term.needs_labels:
        assert value == 0 and (grads == 0).all()
    else:
        assert value > 0 and grads.norm() > 0


@pytest.mark.parametrize("name", NAMES)
def test_one_void_image_beside_another_is_harmless(name):
    student, teacher, mask = scene(4)
    mask[0] = VOID
    value, grads = run(make(name, student, teacher), student, teacher, Target.of(mask))
    assert torch.isfinite(value) and torch.isfinite(grads).all() and grads.norm() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
@pytest.mark.parametrize("classes", [1, 2])
def test_one_class_and_one_pixel_give_numbers(name, size, classes):
    student, teacher, mask = scene(5, classes=classes, size=size, void=0, unlabeled=0)
    for scale in (1.0, 0.0, 1e4):  # maps that are all 0 too, and huge ones
        changed = change(student, lambda x, scale=scale: (x * scale).float())
        term = make(name, student, teacher, classes).float()
        value, grads = run(term, changed, change(teacher, torch.Tensor.float), Target.of(mask))
        assert torch.isfinite(value) and torch.isfinite(grads).all()


def all_zero(x):
    return x * 0


def constant(x):
    return x * 0 + 0.1


def one_place_zero(x):
    return x.index_fill(-1, torch.tensor([2]), 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [all_zero, constant, one_place_zero])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_maps_that_say_nothing_have_no_steep_slope(name, function, whose):
    """Directions and correlations of what has none are 0 / 0: no gradient comes from there."""
    student, teacher, mask = scene(17, classes=3, size=(16, 16))
    student, teacher = (change(o, lambda x: x.float()) for o in (student, teacher))
    term = make(name, student, teacher, 3).float()
    said = {"student": student, "teacher": teacher}
    said[whose] = change(said[whose], function)
    value, grads = run(term, said["student"], said["teacher"], Target.of(mask))
    assert torch.isfinite(value)
    assert grads.norm() < 20


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name):
    student, teacher, mask = scene(6)
    student, teacher = (change(o, lambda x: x.bfloat16()) for o in (student, teacher))
    exact = [change(o, lambda x: x.float()) for o in (student, teacher)]
    term = make(name, student, teacher).float()
    expected, _ = run(term, *exact, Target.of(mask))
    term = make(name, student, teacher).float()
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = run(term, student, teacher, Target.of(mask))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@examples(15)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), void=st.floats(0, 0.9))
@pytest.mark.parametrize("name", NAMES)
def test_values_are_never_negative_and_float32_agrees_with_float64(name, seed, scale, void):
    student, teacher, mask = scene(seed, scale=scale, void=void, size=(3, 5))
    student, teacher = (change(o, lambda x: x.float().double()) for o in (student, teacher))
    value, _ = run(make(name, student, teacher), student, teacher, Target.of(mask))
    single = [change(o, torch.Tensor.float) for o in (student, teacher)]
    value_32, _ = run(make(name, student, teacher).float(), *single, Target.of(mask))
    assert value >= -1e-12
    assert abs(float(value_32) - float(value)) <= 1e-3 * float(value) + 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*LABELS, "mgd")])
def test_zero_at_equality(name):
    """And no gradient there; adapters are set to pass maps on."""
    _, teacher, mask = scene(7)
    term = make("cirkd_batch" if name == "cirkd" else name, teacher, teacher)
    for adapter in term.adapters.values() if hasattr(term, "adapters") else ():
        if isinstance(adapter, nn.Conv2d):
            nn.init.dirac_(adapter.weight)
            nn.init.zeros_(adapter.bias)
    value, grads = run(term, teacher, teacher, Target.of(mask))
    assert abs(float(value)) < 1e-12
    assert grads.norm() < 1e-8


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(ON_LOGITS) and n != "cwd_decoder"])
def test_logit_shifts_do_not_matter(name):
    """A constant on all classes of a pixel; for channel-wise distillation, on all pixels of a channel."""
    student, teacher, mask = scene(8)
    axes = (2, 4, 1, 1) if name == "cwd" else (2, 1, 5, 7)

    def shift(outputs, seed):
        noise = 5 * torch.randn(axes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return Outputs(outputs.logits + noise, outputs.size, outputs.padded_size, features=outputs.features)

    term = make(name, student, teacher)
    value, grads = run(term, student, teacher, Target.of(mask))
    shifted, grads_2 = run(term, shift(student, 1), shift(teacher, 2), Target.of(mask))
    assert float(shifted) == pytest.approx(float(value), rel=1e-7)
    assert relative(grads_2, grads) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_classes_does_not_matter(name):
    student, teacher, mask = scene(9)
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.where(mask < UNLABELED, order.argsort()[mask.long().clamp(max=3)], mask.long()).byte()
    term = make(name, student, teacher).eval()
    value, _ = run(term, student, teacher, Target.of(mask))
    if hasattr(term, "class_weights") and term.class_weights is not None:
        term.class_weights = term.class_weights[order]
    moved = [Outputs(o.logits[:, order], o.size, o.padded_size, features=o.features) for o in (student, teacher)]
    assert float(run(term, *moved, Target.of(renamed))[0]) == pytest.approx(float(value), rel=1e-10)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "mgd"])
def test_the_order_of_pixels_does_not_matter(name):
    student, teacher, mask = scene(10)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))

    def move(x):
        return x.flatten(-2)[..., order].view(x.shape)

    term = make(name, student, teacher).eval()
    value, _ = run(term, student, teacher, Target.of(mask))
    moved, _ = run(term, change(student, move), change(teacher, move), Target.of(move(mask)))
    assert float(moved) == pytest.approx(float(value), rel=1e-10)


# Terms that relate the pixels of a micro-batch: another split is another loss. The others are exact; those of the
# second kind relate the pixels of an image, and are exact for equally many images a micro-batch.
RELATIONAL = ("ohem", "dice", "jaccard", "lovasz", "dist", "cirkd", "cirkd_batch")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in RELATIONAL])
@pytest.mark.parametrize("parts, processes", [(4, 1), (2, 2), (4, 2), (3, 3)])
def test_steps_may_be_split(name, parts, processes):
    """One batch, micro-batches, and processes whose gradients are averaged: the same gradient.

    The network is a 1×1 convolution, the images between 2 % and 100 % void.
    """
    images = 12
    _, teacher, mask = scene(11, images=images, size=(5, 10), void=0, unlabeled=0.1)
    draw = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1))
    void = torch.tensor([0.02, 0.3, 0.9, 0.02, 0.5, 0.0, 0.1, 0.98, 0.7, 1.0, 1.0, 1.0]).view(-1, 1, 1)
    mask[draw < void] = VOID
    inputs, _, _ = scene(12, images=images, size=(5, 10))
    network = nn.ModuleDict(
        {n.replace(".", "_"): nn.Conv2d(x.shape[1], x.shape[1], 1).double() for n, x in inputs.features.items()}
        | {"logits": nn.Conv2d(4, 4, 1).double()}
    )
    term = make(name, teacher, teacher)
    parameters = [*network.parameters(), *term.parameters()]

    def forward(part):
        features = {n: network[n.replace(".", "_")](x[part]) for n, x in inputs.features.items()}
        return Outputs(network["logits"](inputs.logits[part]), (5, 10), (5, 10), features=features)

    whole = gradients_of(term(forward(slice(None)), teacher, Target.of(mask)), parameters)
    split = torch.zeros_like(whole)
    for i, target in enumerate(shares(mask, parts, processes)):
        part = slice(i * images // parts, (i + 1) * images // parts)
        value = term(forward(part), select(teacher, part), target)
        split += gradients_of(value, parameters) / processes
    assert whole.norm() > 0
    assert relative(split, whole) < 1e-10


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_terms_average_over_micro_batches(name):
    student, teacher, mask = scene(13, images=4)
    step = Target.of(mask)
    term = make(name, student, teacher).eval()
    parts = [slice(0, 2), slice(2, 4)]
    alone = [Target.of(mask[part]) for part in parts]
    split = [Target(mask[part], step.labeled_count, step.valid_count, 2) for part in parts]
    values = [run(term, select(student, p), select(teacher, p), t)[0] for p, t in zip(parts, split, strict=True)]
    if name == "dist":  # its relation between classes is a mean over pixels
        term.config = replace(term.config, beta=0.0)
        values = [run(term, select(student, p), select(teacher, p), t)[0] for p, t in zip(parts, split, strict=True)]
    expected = [run(term, select(student, p), select(teacher, p), t)[0] for p, t in zip(parts, alone, strict=True)]
    assert float(sum(values)) == pytest.approx(float(sum(expected)) / 2, rel=1e-12)


def test_settings_may_change_between_steps():
    student, teacher, mask = scene(14)
    term = KD(KDConfig(temperature=1.0))
    term.config = replace(term.config, temperature=5.0)
    expected = KD(KDConfig(temperature=5.0))(student, teacher, Target.of(mask))
    assert term(student, teacher, Target.of(mask)) == expected


@pytest.mark.parametrize("name", [n for n in TERMS if n not in LABELS])
def test_a_missing_teacher_is_named(name):
    student, teacher, mask = scene(15)
    with pytest.raises(ValueError, match="compares with a teacher"):
        make(name, student, teacher)(student, None, Target.of(mask))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LABELS])
def test_no_gradient_goes_to_the_teacher(name):
    student, teacher, mask = scene(16)
    fresh, inputs = leaves(teacher)
    value = make(name, student, teacher)(change(student, torch.Tensor.requires_grad_), fresh, Target.of(mask))
    assert all(g is None for g in torch.autograd.grad(value, inputs, allow_unused=True))


def test_no_loss_divides_closed_form():
    """Forgetting the step's count is a silent error, so only `Target` knows how to take a mean over a step."""
    for path in Path(losses.__file__).parent.glob("*.py"):
        divisions = re.findall(r"/ *\w*\.(?:valid_count|labeled_count|micro_batches)", path.read_text())
        assert not divisions, f"{path.name}: {divisions[0]}: use target.mean_over_pixels or mean_over_micro_batches"


@pytest.mark.parametrize("parts", [1, 3])
def test_the_shares_of_a_step_add_up_to_its_mean(parts):
    mask = torch.tensor([[0, 1, VOID], [UNLABELED, VOID, VOID], [1, UNLABELED, 0]]).byte().unsqueeze(1)
    values = torch.arange(9.0, dtype=torch.float64).view(3, 1, 3)
    totals = [0.0, 0.0, 0.0]
    for rows, target in zip(values.chunk(parts), shares(mask, parts, 1), strict=True):
        totals[0] += target.mean_over_pixels(rows[target.valid].sum())
        totals[1] += target.mean_over_pixels(rows[target.labeled].sum(), labeled=True)
        totals[2] += target.mean_over_micro_batches(rows.mean())
    assert totals == [values[mask != VOID].mean(), values[mask < UNLABELED].mean(), values.mean()]


def test_losses_take_the_tensors_of_any_loop():
    """The README's snippet as it stands: plain logits of two networks at their own strides, and a mask."""
    size = (24, 32)
    student_logits = torch.randn(2, 5, 6, 8, requires_grad=True)
    teacher_logits = torch.randn(2, 5, 12, 16)
    mask = torch.randint(0, 5, (2, *size)).byte()
    mask[0, :4] = VOID
    given = {"student_logits": student_logits, "teacher_logits": teacher_logits, "mask": mask, "size": size}
    readme = Path(losses.__file__).with_name("README.md").read_text(encoding="utf-8")
    exec(readme.split("```python\n")[1].split("```")[0], given)

    s, t = (F.interpolate(x.detach(), size, mode="bilinear") for x in (student_logits, teacher_logits))
    kl = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="none").sum(1)
    assert float(given["loss"].detach()) == pytest.approx(float(4 * kl[mask != VOID].mean()), rel=1e-5)
    assert student_logits.grad.norm() > 0
    assert KD()(Outputs.of(s), Outputs.of(t), Target.of(mask)) > 0, "logits of the images' size need no size"


def test_other_tensors_and_settings_are_named():
    with pytest.raises(ValueError, match=r"logits of shape \[5, 6, 8\]: must be \[N, C, h, w\]"):
        Outputs.of(torch.zeros(5, 6, 8))
    with pytest.raises(ValueError, match=r"mask of torch\.int64: must be uint8"):
        Target.of(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="KD takes settings of type KDConfig, not DKDConfig"):
        KD(DKDConfig())


def test_every_loss_is_exported_with_its_settings():
    for loss in TERMS.values():
        assert getattr(losses, loss.__name__) is loss
        assert getattr(losses, loss.Config.__name__) is loss.Config
        assert loss.Config.__name__ == f"{loss.__name__}Config"
    with pytest.raises(AttributeError, match="nothing"):
        losses.nothing  # noqa: B018
