"""What every dataclass of settings shares: it checks itself when it is made. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

LARGEST = 1e15  # float32 ends at 3e38, and a learning rate is multiplied by weight decay, a temperature by itself


class Settings:
    """The base of all dataclasses of settings: values are checked when they are set, also by `dataclasses.replace`."""

    def __post_init__(self) -> None:
        """Checks that numbers can be computed with, and that a choice is one of those there are.

        Raises:
            ValueError: names the field, its value and the fix.
        """
        for name, value in vars(self).items():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, float):
                    self.require(math.isfinite(item), name, "is not finite; set a number")
                    self.require(
                        abs(item) <= LARGEST, name, f"is beyond what float32 computes with; at most {LARGEST:g}"
                    )
                elif isinstance(item, str) and item.encode(errors="replace").decode() != item:
                    raise ValueError(f"{name}: {item} is not UTF-8; rename it")
                elif isinstance(item, int):
                    self.require(abs(item) < 1 << 63, name, "has more than 63 bits; set a smaller number")
            if isinstance(value, str) and (words := _choices(type(self)).get(name)):  # type: ignore[arg-type]
                self.require(value in words, name, f"must be one of {', '.join(words)}")

    def require(self, holds: bool, name: str, fix: str) -> None:
        """Raises ValueError, with the field's name, its value and the fix, unless something holds."""
        if not holds:
            raise ValueError(f"{name}: {getattr(self, name)!r} {fix}")

    def numbers(self, name: str) -> Sequence[float]:
        """A field's number, or those of its list; none for null and words."""
        value = getattr(self, name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        return [item for item in values if isinstance(item, (int, float))]

    def above_zero(self, *names: str) -> None:
        """Raises ValueError unless each number of these fields is above 0."""
        for name in names:
            self.require(all(x > 0 for x in self.numbers(name)), name, "must be above 0")

    def not_negative(self, *names: str) -> None:
        """Raises ValueError unless each number of these fields is at least 0."""
        for name in names:
            self.require(all(x >= 0 for x in self.numbers(name)), name, "must not be negative")

    def zero_to_one(self, *names: str) -> None:
        """Raises ValueError unless each number of these fields is from 0 to 1."""
        for name in names:
            self.require(all(0 <= x <= 1 for x in self.numbers(name)), name, "must be between 0 and 1")


@cache
def _choices(cls: type) -> dict[str, list[str]]:
    """The words that fields of a `Literal` type take, by field."""
    parts = {name: (hint, *get_args(hint)) for name, hint in get_type_hints(cls).items()}
    words = {
        name: [w for hint in hints if get_origin(hint) is Literal for w in get_args(hint)]
        for name, hints in parts.items()
    }
    return {name: found for name, found in words.items() if found}
