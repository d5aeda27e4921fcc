"""Cross-image relational distillation: places related across the images of a batch, and to a memory of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Target
from distill.losses.base import MapTerm
from distill.losses.grid import Cells
from distill.losses.maps import kl_over, log_softmax_over
from distill.losses.relations import nodes, prototypes_of


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
    different value. The mini-batch part is averaged over the step's micro-batches. Each process has its own memory
    unless buffers are broadcast. Only labelled pixels enter the memory; images without labels learn from it.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str] = ("decoder",),
        temperature: float = 0.1,
        side: int = 16,
        pixel_memory: float = 0.1,
        region_memory: float = 0.1,
        pixel_slots: int = 256,
        region_slots: int = 64,
        pixels_per_image: int = 4,
    ):
        """Settings.

        Args:
            layers: one map.
            temperature: T > 0 of the similarities.
            side: maps are pooled to at most side × side places.
            pixel_memory: a, weight of the pixel memory beside the mini-batch; 0 leaves it out.
            region_memory: b, likewise.
            pixel_slots: places kept a class.
            region_slots: regions kept a class.
            pixels_per_image: places that an image adds for each of its classes.

        Raises:
            ValueError: not one layer, or a temperature that is not above 0.
        """
        super().__init__(layers)
        if len(self.layers) != 1:
            raise ValueError(f"layers={list(layers)}: CIRKD takes one layer")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        self.temperature = temperature
        self.side = side
        self.pixel_memory = pixel_memory
        self.region_memory = region_memory
        self.pixel_slots = pixel_slots
        self.region_slots = region_slots
        self.pixels_per_image = pixels_per_image

    def build(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
        """Also makes the memories and the student's projection."""
        super().build(student_channels, teacher_channels)
        ours, theirs = student_channels[self.layers[0]], teacher_channels[self.layers[0]]
        if self.pixel_memory or self.region_memory:
            self.project = nn.Sequential(nn.Conv2d(ours, theirs, 1), nn.ReLU(), nn.Conv2d(theirs, theirs, 1))
        if self.pixel_memory:
            self.pixels = Memory(self.classes, self.pixel_slots, theirs)
        if self.region_memory:
            self.regions = Memory(self.classes, self.region_slots, theirs)

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype)
        total = self.mini_batch(student, teacher, counts) / target.micro_batches
        if not (self.pixel_memory or self.region_memory):
            return total
        if self.training:
            self.remember(teacher, cells.count(target.mask, self.classes, student.dtype))
        ours, share = nodes(self.project(student), counts, self.side)
        theirs, _ = nodes(teacher, counts, self.side)
        pixels = share * counts.sum((1, 2))[:, None]  # a place counts as often as it has pixels
        for weight, name in ((self.pixel_memory, "pixels"), (self.region_memory, "regions")):
            if weight:
                entries, filled = getattr(self, name).contents()
                entries, filled = entries.to(ours.dtype), filled.to(ours.dtype)
                a, b = (log_softmax_over(x @ entries.T, filled, self.temperature) for x in (ours, theirs))
                total = total + weight * (pixels * kl_over(a, b)).sum() / target.valid_count
        return total

    def mini_batch(self, student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
        """The mini-batch part; an image that is all void counts 0 in each pair."""
        (ours, share), (theirs, _) = nodes(student, counts, self.side), nodes(teacher, counts, self.side)
        a, b = (
            log_softmax_over(torch.einsum("npc,mqc->nmpq", x, x), share[None, :, None, :], self.temperature)
            for x in (ours, theirs)
        )
        divergence = kl_over(a, b)
        return torch.einsum("nmp,np->nm", divergence, share).mean()

    @torch.no_grad()
    def remember(self, teacher: Tensor, counts: Tensor) -> None:
        """Puts places and mean features of the teacher's map into the memories, one image after the other."""
        counts = counts.flatten(2)
        features = teacher.flatten(2)
        present = counts.sum(2) > 0
        means = prototypes_of(features, counts)
        for n in range(len(features)):
            if self.region_memory:
                self.regions.push(means[n], present[n])
            for _ in range(self.pixels_per_image if self.pixel_memory else 0):
                chosen = (torch.rand(counts[n].shape, device=counts.device) * counts[n]).argmax(1)
                self.pixels.push(features[n, :, chosen].T, present[n])
