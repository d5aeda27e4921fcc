"""Cross-image relational distillation: places related across the images of a batch, and to a memory of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Target
from distill.losses.base import ManyLabels, MapTerm
from distill.losses.geometry import Cells
from distill.losses.maps import kl_over, log_softmax_over
from distill.losses.relational import nodes, prototypes_of
from distill.losses.settings import CIRKDConfig


class Memory(nn.Module):
    """The last unit vectors of each class, a ring; part of the state, so that a resumed run goes on exactly."""

    entries: Tensor
    pushed: Tensor

    def __init__(self, classes: int, slots: int, channels: int):
        """An empty memory.

        Args:
            classes: K.
            slots: vectors kept a class.
            channels: of a vector.
        """
        super().__init__()
        self.register_buffer("entries", torch.zeros(classes, slots, channels))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.long))

    def push(self, vectors: Tensor, present: Tensor) -> None:
        """Adds one vector a class, `[K, C]`, for the classes that are present, bool `[K]`, over the oldest."""
        rows, slots = torch.arange(len(self.pushed), device=self.pushed.device), self.pushed % self.entries.shape[1]
        vectors = F.normalize(vectors, dim=1).to(self.entries.dtype)
        self.entries[rows, slots] = torch.where(present[:, None], vectors, self.entries[rows, slots])
        self.pushed += present

    def contents(self) -> tuple[Tensor, Tensor]:
        """All vectors, `[K · slots, C]`, as a copy, and 1 for those that are filled, 0 for the others."""
        filled = torch.arange(self.entries.shape[1], device=self.pushed.device) < self.pushed[:, None]
        return self.entries.flatten(0, 1).clone(), filled.flatten().to(self.entries.dtype)


class CIRKD(MapTerm):
    """Cross-image relational distillation: mini-batch + a · pixel memory + b · region memory.

    Each part compares, for each place, the distribution softmax(similarity / T) of teacher and student over other
    places by KL(teacher‖student); similarities are cosines.

    - mini-batch: over the places of each image of the micro-batch in turn, mean over places and pairs of images.
    - pixel memory, region memory: over features of the teacher kept from earlier images, balanced between classes:
      single places, and mean features of a class in an image. The student's features go through an adapter of two
      1×1 convolutions. Mean over the pixels that are not void; maps are pooled to `side` × `side` places here too,
      where the paper asks the memory for every cell, at ten times the cost.

    Yang et al., Cross-Image Relational Knowledge Distillation for Semantic Segmentation, 2022, arXiv:2204.06986. It
    relates the images of a micro-batch, and the memory holds what came before: a step split differently gives a
    different value. The mini-batch part is averaged over the step's micro-batches, and pairs images of one process.
    The memory is one for all processes, which exchange what they add to it. Only labeled pixels enter it; images
    without labels learn from it.

    Where the authors' program is another: their projection has BatchNorm; they compare with a random part of the
    memory, which starts full of noise, and here with all that is filled; they add up to 16 different places of a class
    and image, here `pixels_per_image`, drawn in proportion to the class's pixels there, with repetition.
    """

    Config = CIRKDConfig
    config: CIRKDConfig
    many_labels: ClassVar[ManyLabels] = "cannot"

    def build(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
        """Also makes the memories and the student's projection."""
        super().build(student_channels, teacher_channels)
        ours, theirs = student_channels[self.layers[0]], teacher_channels[self.layers[0]]
        if self.config.pixel_memory or self.config.region_memory:
            self.project = nn.Sequential(nn.Conv2d(ours, theirs, 1), nn.ReLU(), nn.Conv2d(theirs, theirs, 1))
        if self.config.pixel_memory:
            self.pixels = Memory(self.classes, self.config.pixel_slots, theirs)
        if self.config.region_memory:
            self.regions = Memory(self.classes, self.config.region_slots, theirs)

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype)
        total = target.mean_over_micro_batches(self.mini_batch(student, teacher, counts))
        if not (self.config.pixel_memory or self.config.region_memory):
            return total
        if self.training:
            self.remember(teacher, cells.count(target.mask, self.classes, student.dtype))
        ours, share = nodes(self.project(student), counts, self.config.side)
        theirs, _ = nodes(teacher, counts, self.config.side)
        pixels = share * counts.sum((1, 2))[:, None]  # a place counts as often as it has pixels
        for weight, name in ((self.config.pixel_memory, "pixels"), (self.config.region_memory, "regions")):
            if weight:
                entries, filled = getattr(self, name).contents()
                entries, filled = entries.to(ours.dtype), filled.to(ours.dtype)
                a, b = (log_softmax_over(x @ entries.T, filled, self.config.temperature) for x in (ours, theirs))
                total = total + target.mean_over_pixels(weight * (pixels * kl_over(a, b)).sum())
        return total

    def mini_batch(self, student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
        """The mini-batch part; an image that is all void counts 0 in each pair."""
        (ours, share), (theirs, _) = nodes(student, counts, self.config.side), nodes(teacher, counts, self.config.side)
        a, b = (
            log_softmax_over(torch.einsum("npc,mqc->nmpq", x, x), share[None, :, None, :], self.config.temperature)
            for x in (ours, theirs)
        )
        divergence = kl_over(a, b)
        return torch.einsum("nmp,np->nm", divergence, share).mean()

    @torch.no_grad()
    def remember(self, teacher: Tensor, counts: Tensor) -> None:
        """Puts places and mean features of the teacher's map into the memories, image by image of all processes."""
        counts, features = counts.flatten(2), teacher.flatten(2)
        present = of_all_processes(counts.sum(2)) > 0
        if self.config.region_memory:
            for means, here in zip(of_all_processes(prototypes_of(features, counts)), present, strict=True):
                self.regions.push(means, here)
        if self.config.pixel_memory:
            drawn = torch.stack([draw(features, counts) for _ in range(self.config.pixels_per_image)], 1)
            for places, here in zip(of_all_processes(drawn), present, strict=True):
                for vectors in places:
                    self.pixels.push(vectors, here)


def draw(features: Tensor, counts: Tensor) -> Tensor:
    """The vector of one place for each class and image `[N, K, C]`, drawn in proportion to the class's pixels there.

    Args:
        features: `[N, C, P]`.
        counts: pixels of each class `[N, K, P]`; a class without any gets the first place.
    """
    # Of waiting times with rates proportional to the counts, each is the shortest in proportion to its rate.
    place = (counts / torch.empty_like(counts).exponential_()).argmax(2)
    return features.transpose(1, 2).gather(1, place.unsqueeze(2).expand(-1, -1, features.shape[1]))


def of_all_processes(x: Tensor) -> Tensor:
    """Equally shaped tensors of all processes, joined along the first axis in the order of their ranks."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
