"""A teacher of any kind with the interface of `Network`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import RGB, ImageKind, Outputs
from distill.errors import ConfigError
from distill.models.foreign.contract import Kind, check_kind, check_many, log_probabilities, many_logits
from distill.models.foreign.source import RECORD
from distill.models.foreign.tiled import Windows
from distill.models.network import Network


@dataclass
class Found:
    """A teacher that was opened.

    Attributes:
        model: from images `[N, 3, H, W]`, normalized, to a map `[N, K, h, w]`.
        name: what it is, such as `transformers SegformerForSemanticSegmentation`.
        outputs: how many classes it has; 2 if its one channel is that of a sigmoid.
        kind: what the numbers of its map are.
        classes: their names, if it says them.
        mean: of the RGB channels of images in 0 to 1 that it takes, if it says so.
        std: standard deviation likewise.
        said_by: who says so.
        bgr: it takes the channels the other way round.
        stride: images are padded to multiples of it.
        size: the only height and width that it takes, if so.
        notes: what else was found.
    """

    model: nn.Module
    name: str
    outputs: int
    kind: Kind
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    said_by: str = "teacher.mean, teacher.std"
    bgr: bool = False
    stride: int = 32
    size: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)


class ForeignNetwork(Network):
    """A teacher that is not SMP's: it only answers, and is never trained.

    Args:
        found: what was opened.
        classes: names of its classes.
        mean: of the RGB channels of images in 0 to 1.
        std: standard deviation likewise.
        window: height and width of the windows in which larger images are seen; None sees them whole.
        smoothing: of labels, see `log_probabilities`.
        known_by: what it is known again by: file (or other part) → SHA-256.
        image: the images.
        bands: which three of their channels it takes.
        multilabel: its classes do not exclude each other.

    Raises:
        ConfigError: they do, by what it gives.
    """

    def __init__(
        self,
        found: Found,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        window: Sequence[int] | None = None,
        smoothing: float = 0.1,
        known_by: Mapping[str, str] | None = None,
        image: ImageKind = RGB,
        bands: Sequence[int] | None = None,
        multilabel: bool = False,
    ):
        nn.Module.__init__(self)
        self.multilabel = multilabel
        if multilabel:
            check_many(found.kind, found.name)
        self.model, self.answer_kind, self.bgr = found.model, found.kind, found.bgr
        self.name, self.classes, self.smoothing = found.name, list(classes), smoothing
        self.fixed_size = False
        self.known_by = dict(known_by or {})
        self.takes(image, bands, mean, std)
        self.stride, self.window = found.stride, tuple(window) if window else None
        self.tile_stride = 1
        if self.window:
            self.stride = self.tile_stride = self._cell(self.window)

    @property
    def kind(self) -> str:
        """What it is called in messages and reports."""
        return self.name

    @property
    def channels(self) -> dict[str, int]:
        """There are no maps but the logits."""
        return {"logits": len(self.classes)}

    def identity(self) -> dict[str, Any]:
        """See `Asked.identity`; what it is known by stands for weights that no module holds."""
        return super().identity() | {"architecture": self.name, "known_by": self.known_by} | self._manner()

    def normalize(self, image: Tensor) -> Tensor:
        """What the teacher takes: the image less its mean, in standard deviations."""
        x = super().normalize(image)
        return x.flip(1) if self.bgr else x

    def forward(self, image: Tensor, features: Sequence[str] = ()) -> Outputs:
        """See `Network.forward`; there are no feature maps."""
        x, size = self.normalize(image), image.shape[-2:]
        if self.window and tuple(size) != self.window:
            windows = Windows(self._of_window, self.window, self.tile_stride, self.multilabel)
            x = windows.pad(x)
            self._refuse(features)
            return Outputs(windows(x), (size[0], size[1]), (x.shape[-2], x.shape[-1]), False)
        return self.outputs(self.pad(x, self.stride), size, features)

    def outputs(self, x: Tensor, size: Sequence[int], features: Sequence[str] = ()) -> Outputs:
        """See `Network.outputs`.

        Raises:
            ConfigError: a feature map was asked for, or it gives something else than its classes.
        """
        self._refuse(features)
        logits = self._of_window(x) if self.window else self._asked(x)
        return Outputs(logits, (size[0], size[1]), (x.shape[-2], x.shape[-1]), False)

    def save_weights(self, folder: Path) -> None:
        """Writes what it is known again by; its weights stay where they are."""
        record = {"teacher": self.name, "known_by": self.known_by} | self._manner()
        (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _manner(self) -> dict[str, Any]:
        return {"kind": self.answer_kind, "bgr": self.bgr, "window": self.window, "smoothing": self.smoothing}

    def _refuse(self, features: Sequence[str]) -> None:
        if features:
            raise ConfigError(f"{self.name}: gives logits alone, no feature map {features[0]}")

    def _asked(self, x: Tensor) -> Tensor:
        """Logits, float32 `[N, C, h, w]`."""
        answer = self.model(x)
        count, wanted = answer.shape[1], len(self.classes)
        if self.answer_kind != "labels" and count != wanted and (count, wanted) != (1, 2):
            raise ConfigError(f"{self.name}: gives {count} channels, but has {wanted} classes; set teacher.class_names")
        with torch.autocast(x.device.type, enabled=False):
            check_kind(answer, self.answer_kind, self.name)
            if self.multilabel:
                return many_logits(answer, self.answer_kind)
            return log_probabilities(answer, self.answer_kind, wanted, self.smoothing)

    def _of_window(self, x: Tensor) -> Tensor:
        """The same of one window, with cells of whole pixels."""
        logits = self._asked(x)
        grid = [n // self.tile_stride for n in x.shape[-2:]]
        if list(logits.shape[-2:]) != grid:
            logits = F.interpolate(logits, grid, mode="bilinear", align_corners=False)
        return logits

    @torch.no_grad()
    def _cell(self, window: Sequence[int]) -> int:
        """Pixels of a cell of a window's map: its own, if they are whole and square, else 1; tries it out."""
        answer = self.model(torch.zeros(1, self.mean.shape[1], *window, device=self.mean.device))
        ratios = [n / cells for n, cells in zip(window, answer.shape[-2:], strict=True)]
        return int(ratios[0]) if ratios[0] == ratios[1] and ratios[0].is_integer() else 1


def weights_of(folder: Path) -> Path:
    """The file of a network's folder that its weights are known by: of a foreign teacher, its record."""
    weights = folder / "model.safetensors"
    return folder / RECORD if not weights.is_file() and (folder / RECORD).is_file() else weights
