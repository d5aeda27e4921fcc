"""What networks say of an image, side by side, and where teacher and student disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from distill.batch import UNLABELED
from distill.data import Dataset
from distill.data.planes import label_counts
from distill.errors import printable
from distill.models.asked import Asked
from distill.visualize import Palette, colorize, resized, row, viewable, with_legend

STUDENT_WRONG, TEACHER_WRONG, BOTH_WRONG = (230, 60, 50), (60, 130, 240), (245, 190, 40)
MARKS = {"student wrong": STUDENT_WRONG, "teacher wrong": TEACHER_WRONG, "both wrong": BOTH_WRONG}
LEGEND = "Disagreement: red, only the student is wrong; blue, only the teacher; yellow, both, in different ways."
DISAGREEMENT = "disagreement"
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
WIDEST_PANEL = 320  # pixels, where pictures are many
MOST_IN_LEGEND, LONGEST_NAME = 24, 24


@dataclass
class Drawn:
    """An image as panels uint8 `[H, W, 3]` by title, and the names and colors of the classes in them."""

    panels: dict[str, np.ndarray]
    legend: list[tuple[str, tuple[int, int, int]]]


class Pictures:
    """Pictures of some images again and again, while one network changes; what does not change is computed once.

    Args:
        dataset: images with labels.
        indices: of the images to show.
        classes: names by id.
        palette: a color a class.
        fixed: networks that do not change, by name.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int],
        classes: Sequence[str],
        palette: Palette,
        fixed: Mapping[str, Asked] | None = None,
    ):
        self.dataset, self.indices, self.classes, self.palette = dataset, list(indices), list(classes), palette
        self.fixed = {index: masks_of(fixed or {}, dataset.read(index)[0]) for index in self.indices}

    def strips(self, networks: Mapping[str, Asked] | None = None) -> dict[str, np.ndarray]:
        """By the image's name: all panels in a row, uint8 `[H', W', 3]`, with a legend of the colors in it."""
        return {name: joined(drawn, len(drawn.panels)) for name, drawn in self.drawn(networks).items()}

    def blocks(self, networks: Mapping[str, Asked] | None = None) -> dict[str, np.ndarray]:
        """The same in rows of three small panels, which TensorBoard's narrow cards show better."""
        return {name: joined(drawn, 3) for name, drawn in self.drawn(networks, WIDEST_PANEL).items()}

    def drawn(self, networks: Mapping[str, Asked] | None = None, widest: int | None = None) -> dict[str, Drawn]:
        """By the image's name: its panels, at most so wide if asked for."""
        found = {}
        for index in self.indices:
            image, mask = self.dataset.read(index)
            said = self.fixed[index] | masks_of(networks or {}, image)
            shown = panels(image, mask, said, self.palette)
            if widest and (width := image.shape[1]) > widest:
                height = max(1, round(image.shape[0] * widest / width))
                how = {title: BILINEAR if title == "input" else NEAREST for title in shown}
                shown = {title: resized(panel, height, widest, how[title]) for title, panel in shown.items()}
            entries = legend([mask, *said.values()], self.classes, self.palette)
            found[self.dataset.names[index]] = Drawn(shown, entries)
        return found


def joined(drawn: Drawn, columns: int) -> np.ndarray:
    """Panels with their titles in rows of so many, and the legend below, as one picture uint8 `[H', W', 3]`."""
    titles = list(drawn.panels)
    rows = []
    for start in range(0, len(titles), columns):
        part = titles[start : start + columns]
        rows.append(row([drawn.panels[title] for title in part], part))
    width = max(one.shape[1] for one in rows)
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    marks = list(MARKS.items()) if DISAGREEMENT in drawn.panels else []
    return with_legend(np.concatenate(padded), [*drawn.legend, *marks])


def panels(
    image: np.ndarray, mask: np.ndarray, said: Mapping[str, np.ndarray], palette: Palette
) -> dict[str, np.ndarray]:
    """Input | ground truth | each network | where teacher and student disagree, by title.

    Args:
        image: `[H, W, C]`, of any kind.
        mask: uint8 `[H, W]`, or `[C, H, W]` with many labels a pixel.
        said: class ids uint8 of the same shape by network.
        palette: a color a class.

    Returns:
        uint8 `[H, W, 3]` each.
    """
    image = viewable(image)
    found = {"input": image, "ground truth": colorize(mask, palette)}
    order = [name for name in ("teacher", "baseline") if name in said]
    order += [name for name in said if name not in order]
    found |= {name: colorize(said[name], palette) for name in order}
    if "teacher" in said and len(said) > 1:
        student = said[order[-1]]
        found[DISAGREEMENT] = disagreement(image, mask, said["teacher"], student)
    return found


def disagreement(image: np.ndarray, mask: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """The image in gray, with the labeled pixels in color in which teacher and student differ (see `MARKS`)."""
    differ = (mask < UNLABELED) & (teacher != student)
    parts = [differ & (teacher == mask), differ & (student == mask), differ & (teacher != mask) & (student != mask)]
    if mask.ndim == 3:  # of several classes at a pixel, one may be wrong in one and the other in another
        parts = [part.any(0) for part in parts]
    found = (np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 60).astype(np.uint8)
    parts[2] |= parts[0] & parts[1]
    for color, where in zip((STUDENT_WRONG, TEACHER_WRONG, BOTH_WRONG), parts, strict=True):
        found[where] = color
    return found


def legend(
    masks: Sequence[np.ndarray], classes: Sequence[str], palette: Palette
) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colors of the classes that masks show, by id; of very many, the most frequent."""
    counts = sum(label_counts(mask)[: len(classes)] for mask in masks)
    shown = sorted(np.argsort(-np.asarray(counts), kind="stable")[:MOST_IN_LEGEND].tolist())
    entries = []
    for i in shown:
        if np.asarray(counts)[i]:
            name = printable(classes[i])
            short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
            red, green, blue = (int(value) for value in palette[i])
            entries.append((short, (red, green, blue)))
    return entries


def masks_of(networks: Mapping[str, Asked], image: np.ndarray) -> dict[str, np.ndarray]:
    """What networks say of an image `[H, W, C]`, by name: class ids uint8 `[H, W]`; they may be in training mode."""
    found = {}
    for name, network in networks.items():
        training = network.training
        network.eval()
        found[name] = predict(network, image)
        network.train(training)
    return found


@torch.no_grad()
def predict(network: Asked, image: np.ndarray) -> np.ndarray:
    """Class ids uint8 `[H, W]` of an image `[H, W, C]`."""
    return network.decide(network(as_batch(image, network)).upsampled())[0].byte().cpu().numpy()


def as_batch(image: np.ndarray, network: Asked) -> torch.Tensor:
    """An image `[H, W, C]` as a batch of one, where the network is."""
    batch = torch.from_numpy(np.ascontiguousarray(image[None]).copy())
    return batch.permute(0, 3, 1, 2).to(network.mean.device)
