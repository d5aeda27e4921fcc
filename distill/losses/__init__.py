"""The terms of the objective by their short names."""

from distill.losses.base import PixelTerm, Term
from distill.losses.pixel import KD
from distill.losses.supervised import CrossEntropy

TERMS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "kd": KD,
}

__all__ = ["TERMS", "PixelTerm", "Term"]
