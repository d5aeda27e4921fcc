"""Settings of the objective's terms: one section a term, under the term's short name. Weight 0: the term is not built.

What a term computes, and where it is from, stands in its class in `distill.losses`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class CrossEntropyConfig:
    """Cross-entropy with the labels.

    Args:
        weight: weight in the objective.
        class_weights: one factor a class; all 1 if not given. `log` and `median` take them from the training masks.
        label_smoothing: 0 to 1.
    """

    weight: float = 1.0
    class_weights: list[float] | Literal["log", "median"] | None = None
    label_smoothing: float = 0.0


@dataclass
class OHEMConfig:
    """Cross-entropy of the hard pixels alone.

    Args:
        weight: weight in the objective.
        threshold: probability of the right class from which on a pixel is easy.
        min_kept: share of the labelled pixels that is kept in any case.
    """

    weight: float = 0.0
    threshold: float = 0.7
    min_kept: float = 0.0625


@dataclass
class DiceConfig:
    """Soft Dice loss over the classes that the labels show.

    Args:
        weight: weight in the objective.
        smooth: pixels added above and below the fraction.
    """

    weight: float = 0.0
    smooth: float = 0.0


@dataclass
class JaccardConfig:
    """Soft Jaccard (IoU) loss over the classes that the labels show.

    Args:
        weight: weight in the objective.
        smooth: pixels added above and below the fraction.
    """

    weight: float = 0.0
    smooth: float = 0.0


@dataclass
class LovaszConfig:
    """Lovász-softmax loss.

    Args:
        weight: weight in the objective.
    """

    weight: float = 0.0


@dataclass
class FocalConfig:
    """Focal loss: cross-entropy that counts right pixels less.

    Args:
        weight: weight in the objective.
        gamma: how much less; 0 is cross-entropy.
        class_weights: as for `cross_entropy`.
    """

    weight: float = 0.0
    gamma: float = 2.0
    class_weights: list[float] | Literal["log", "median"] | None = None


@dataclass
class KDConfig:
    """Teacher's and student's distribution at each pixel: T² · KL(teacher‖student), or another divergence.

    Args:
        weight: weight in the objective.
        divergence: which; `soft_cross_entropy` has the gradient of `forward_kl`.
        temperature: T; both distributions are softmax(logits / T).
        beta: weight of the teacher in `jensen_shannon`, between 0 and 1.
        standardize: standardise the logits over the classes first.
        confidence: what says how sure the teacher is of a pixel.
        confidence_threshold: pixels less sure than this do not count; if not given, pixels are weighted by it.
        reduction: scale of another project's loss, so that weights published for it can be used.
        stride: compare at the images' size, or on the cells of the teacher's head.
    """

    weight: float = 3.0
    divergence: Literal["forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "soft_cross_entropy"] = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    standardize: bool = False
    confidence: Literal["none", "max_probability", "entropy"] = "none"
    confidence_threshold: float | None = None
    reduction: Literal["mean", "cirkd", "mmrazor", "torchdistill", "zh320"] = "mean"
    stride: Literal["full", "native"] = "full"


@dataclass
class DKDConfig:
    """Decoupled distillation: the label's class against the others, and the others among themselves.

    Args:
        weight: weight in the objective.
        alpha: weight of the label's class against all others.
        beta: weight of the distribution over the others.
        temperature: T.
    """

    weight: float = 0.0
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0


@dataclass
class CWDConfig:
    """Channel-wise distillation: each channel as a distribution over the places.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5`, `decoder` or `logits`.
        temperature: T.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["logits"])
    temperature: float = 4.0


@dataclass
class DISTConfig:
    """DIST: correlation of the distributions between and within classes.

    Args:
        weight: weight in the objective.
        beta: weight of the relation between classes.
        gamma: weight of the relation within a class.
        temperature: T.
    """

    weight: float = 0.0
    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0


@dataclass
class SKDConfig:
    """Structured distillation: similarity of every two places.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5`, `decoder` or `logits`.
        side: maps are pooled to at most side × side places.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["decoder"])
    side: int = 16


@dataclass
class IFVDConfig:
    """Intra-class feature variation: similarity of each place to the mean of its class.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5`, `decoder` or `logits`.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["decoder"])


@dataclass
class CIRKDConfig:
    """Cross-image relations: places of a batch among each other and to memories of pixels and regions.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5`, `decoder` or `logits`.
        temperature: of the similarities.
        side: maps are pooled to at most side × side places.
        pixel_memory: weight of the relation to remembered pixels.
        region_memory: weight of the relation to remembered class means.
        pixel_slots: pixels remembered a class.
        region_slots: class means remembered a class.
        pixels_per_image: pixels of a class that an image adds to the memory.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["decoder"])
    temperature: float = 0.1
    side: int = 16
    pixel_memory: float = 0.1
    region_memory: float = 0.1
    pixel_slots: int = 256
    region_slots: int = 64
    pixels_per_image: int = 4


@dataclass
class HintConfig:
    """Hints (FitNets): squared difference of features behind an adapter.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5` or `decoder`.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["encoder.5"])


@dataclass
class ATConfig:
    """Attention transfer: where the features are large.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5` or `decoder`.
        power: p in |feature|^p.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["encoder.3", "encoder.4", "encoder.5"])
    power: float = 2.0


@dataclass
class MGDConfig:
    """Masked generative distillation: the teacher's features guessed from the student's with holes.

    Args:
        weight: weight in the objective.
        layers: `encoder.1` … `encoder.5` or `decoder`.
        mask_ratio: share of the places that become holes.
    """

    weight: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["encoder.5"])
    mask_ratio: float = 0.75


@dataclass
class Schedule:
    """How a number of a term changes over a training; it starts at the value of the setting.

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
        if self.kind not in ("constant", "linear", "cosine"):
            raise ValueError(f"kind {self.kind!r} is not one of constant, linear, cosine")
        if (self.kind == "constant") != (self.end is None):
            raise ValueError(
                f"kind {self.kind!r} with end {self.end}: linear and cosine need an end, constant has none"
            )

    def value(self, start: float, step: int, steps: int) -> float:
        """The number at a step, 0 to steps - 1."""
        done = step / max(1, steps - 1)
        share = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[self.kind]
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * (start + share * ((start if self.end is None else self.end) - start))


@dataclass
class TermsConfig:
    """Every term of the objective.

    Args:
        cross_entropy: cross-entropy with the labels.
        ohem: cross-entropy of the hard pixels alone.
        dice: soft Dice loss.
        jaccard: soft Jaccard (IoU) loss.
        lovasz: Lovász-softmax loss.
        focal: focal loss.
        kd: a divergence between teacher's and student's distribution at each pixel.
        dkd: decoupled distillation.
        cwd: channel-wise distillation.
        dist: correlations between and within classes.
        skd: similarity of every two places.
        ifvd: intra-class feature variation.
        cirkd: cross-image relations.
        hint: features behind an adapter.
        at: attention transfer.
        mgd: masked generative distillation.
        schedules: how numbers of the terms change over a training: `{kd.weight: {kind: cosine, end: 0.5}}`; `kind`
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
