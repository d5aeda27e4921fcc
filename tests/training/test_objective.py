"""The weighted sum: which terms are built, what they add up to, how their numbers change over a training."""

import numpy as np
import pytest
import torch
from conftest import tiny_config

from distill import models
from distill.batch import VOID, Outputs, Target
from distill.data import Dataset, Splits, open_splits
from distill.errors import ConfigError
from distill.losses.sections import Schedule
from distill.training.from_data import with_class_weights
from distill.training.objective import Distiller, build_objective


def networks(config):
    classes = list("abcdefghij")
    torch.manual_seed(0)
    return models.build(config.student, classes), models.build(config.teacher, classes)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        Outputs(torch.randn(2, 10, 8, 8, generator=generator).to(dtype), (30, 31), (32, 32)) for _ in "st"
    )
    mask = torch.randint(0, 10, (2, 30, 31), generator=generator).to(torch.uint8)
    mask[0, :7] = VOID
    student.logits.requires_grad_()
    return student, teacher, Target.of(mask)


def test_terms_with_a_weight_are_built_and_those_of_a_teacher_need_one(tmp_path):
    config = tiny_config(tmp_path, dice__weight=0.5, cwd__weight=2, hint__weight=1, kd__weight=0)
    student, teacher = networks(config)
    assert list(build_objective(config, student, teacher).terms) == ["cross_entropy", "dice", "cwd", "hint"]
    assert list(build_objective(config, student, None).terms) == ["cross_entropy", "dice"]
    assert build_objective(config, student, teacher).features == ("encoder.5",)
    adapters = [n for n, _ in build_objective(config, student, teacher).named_parameters()]
    assert adapters
    assert all("hint" in name for name in adapters), "adapters train with the student"
    with pytest.raises(ConfigError, match="no term is left without a teacher"):
        build_objective(tiny_config(tmp_path, cross_entropy__weight=0), student, None)


@pytest.mark.parametrize("norms", [False, True])
def test_the_total_is_the_weighted_sum_however_it_is_computed(tmp_path, norms):
    config = tiny_config(tmp_path, cross_entropy__weight=0.7, kd__weight=3, kd__temperature=2, cwd__weight=5)
    objective = build_objective(config, *networks(config))
    student, teacher, target = batch()
    loss = objective(student, teacher, target, norms)
    loss.total.backward()
    separate, _, _ = batch()
    total = sum(objective.weights[name] * term(separate, teacher, target) for name, term in objective.terms.items())
    total.backward()
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert torch.allclose(student.logits.grad, separate.logits.grad, rtol=1e-4, atol=1e-9)
    assert loss.gradient_norms.keys() == (objective.terms.keys() if norms else set())
    for name, norm in loss.gradient_norms.items():
        alone, _, _ = batch()
        (objective.weights[name] * objective.terms[name](alone, teacher, target)).backward()
        assert norm.item() == pytest.approx(alone.logits.grad.norm().item(), rel=1e-4), name


def test_half_precision_logits_keep_their_gradient(tmp_path):
    """Where a loss is scaled for fp16, the gradient must be scaled before it is rounded to fp16."""
    config = tiny_config(tmp_path)
    objective = build_objective(config, *networks(config))
    student, teacher, target = batch(torch.float16)
    target.labeled_count = target.valid_count = torch.tensor(1e7)  # a step of many pixels: gradients near 1e-7
    (objective(student, teacher, target).total * 2.0**16).backward()
    exact, _, _ = batch(torch.float16)
    exact.logits = exact.logits.detach().double().requires_grad_()
    teacher.logits = teacher.logits.double()
    (objective(exact, teacher, target).total * 2.0**16).backward()
    error = (student.logits.grad.double() - exact.logits.grad).norm() / exact.logits.grad.norm()
    assert error < 1e-3


def test_distiller_holds_student_and_adapters_but_no_teacher(tmp_path):
    config = tiny_config(tmp_path, hint__weight=1)
    student, teacher = networks(config)
    names = Distiller(student, build_objective(config, student, teacher)).state_dict().keys()
    assert all(name.startswith(("student.model.", "objective.terms.hint.")) for name in names)


def test_schedules_closed_form():
    assert Schedule().value(3.0, 5, 10) == 3.0
    assert [Schedule("linear", 1.0).value(3.0, step, 5) for step in range(5)] == pytest.approx([3, 2.5, 2, 1.5, 1])
    cosine = [Schedule("cosine", 0.0).value(1.0, step, 5) for step in range(5)]
    assert cosine == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])
    warm = [Schedule(warmup_steps=4).value(2.0, step, 10) for step in range(6)]
    assert warm == pytest.approx([0.5, 1, 1.5, 2, 2, 2])
    assert Schedule("linear", 1.0).value(3.0, 0, 1) == 3.0


def test_scheduled_numbers_reach_the_terms(tmp_path):
    schedules = "{kd.weight: {kind: linear, end: 0.0}, kd.temperature: {kind: linear, end: 1.0}}"
    config = tiny_config(tmp_path, schedules=schedules, kd__weight=2, kd__temperature=5)
    objective = build_objective(config, *networks(config))
    objective.set_step(2, 5)
    assert objective.weights["kd"] == 1.0
    assert objective.terms["kd"].config.temperature == 3.0
    build_objective(config, networks(config)[0], None).set_step(2, 5)  # no such term: nothing to set


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ("{kd: {kind: linear}}", "'kd' is not the weight or temperature of a term"),
        ("{student.learning_rate: {kind: linear, end: 1}}", "not the weight"),
        ("{kd.weight: {kind: steep, end: 1}}", "steep"),
        ("{kd.weight: {kind: linear}}", "end"),
        ("{kd.weight: {stop: 1}}", "stop"),
        ("{kd.temperature: {kind: linear, end: 0}}", "above 0"),
    ],
)
def test_bad_schedules_get_one_line(tmp_path, capsys, schedules, words):
    with pytest.raises(SystemExit):
        tiny_config(tmp_path, schedules=schedules)
    assert words in capsys.readouterr().err


def test_median_frequency_is_that_of_the_images_that_show_a_class(tmp_path):
    """A class that fills a tenth of every tenth image is as large as one that fills a tenth of all of them."""
    masks = np.full((10, 10, 20), 2, dtype=np.uint8)
    masks[:, 0] = 1
    masks[0, 1] = 0
    masks[:, 9, :4] = VOID
    data = Dataset([str(i) for i in range(10)], lambda i: (np.zeros((10, 20, 3), np.uint8), masks[i]), [()] * 10, print)
    splits = Splits(data, data, ["rare", "common", "rest", "absent"], [(0, 0, 0)] * 4)
    config = tiny_config(tmp_path, focal__weight=1, focal__class_weights="median")
    weights = with_class_weights(config, splits).focal.class_weights
    assert weights[0] == pytest.approx(weights[1])
    assert weights[1] / weights[2] == pytest.approx((176 - 2) / 20, rel=1e-3)
    assert weights[3] == 0


def test_class_weights_come_from_the_training_masks(tmp_path):
    config = tiny_config(tmp_path, cross_entropy__class_weights="log")
    splits = open_splits(config.data)
    weights = np.array(with_class_weights(config, splits).cross_entropy.class_weights)
    masks = np.concatenate([splits.train.read(i)[1].ravel() for i in range(len(splits.train))])
    share = np.bincount(masks[masks != VOID], minlength=10) / (masks != VOID).sum()
    expected = np.where(share > 0, 1 / np.log(1.02 + share), 0)
    assert np.allclose(weights, expected / (expected * share).sum(), atol=1e-4)
    assert (weights * share).sum() == pytest.approx(1, abs=1e-3)
