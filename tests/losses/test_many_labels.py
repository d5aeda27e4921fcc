"""Any number of classes at a pixel: each term is what it should be for C questions of yes or no."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config

from distill import models
from distill.batch import UNLABELED, VOID, Outputs, Target
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.losses.many_labels import Views
from distill.training.objective import Objective, build_objective

CLASSES, SIZE = 3, (5, 7)
USABLE = [name for name, term in TERMS.items() if term.many_labels != "cannot"]
SMALL = {"skd": {"layers": ["decoder"], "side": 4}, **{n: {"layers": ["decoder"]} for n in ("hint", "at", "mgd")}}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(seed: int, size=SIZE, channels: int = CLASSES) -> Outputs:
    logits = draw(2, channels, *size, seed=seed).requires_grad_()
    return replace(Outputs.of(logits, SIZE), features={"decoder": draw(2, 4, *size, seed=seed + 50)})


def labels() -> torch.Tensor:
    """Planes with void and unlabeled places that differ from class to class, and one class that is nowhere."""
    mask = torch.randint(0, 2, (2, CLASSES, *SIZE), generator=torch.Generator().manual_seed(3)).byte()
    mask[0, 0, :2], mask[1, 2, 3:, :4], mask[:, 1, 4] = VOID, VOID, UNLABELED
    mask[0, 2][mask[0, 2] < 2], mask[1, 2][mask[1, 2] < 2] = 0, 0
    return mask


def made(name: str):
    settings = SMALL.get(name, {})
    term = TERMS[name](TERMS[name].Config(**settings)).double()
    torch.manual_seed(0)
    term.build({"logits": CLASSES, "decoder": 4}, {"logits": CLASSES, "decoder": 4})
    return term.double()


def value_of(name: str, student: Outputs, teacher: Outputs, mask: torch.Tensor) -> torch.Tensor:
    objective = Objective({name: made(name)}, {name: 1.0}, multilabel=True).double()
    torch.manual_seed(1)  # MGD's holes
    return objective(student, teacher, Target.of(mask)).total


def bce(z, mask):
    known = mask < UNLABELED
    return F.binary_cross_entropy_with_logits(z[known], mask[known].to(z)), known


def kl(zs, zt, mask, T=1.0):
    """KL(teacher‖student) of each sigmoid in closed form; the reverse is that with the two changed over."""
    valid, s, t = mask != VOID, zs / T, zt / T
    return (T**2 * (F.softplus(s) - F.softplus(t) - t.sigmoid() * (s - t)))[valid].mean()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("grid", [SIZE, (3, 4)], ids=["full", "coarse"])
@pytest.mark.parametrize("kinds", ["bce", "forward_kl", "reverse_kl", "jeffreys", "bce and forward_kl"])
def test_values_and_gradients_have_the_closed_form(kinds, grid, temperature):
    student, teacher, mask = outputs(1, grid), outputs(2, grid), labels()
    zs, zt = student.upsampled(), teacher.upsampled().detach()
    terms, expected = {}, torch.zeros((), dtype=torch.float64)
    if "bce" in kinds:
        terms["cross_entropy"] = TERMS["cross_entropy"]()
        expected = expected + bce(zs, mask)[0]
    if kinds != "bce":
        divergence = kinds.removeprefix("bce and ")
        terms["kd"] = TERMS["kd"](TERMS["kd"].Config(divergence=divergence, temperature=temperature))
        forward, reverse = kl(zs, zt, mask, temperature), kl(zt, zs, mask, temperature)
        expected = expected + {"forward_kl": forward, "reverse_kl": reverse}.get(divergence, forward + reverse)
    loss = Objective(terms, dict.fromkeys(terms, 1.0), multilabel=True)(student, teacher, Target.of(mask), norms=True)
    assert abs(loss.total - expected) <= 1e-12 and expected > 0.1
    (found,), (wanted,) = (torch.autograd.grad(x, student.logits, retain_graph=True) for x in (loss.total, expected))
    assert (found - wanted).abs().max() <= 1e-12 and wanted.abs().max() > 1e-4
    if len(terms) == 1:  # how strongly it pulls at the logits
        (norm,) = loss.gradient_norms.values()
        assert norm.item() == pytest.approx(wanted.norm().item(), rel=1e-12)


@pytest.mark.parametrize("name", USABLE)
def test_void_counts_in_no_term_and_what_has_no_label_in_none_that_needs_one(name):
    term, mask = TERMS[name], labels()
    mask[:, :, :, 0] = VOID  # in every class, as feature maps need it
    student, teacher = outputs(1), outputs(2)
    void = mask == VOID if term.many_labels != "maps" else (mask == VOID).all(1, keepdim=True).expand_as(mask)
    other, changed = outputs(1), outputs(2)
    for one in (other, changed):
        one.logits.data[void] += 7.0
        one.features["decoder"][void[:, :1].expand_as(one.features["decoder"])] += 7.0
    before, after = (value_of(name, s, t, mask) for s, t in ((student, teacher), (other, changed)))
    assert before.isfinite()
    if name != "mgd":  # whose 3×3 convolutions see void, as the networks do
        assert before.item() == pytest.approx(after.item(), rel=1e-12, abs=1e-12)
    unlabeled = mask.masked_fill(mask < UNLABELED, UNLABELED)
    nothing = value_of(name, student, teacher, unlabeled)
    assert nothing == 0 if term.needs_labels else nothing > 0
    assert value_of(name, student, teacher, torch.full_like(mask, VOID)) == 0


@pytest.mark.parametrize("name", ["dice", "jaccard", "lovasz"])
def test_losses_of_regions_are_means_over_the_classes(name):
    student, mask = outputs(1), labels()
    parts = [
        TERMS[name]()(Outputs.of(F.pad(z[:, None], (0, 0, 0, 0, 1, 0))), None, Target.of(m.contiguous()))
        for z, m in zip(student.logits.unbind(1), mask.unbind(1), strict=True)
    ]
    assert value_of(name, student, outputs(2), mask).item() == pytest.approx(sum(parts).item() / CLASSES, rel=1e-12)


@pytest.mark.parametrize("name", ["hint", "at", "skd", "cwd"])
def test_maps_are_compared_as_ever_where_void_is_the_same_in_all_classes(name):
    student, teacher = outputs(1), outputs(2)
    whole = torch.zeros(2, *SIZE, dtype=torch.uint8)
    whole[0, :2], whole[1, :, 5:] = VOID, VOID
    expected = made(name)(student, teacher, Target.of(whole))
    planes = whole[:, None].expand(-1, CLASSES, -1, -1).contiguous()
    assert value_of(name, student, teacher, planes).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_pixel_counts_in_hints_by_the_share_of_its_classes_that_are_not_void():
    student, teacher, mask = outputs(1), outputs(2), labels()
    term, share = made("hint"), (mask != VOID).double().mean(1)
    adapted = term.adapters["decoder"](student.features["decoder"])
    errors = (adapted - teacher.features["decoder"]).square().mean(1)
    expected = (share * errors).sum() / share.sum()
    found = Views(student, teacher, Target.of(mask)).value(term)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_one_class_is_the_sigmoid_of_two_classes():
    mask = labels()[:, :1]
    student, teacher = outputs(1, channels=1), outputs(2, channels=1)
    for name in ("cross_entropy", "focal", "ohem", "kd", "dkd", "dice"):
        pair = [Outputs.of(F.pad(o.logits, (0, 0, 0, 0, 1, 0))) for o in (student, teacher)]
        expected = TERMS[name]()(*pair, Target.of(mask[:, 0].contiguous()))
        assert value_of(name, student, teacher, mask).item() == pytest.approx(expected.item(), rel=1e-12), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dist__weight": 1}, r"dist\.weight: this loss relates classes that exclude each other, .*; set 0"),
        ({"ifvd__weight": 1}, r"ifvd\.weight: this loss relates"),
        ({"cirkd__weight": 1}, r"cirkd\.weight: this loss relates"),
        ({"kd__standardize": True}, r"kd\.standardize: of two logits, without and with a class, it leaves 1 and -1"),
    ],
)
def test_losses_that_relate_classes_are_refused_by_name(tmp_path, settings, words):
    config = tiny_config(tmp_path, teacher__head="multilabel", student__head="multilabel", **settings)
    teacher, student = (models.build(section, ["a", "b", "c"]) for section in (config.teacher, config.student))
    with pytest.raises(ConfigError, match=words):
        build_objective(config, student, teacher)
