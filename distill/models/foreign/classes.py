"""Teachers of other classes than the data's: which of theirs stand for which of these."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.batch import SILENT, Outputs
from distill.errors import ConfigError
from distill.models.network import Network

NEVER = math.log(1e-6)  # of a class that nobody teaches, against all others together


@dataclass(frozen=True)
class ClassMap:
    """Which classes of a teacher stand for which of the data.

    Attributes:
        theirs: names of the teacher's classes.
        ours: names of the data's.
        groups: for each of the data's, the numbers of the teacher's; empty if nobody teaches it.
    """

    theirs: list[str]
    ours: list[str]
    groups: list[list[int]]

    @property
    def left_out(self) -> list[str]:
        """Classes of the teacher that stand for none of the data's."""
        used = {number for group in self.groups for number in group}
        return [name for number, name in enumerate(self.theirs) if number not in used]

    @property
    def is_identity(self) -> bool:
        """Whether the teacher has the data's classes, in their order."""
        return self.groups == [[i] for i in range(len(self.theirs))]

    def table(self) -> list[str]:
        """A line a class of the data, and one for what is left out."""
        width = max(map(len, self.ours))
        lines = []
        for name, group in zip(self.ours, self.groups, strict=True):
            taught = " + ".join(f"{self.theirs[i]} ({i})" for i in group) or "– (nobody teaches it)"
            lines.append(f"  {name.ljust(width)}  ← {taught}")
        if self.left_out:
            lines.append(f"  left out: {', '.join(self.left_out)}")
        return lines


def match(
    theirs: Sequence[str], ours: Sequence[str], table: Mapping[str, str | None] | None, allow_untaught: bool = False
) -> ClassMap:
    """Matches classes by the table, and the others by name.

    Args:
        theirs: names of the teacher's classes.
        ours: of the data's.
        table: a class of the teacher → one of the data, or None to leave it out.
        allow_untaught: whether a class of the data may have no teacher.

    Raises:
        ConfigError: a name in the table that is none, one that fits twice, or a class that nobody teaches.
    """
    known = {simple(name): i for i, name in enumerate(ours)}
    found: list[list[int]] = [[] for _ in ours]
    if len(known) < len(ours):
        raise ConfigError("data.classes: two names differ only in case, spaces or punctuation; rename one")
    wanted = {simple(name): target for name, target in (table or {}).items()}
    for name, target in (table or {}).items():
        if simple(name) not in map(simple, theirs):
            raise ConfigError(f"teacher.classes: {name!r} is no class of the teacher{_near(name, theirs)}")
        if target is not None and simple(target) not in known:
            raise ConfigError(f"teacher.classes: {name}: {target!r} is no class of the data{_near(target, ours)}")
    for number, name in enumerate(theirs):
        target = wanted.get(simple(name), name)
        if target is not None and simple(target) in known:
            found[known[simple(target)]].append(number)
    matched = ClassMap(list(theirs), list(ours), found)
    untaught = [name for name, group in zip(ours, found, strict=True) if not group]
    if untaught and (not allow_untaught or len(untaught) == len(ours)):
        raise ConfigError(
            f"teacher.classes: no class of the teacher stands for {', '.join(untaught[:5])}"
            f"{f' and {len(untaught) - 5} more' if len(untaught) > 5 else ''} of the data; the teacher has "
            f"{_short(matched.left_out or theirs)}; name them, {{theirs: ours}}, or set teacher.allow_untaught true"
        )
    return matched


def simple(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold() or name


class Mapped(Network):
    """A network of other classes, as one of the data's.

    Several classes into one: the logarithm of the sum of their exponentials, so that their probabilities add up. What
    is left out is no longer part of the distribution, whose rest adds up to 1 again. Where classes do not exclude each
    other, several into one are as likely as the likeliest of them.

    Args:
        inner: the network.
        classes: which of its classes stand for which of the data's.
    """

    def __init__(self, inner: Network, classes: ClassMap):
        nn.Module.__init__(self)
        self.inner, self.map = inner, classes
        self.classes, self.stride = list(classes.ours), inner.stride
        self.image, self.bands, self.multilabel = inner.image, inner.bands, inner.multilabel
        self.register_buffer("mean", inner.mean.clone(), persistent=False)
        self.register_buffer("std", inner.std.clone(), persistent=False)

    @property
    def model(self) -> Any:  # type: ignore[override]
        """What computes, inside of it."""
        return self.inner.model

    @property
    def kind(self) -> str:
        """What it is called in messages and reports."""
        return str(getattr(self.inner, "kind", type(self.model).__name__))

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every map that `forward` can return, and of the `logits`."""
        return self.inner.channels | {"logits": len(self.classes)}

    def identity(self) -> dict[str, Any]:
        """See `Asked.identity`."""
        return self.inner.identity() | {"groups": self.map.groups}

    def normalize(self, image: Tensor) -> Tensor:
        """See `Network.normalize`."""
        return self.inner.normalize(image)

    def forward(self, image: Tensor, features: Sequence[str] = ()) -> Outputs:
        """See `Network.forward`."""
        return self._mapped(self.inner(image, features))

    def outputs(self, x: Tensor, size: Sequence[int], features: Sequence[str] = ()) -> Outputs:
        """See `Network.outputs`."""
        return self._mapped(self.inner.outputs(x, size, features))

    def save_weights(self, folder: Path) -> None:
        """Writes those of the network inside, which keeps its own classes."""
        self.inner.save_weights(folder)

    def _mapped(self, outputs: Outputs) -> Outputs:
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = outputs.logits.float()
            if self.multilabel:
                never = torch.full_like(logits[:, 0], NEVER)
                each = [logits[:, group].amax(1) if group else never for group in self.map.groups]
                outputs.logits = torch.stack(each, 1)
                return outputs
            parts = [logits[:, group].logsumexp(1) if group else None for group in self.map.groups]
            taught = torch.stack([part for part in parts if part is not None], 1).logsumexp(1)
            merged = torch.stack([taught + NEVER if part is None else part for part in parts], 1)
            # What says nothing of its classes says nothing of these, however many of them go into one.
            low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
            likeliest = [logits[:, group].amax(1) if group else low[:, 0] for group in self.map.groups]
            merged = torch.where(high - low > SILENT, merged, torch.stack(likeliest, 1))
        outputs.logits = merged
        return outputs


def _near(name: str, names: Sequence[str]) -> str:
    """A hint at the nearest name."""
    close = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {close[0]!r}?)" if close else f", which has {_short(names)}"


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)})" if len(names) > 8 else "")
