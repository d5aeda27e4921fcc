"""What is minimised, a weighted sum of named terms; and what is trained, the student with its objective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.batch import Outputs, Target
from distill.config import Config
from distill.losses import TERMS
from distill.models import Network


class Objective(nn.Module):
    """A weighted sum of terms.

    Args:
        terms: by name.
        weights: by name, above 0.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]):
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)

    @property
    def features(self) -> tuple[str, ...]:
        """Feature maps that the terms want from both networks."""
        return tuple(dict.fromkeys(name for term in self.terms.values() for name in term.features))

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted value of each term."""
        values = {name: term(student, teacher, target) for name, term in self.terms.items()}
        total = sum((self.weights[name] * value for name, value in values.items()), torch.zeros(()))
        return torch.as_tensor(total), {name: value.detach() for name, value in values.items()}


def build_objective(config: Config, distil: bool) -> Objective:
    """The objective of the settings; without `distil` only the terms that need no teacher."""
    terms, weights = {}, {}
    for name, term in TERMS.items():
        section = getattr(config, name, None)
        if section and section.weight and (distil or not term.needs_teacher):
            settings = {key: value for key, value in vars(section).items() if key != "weight"}
            terms[name], weights[name] = term(**settings), section.weight
    return Objective(terms, weights)


class Distiller(nn.Module):
    """The student and its objective: the only thing that is prepared, optimised and checkpointed."""

    def __init__(self, student: Network, objective: Objective):
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, image: Tensor, teacher: Outputs | None, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of images uint8 `[N, 3, H, W]`, and the unweighted value of each term."""
        return self.objective(self.student(image, self.objective.features), teacher, target)
