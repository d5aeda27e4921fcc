"""What is minimized, a weighted sum of named terms; and what is trained, the student with its objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.batch import Outputs, Target
from distill.config.schema import Config
from distill.errors import ConfigError
from distill.losses import TERMS, PixelTerm, Term
from distill.losses.chunked import fused
from distill.losses.many_labels import BOTH, Views
from distill.losses.sections import Schedule
from distill.models.asked import Asked
from distill.models.network import Network


@dataclass
class Loss:
    """What the objective says of a batch.

    Attributes:
        total: the weighted sum, to be differentiated.
        values: each term's unweighted value, detached.
        gradient_norms: norm of each weighted term's gradient at the student's logits; empty unless asked for. Terms
            on features have none there.
    """

    total: Tensor
    values: dict[str, Tensor]
    gradient_norms: dict[str, Tensor]


class Objective(nn.Module):
    """A weighted sum of terms.

    Args:
        terms: by name.
        weights: by name.
        schedules: of weights and temperatures, by `<term>.<setting>`; of terms that are not there, ignored.
        compiled: let torch.compile fuse the terms that look at one pixel at a time.
        multilabel: classes do not exclude each other, see `distill.losses.many_labels`.
    """

    terms: Any  # a ModuleDict of Term

    def __init__(
        self,
        terms: Mapping[str, Term],
        weights: Mapping[str, float],
        schedules: Mapping[str, Schedule] | None = None,
        compiled: bool = False,
        multilabel: bool = False,
    ):
        super().__init__()
        self.compiled, self.multilabel = compiled, multilabel
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.schedules = {}
        for key, schedule in (schedules or {}).items():
            name, setting = key.split(".")
            if name in terms:
                start = weights[name] if setting == "weight" else getattr(terms[name].config, setting)
                self.schedules[name, setting] = (schedule, start)

    def set_step(self, step: int, steps: int) -> None:
        """Sets every scheduled number to its value at a step of `steps`."""
        for (name, setting), (schedule, start) in self.schedules.items():
            value = schedule.value(start, step, steps)
            if setting == "weight":
                self.weights[name] = value
            else:
                self.terms[name].config = replace(self.terms[name].config, **{setting: value})

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with the teacher."""
        return any(term.needs_teacher for term in self.terms.values())

    @property
    def features(self) -> tuple[str, ...]:
        """Feature maps that the terms want from both networks."""
        return tuple(dict.fromkeys(name for term in self.terms.values() for name in term.features))

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target, norms: bool = False) -> Loss:
        """The weighted sum, and the value of each term; with `norms`, also how strongly each pulls at the logits."""
        if student.logits.dtype in (torch.float16, torch.bfloat16):
            # Gradients at the logits are of the size 1 / pixels, which half precision would round to 0.
            student = replace(student, logits=student.logits.float())
        seen: tuple[Outputs, Outputs | None, Target] = (student, teacher, target)
        views = Views(*seen) if self.multilabel else None
        # Terms that look at one pixel at a time share one pass that never holds full-resolution logits.
        together = {n: t for n, t in self.terms.items() if isinstance(t, PixelTerm) and t.chunked}
        total, values, gradient_norms = torch.zeros((), device=student.logits.device), {}, {}
        if together:
            weights = [self.weights[name] for name in together]
            named, pairs = list(together.values()), views.pairs() if views else seen
            result = fused(named, weights, *pairs, norms=norms, compiled=self.compiled)
            total, values = result.total, dict(zip(together, result.values, strict=True))
            if result.norms:
                gradient_norms = {n: self.weights[n] * v for n, v in zip(together, result.norms, strict=True)}
                gradient_norms = {n: v / BOTH for n, v in gradient_norms.items()} if views else gradient_norms
        for name, term in self.terms.items():
            if name not in together:
                value = views.value(term) if views else term(*seen)
                total, values[name] = total + self.weights[name] * value, value.detach()
                if norms and value.requires_grad:
                    (gradient,) = torch.autograd.grad(value, student.logits, retain_graph=True, allow_unused=True)
                    if gradient is not None:
                        gradient_norms[name] = self.weights[name] * gradient.norm()
        return Loss(total, values, gradient_norms)


def build_objective(config: Config, student: Network, teacher: Asked | None) -> Objective:
    """The objective of the settings; without a teacher only the terms that need none.

    Raises:
        ConfigError: a setting that its term refuses, or no term left.
    """
    terms: dict[str, Term] = {}
    weights: dict[str, float] = {}
    for name, term in TERMS.items():
        section = getattr(config, name)
        if not section.weight or (term.needs_teacher and teacher is None):
            continue
        if student.multilabel and term.many_labels == "cannot":
            why = "relates classes that exclude each other, and those of data.multilabel do not"
            raise ConfigError(f"{name}.weight: this loss {why}; set 0")
        if student.multilabel and getattr(section, "standardize", False):
            raise ConfigError(
                f"{name}.standardize: of two logits, without and with a class, it leaves 1 and -1; set false"
            )
        try:
            terms[name], weights[name] = term(section), section.weight
            if teacher:
                terms[name].build(student.channels, teacher.channels)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    if not terms:
        raise ConfigError("cross_entropy.weight, …: no term is left without a teacher; set one that looks at labels")
    schedules = {key: Schedule(**s) for key, s in config.schedules.items()}
    return Objective(terms, weights, schedules, config.compile_loss, student.multilabel)


class Distiller(nn.Module):
    """The student and its objective: the only thing that is prepared, optimized and checkpointed."""

    def __init__(self, student: Network, objective: Objective):
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, image: Tensor, teacher: Outputs | None, target: Target, norms: bool = False) -> Loss:
        """What the objective says of images uint8 `[N, 3, H, W]`."""
        return self.objective(self.student(image, self.objective.features), teacher, target, norms)
