"""What a term is: one number, unweighted, from what student and teacher say of a batch and what its labels say."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill.batch import SILENT, UNLABELED, VOID, Outputs, Target
from distill.losses.geometry import Cells, at_least_float32
from distill.losses.settings import LayersConfig, TermConfig

ManyLabels = Literal["pairs", "each class", "maps", "cannot"]


class Term(nn.Module, ABC):
    """One summand of the objective; sub-modules (adapters) train with the student and are never exported.

    Half precision is for networks: a term computes in float32, or in float64 where it is given float64, inside
    and outside of autocast.

    Attributes:
        Config: the type of its settings.
        config: its settings; frozen, but a schedule may put others in their place between steps.
        needs_teacher: without a teacher it cannot be computed.
        needs_labels: pixels without a label count nothing in it.
        features: the feature maps it wants of both networks.
        many_labels: how it sees classes that do not exclude each other (see the module of that name): as `pairs` of
            logits without and with a class, all at once; so of `each class`, and the mean over these; as `maps`; or it
            cannot, since it relates classes that do.
    """

    Config: ClassVar[type[TermConfig]]
    config: TermConfig
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    features: tuple[str, ...] = ()
    many_labels: ClassVar[ManyLabels] = "pairs"

    def __init__(self, config: TermConfig | None = None):
        """A loss.

        Args:
            config: settings of the type `Config`; their defaults if not given. Their `weight` is the caller's affair.

        Raises:
            TypeError: settings of another loss.
        """
        super().__init__()
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            kind = type(self.config).__name__
            raise TypeError(f"{type(self).__name__} takes settings of type {self.Config.__name__}, not {kind}")

    def build(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
        """Make the adapters, once, before the optimizer is made; most terms have none.

        Args:
            student_channels: channels of each map of the student: its features by name, and `logits`.
            teacher_channels: the same of the teacher.
        """

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The term's value, a scalar.

        Raises:
            ValueError: the term needs a teacher and there is none.
        """
        if teacher is None and self.needs_teacher:
            raise ValueError(f"{type(self).__name__} compares with a teacher: pass its outputs")
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.value(student, teacher, target)

    @abstractmethod
    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """What `forward` returns, computed outside of autocast."""


def speaks(teacher: Tensor) -> Tensor:
    """Where a teacher says anything: bool `[N, ...]` of its logits `[N, C, ...]`.

    Logits that are all the same mean that it does not know: a label that is no class, a pixel that no query claims.
    Such pixels stay in the mean's count. A student that were compared with them would be taught to doubt.
    """
    return teacher.amax(1) - teacher.amin(1) > SILENT


class PixelTerm(Term):
    """A term that is a mean over pixels, each pixel by itself.

    So it may be computed over any part of an image and summed: over micro-batches and processes (`Target` holds
    their common count) and over strips of one image (`distill.losses.chunked`).
    """

    @abstractmethod
    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """The value of every pixel, whatever stands where the mask does not count.

        Args:
            student: logits `[N, C, ...]`, float32 or float64.
            teacher: the same of the teacher.
            mask: uint8 `[N, ...]`: class ids, `VOID` or `UNLABELED`.

        Returns:
            `[N, ...]`.
        """

    def total(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """The sum of `per_pixel` over the pixels that count; where the teacher says nothing, only what needs none."""
        counts = mask < UNLABELED if self.needs_labels else mask != VOID
        if teacher is not None and self.needs_teacher:
            counts = counts & speaks(teacher)
        values = self.per_pixel(student, teacher, mask)
        return torch.where(counts, values, 0).sum()

    def mean(self, total: Tensor, target: Target) -> Tensor:
        """The mean over the step's pixels that count, of a sum over those of this micro-batch."""
        return target.mean_over_pixels(total, labeled=self.needs_labels)

    @property
    def chunked(self) -> bool:
        """Whether `per_pixel` at the images' size is all there is to it, so that it may be computed by strips."""
        return True

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The sum over the pixels that count, at the images' size, divided by the step's count of them."""
        logits = student.upsampled()
        other = None if teacher is None or not self.needs_teacher else teacher.upsampled().detach()
        return self.mean(self.total(logits, other, target.mask), target)


LOGITS = "logits"


class MapTerm(Term):
    """A term that compares maps: features by name, or the heads' `logits`; the mean over its layers.

    The student's map is brought to the cells of the teacher's. Where a cell holds several pixels it counts as many
    times as it has pixels that are not void; a cell without any does not count.
    """

    needs_teacher: ClassVar[bool] = True
    many_labels: ClassVar[ManyLabels] = "maps"
    adapts: ClassVar[bool] = False

    def __init__(self, config: TermConfig | None = None):
        super().__init__(config)
        self.layers = tuple(self.config.layers) if isinstance(self.config, LayersConfig) else (LOGITS,)
        self.classes = 0
        self.adapters = nn.ModuleDict()

    @property
    def features(self) -> tuple[str, ...]:  # type: ignore[override]
        """The layers that are features."""
        return tuple(layer for layer in self.layers if layer != LOGITS)

    def build(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
        """Checks the layers, drops those without channels, and makes the adapters; must be called once.

        Raises:
            ValueError: a layer does not exist, or none has channels.
        """
        kept = []
        for layer in self.layers:
            for who, channels in (("student", student_channels), ("teacher", teacher_channels)):
                if layer not in channels:
                    raise ValueError(
                        f"{type(self).__name__}: the {who} has no layer {layer!r}; it has {', '.join(channels)}"
                    )
            if not student_channels[layer] or not teacher_channels[layer]:
                who = "student" if not student_channels[layer] else "teacher"
                warnings.warn(f"{type(self).__name__}: {layer} of the {who} has 0 channels: skipped", stacklevel=2)
                continue
            kept.append(layer)
            if self.adapts:
                adapter = self.make_adapter(student_channels[layer], teacher_channels[layer])
                self.adapters[layer.replace(".", "_")] = adapter
        if not kept:
            raise ValueError(f"{type(self).__name__}: none of {', '.join(self.layers)} has channels; name other layers")
        self.layers = tuple(kept)
        self.classes = student_channels[LOGITS]

    def make_adapter(self, student_channels: int, teacher_channels: int) -> nn.Module:
        """What brings a student's map to the teacher's channels: a 1×1 convolution."""
        return nn.Conv2d(student_channels, teacher_channels, 1)

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The mean of `compare` over the layers.

        Raises:
            ValueError: `build` was not called.
        """
        assert teacher is not None
        if not self.classes:
            raise ValueError(f"{type(self).__name__} does not know the channels of the networks: call build() first")
        return torch.stack([self.layer_value(layer, student, teacher, target) for layer in self.layers]).mean()

    def layer_value(self, layer: str, student: Outputs, teacher: Outputs, target: Target) -> Tensor:
        """`compare` for one layer, on the teacher's cells."""
        ours, theirs = (o.logits if layer == LOGITS else o.features[layer] for o in (student, teacher))
        ours, theirs = at_least_float32(ours), at_least_float32(theirs.detach())
        if self.adapts:
            ours = self.adapters[layer.replace(".", "_")](ours)
        align_corners = teacher.align_corners and layer == LOGITS
        cells = Cells((theirs.shape[2], theirs.shape[3]), teacher.padded_size, align_corners)
        return self.compare(cells.resize(ours, student.padded_size), theirs, cells, target)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """The value for two maps `[N, C, h, w]` on the same cells, float32 or float64; channels may differ."""
