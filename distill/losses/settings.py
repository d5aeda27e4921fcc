"""Settings of the losses: each loss takes a frozen dataclass that checks itself, as in `KD(KDConfig(temperature=2))`.

They share a module instead of standing above their classes, because a class brings torch with it and these must not:
a typo on the command line is reported before torch is loaded, which takes seconds, and so is `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.losses.validation import Settings

Divergence = Literal["forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "soft_cross_entropy"]
Confidence = Literal["none", "max_probability", "entropy"]
ClassWeights = list[float] | Literal["log", "median"] | None


@dataclass(frozen=True)
class TermConfig(Settings):
    """What every loss has.

    Args:
        weight: weight in the objective; 0: the loss is not built.
    """

    weight: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.not_negative("weight")


@dataclass(frozen=True)
class LayersConfig(TermConfig):
    """What every loss that compares maps has.

    Args:
        layers: maps to compare, the same in both networks: `encoder.1` … `encoder.5`, `decoder` or `logits`.
    """

    layers: list[str] = field(default_factory=lambda: ["decoder"])

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        listed = bool(self.layers) and not isinstance(self.layers, str)
        self.require(listed, "layers", "must be a list of at least one name, such as [decoder]")


@dataclass(frozen=True)
class CrossEntropyConfig(TermConfig):
    """Cross-entropy with the labels.

    Args:
        weight: weight in the objective.
        class_weights: one factor per class; all 1 if not given. `log` and `median` take them from the training masks.
            With `data.multilabel` two, for pixels without and with a class.
        label_smoothing: ε, 0 to 1: the label's distribution becomes (1-ε) one-hot + ε/C (arXiv:1512.00567).
    """

    weight: float = 1.0
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.not_negative("class_weights")
        self.zero_to_one("label_smoothing")


@dataclass(frozen=True)
class OHEMConfig(TermConfig):
    """Cross-entropy of the hard pixels alone.

    Args:
        threshold: probability of the right class, 0 to 1, from which on a pixel is easy.
        min_kept: share of the labeled pixels, 0 to 1, that is kept in any case.
    """

    threshold: float = 0.7
    min_kept: float = 0.0625

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.zero_to_one("threshold", "min_kept")


@dataclass(frozen=True)
class SmoothConfig(TermConfig):
    """What Dice and Jaccard have.

    Args:
        smooth: pixels added above and below the fraction; they pull the score of small classes toward 1.
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.not_negative("smooth")


@dataclass(frozen=True)
class DiceConfig(SmoothConfig):
    """Soft Dice loss over the classes that the labels show."""


@dataclass(frozen=True)
class JaccardConfig(SmoothConfig):
    """Soft Jaccard (IoU) loss over the classes that the labels show."""


@dataclass(frozen=True)
class LovaszConfig(TermConfig):
    """Lovász-softmax loss."""


@dataclass(frozen=True)
class FocalConfig(TermConfig):
    """Focal loss: cross-entropy in which pixels that are already right count less.

    Args:
        gamma: how much less; 0 is cross-entropy.
        class_weights: as for `cross_entropy`.
    """

    gamma: float = 2.0
    class_weights: ClassWeights = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.not_negative("gamma", "class_weights")


@dataclass(frozen=True)
class KDConfig(TermConfig):
    """A divergence between the teacher's and the student's distribution at each pixel, times T².

    Args:
        weight: weight in the objective.
        divergence: which; `soft_cross_entropy` has the gradient of `forward_kl`.
        temperature: T; both distributions are softmax(logits / T).
        beta: weight of the teacher in `jensen_shannon`, between 0 and 1.
        standardize: standardize the logits of both networks over the classes first.
        confidence: how to measure how sure the teacher is of a pixel.
        confidence_threshold: 0 to 1: pixels less sure than this count nothing (they stay in the mean's count, so fewer
            sure pixels give a smaller loss); if not given, each pixel is weighted by its confidence.
        stride: compare at the images' size (`full`), or on the cells of the teacher's head (`native`): cheaper, with
            almost the same gradient.
    """

    weight: float = 3.0
    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    standardize: bool = False
    confidence: Confidence = "none"
    confidence_threshold: float | None = None
    stride: Literal["full", "native"] = "full"

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("temperature")
        self.zero_to_one("confidence_threshold")
        ends = "must be between 0 and 1; use forward_kl or reverse_kl for the ends"
        self.require(0 < self.beta < 1, "beta", ends)


@dataclass(frozen=True)
class DKDConfig(TermConfig):
    """Decoupled distillation; the defaults are the paper's for CIFAR-100 (it takes 0.25 to 10 for β).

    Args:
        alpha: weight of the label's class against all others.
        beta: weight of the distribution over the others.
        temperature: T.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("temperature")


@dataclass(frozen=True)
class CWDConfig(LayersConfig):
    """Channel-wise distillation: each channel is a distribution over the places.

    Args:
        temperature: T; the paper takes 4, others 1 for logits.
    """

    layers: list[str] = field(default_factory=lambda: ["logits"])
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("temperature")


@dataclass(frozen=True)
class DISTConfig(TermConfig):
    """DIST: correlation of the distributions between and within classes.

    Args:
        beta: weight of the relation between classes.
        gamma: weight of the relation within a class.
        temperature: T.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("temperature")


@dataclass(frozen=True)
class SKDConfig(LayersConfig):
    """Structured distillation: similarity of every two places.

    Args:
        side: maps are pooled to at most side × side places; memory grows with its fourth power.
    """

    side: int = 16

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("side")


@dataclass(frozen=True)
class IFVDConfig(LayersConfig):
    """Intra-class feature variation: similarity of each place to the mean of its class."""


@dataclass(frozen=True)
class CIRKDConfig(LayersConfig):
    """Cross-image relations: places of a batch among each other and to memories of pixels and regions.

    Args:
        layers: one map: `encoder.1` … `encoder.5`, `decoder` or `logits`.
        temperature: T of the similarities.
        side: maps are pooled to at most side × side places.
        pixel_memory: weight of the relation to remembered pixels; 0 leaves them out.
        region_memory: weight of the relation to remembered class means; 0 leaves them out.
        pixel_slots: pixels remembered per class.
        region_slots: class means remembered per class.
        pixels_per_image: pixels of a class that an image adds to the memory.
    """

    temperature: float = 0.1
    side: int = 16
    pixel_memory: float = 0.1
    region_memory: float = 0.1
    pixel_slots: int = 256
    region_slots: int = 64
    pixels_per_image: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.require(len(self.layers) == 1, "layers", "must name one layer")
        self.above_zero("temperature", "side", "pixel_slots", "region_slots", "pixels_per_image")
        self.not_negative("pixel_memory", "region_memory")


@dataclass(frozen=True)
class HintConfig(LayersConfig):
    """Hints (FitNets): squared difference of features behind an adapter."""

    layers: list[str] = field(default_factory=lambda: ["encoder.5"])


@dataclass(frozen=True)
class ATConfig(LayersConfig):
    """Attention transfer: where the features are large.

    Args:
        power: p ≥ 1 in |feature|^p.
    """

    layers: list[str] = field(default_factory=lambda: ["encoder.3", "encoder.4", "encoder.5"])
    power: float = 2.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.require(self.power >= 1, "power", "must be at least 1")


@dataclass(frozen=True)
class MGDConfig(LayersConfig):
    """Masked generative distillation: the teacher's features guessed from the student's with holes.

    Args:
        mask_ratio: share of the places that become holes, 0 to 1; the paper takes 0.75 for segmentation.
    """

    layers: list[str] = field(default_factory=lambda: ["encoder.5"])
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.zero_to_one("mask_ratio")
