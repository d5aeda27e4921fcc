"""The losses' sections of a run's settings, one per loss under its short name, and their changes over a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.losses.settings import (
    ATConfig,
    CIRKDConfig,
    CrossEntropyConfig,
    CWDConfig,
    DiceConfig,
    DISTConfig,
    DKDConfig,
    FocalConfig,
    HintConfig,
    IFVDConfig,
    JaccardConfig,
    KDConfig,
    LovaszConfig,
    MGDConfig,
    OHEMConfig,
    SKDConfig,
    TermConfig,
)
from distill.losses.validation import Settings


@dataclass(frozen=True)
class Schedule(Settings):
    """How a number of a loss changes over a training; it starts at the value of the setting.

    Attributes:
        kind: `constant`, or the way to `end`: `linear` or `cosine`.
        end: value at the last step.
        warmup_steps: steps of linear rise from 0, for weights.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    end: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for what is no schedule."""
        super().__post_init__()
        self.not_negative("warmup_steps")
        fix = "linear and cosine need an end, constant has none"
        self.require(
            (self.kind == "constant") == (self.end is None), "end", f"does not go with kind {self.kind!r}: {fix}"
        )

    def value(self, start: float, step: int, steps: int) -> float:
        """The number at a step, 0 to steps - 1."""
        done = step / max(1, steps - 1)
        share = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[self.kind]
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * (start + share * ((start if self.end is None else self.end) - start))


@dataclass
class TermsConfig(Settings):
    """The settings of every loss.

    Args:
        schedules: how numbers of the losses change over a training: `{kd.weight: {kind: cosine, end: 0.5}}`; `kind`
            is `constant`, `linear` or `cosine`, `warmup_steps` lets a weight rise from 0.
    """

    cross_entropy: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    ohem: OHEMConfig = field(default_factory=OHEMConfig)
    dice: DiceConfig = field(default_factory=DiceConfig)
    jaccard: JaccardConfig = field(default_factory=JaccardConfig)
    lovasz: LovaszConfig = field(default_factory=LovaszConfig)
    focal: FocalConfig = field(default_factory=FocalConfig)
    kd: KDConfig = field(default_factory=KDConfig)
    dkd: DKDConfig = field(default_factory=DKDConfig)
    cwd: CWDConfig = field(default_factory=CWDConfig)
    dist: DISTConfig = field(default_factory=DISTConfig)
    skd: SKDConfig = field(default_factory=SKDConfig)
    ifvd: IFVDConfig = field(default_factory=IFVDConfig)
    cirkd: CIRKDConfig = field(default_factory=CIRKDConfig)
    hint: HintConfig = field(default_factory=HintConfig)
    at: ATConfig = field(default_factory=ATConfig)
    mgd: MGDConfig = field(default_factory=MGDConfig)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for a schedule of nothing, and if no loss has a weight."""
        super().__post_init__()
        for key, settings in self.schedules.items():
            section, _, name = key.partition(".")
            if name not in ("weight", "temperature") or not hasattr(getattr(self, section, None), name):
                raise ValueError(f"schedules: {key!r} is not the weight or temperature of a term, such as kd.weight")
            try:
                schedule = Schedule(**settings)
            except (TypeError, ValueError) as error:
                raise ValueError(f"schedules: {key}: {error}") from None
            if name == "temperature" and (schedule.warmup_steps or (schedule.end is not None and schedule.end <= 0)):
                raise ValueError(f"schedules: {key}: a temperature stays above 0; no warmup_steps, end above 0")
        if not any(section.weight for section in vars(self).values() if isinstance(section, TermConfig)):
            raise ValueError("cross_entropy.weight, kd.weight, …: all are 0, nothing would be learned; set one above 0")
