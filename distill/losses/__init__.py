"""Losses: each compares a student's outputs with a teacher's, or with the labels, and gives one unweighted number.

    from distill.losses import KD, KDConfig

`README.md` in this folder has the table of all losses, and how to add one.
"""

from typing import TYPE_CHECKING, Any

from distill.losses.settings import *  # noqa: F403

if TYPE_CHECKING:
    from distill.losses.terms import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """The classes and `TERMS`, imported when first asked for: they need torch, and the settings must not load it."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import distill.losses.terms as terms

    return getattr(terms, name)
