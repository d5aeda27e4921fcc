"""The files of a trial: its scores on each set of images, and the confusion matrix of every image, compressed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.sweep.statistics import count_images

if TYPE_CHECKING:
    from distill.data import Dataset

SCORES = "scores.json"
VALIDATION = "validation"


@dataclass
class ScoredSet:
    """Images to score on.

    Attributes:
        dataset: the images.
        settings: by which it differs from the validation images.
    """

    dataset: Dataset
    settings: dict[str, Any]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """By what it is known again: settings, number of images, and a hash of their names and files."""
        from distill.data import contents_of

        return {"settings": self.settings, "count": len(self.dataset), "content": contents_of(self.dataset)}


def matrices_path(folder: Path, name: str) -> Path:
    """Where the matrices of a set are."""
    return folder / f"confusion-{name}.npz"


def write_matrices(
    folder: Path,
    name: str,
    cells: np.ndarray,
    images: Sequence[str],
    classes: Sequence[str],
    multilabel: bool = False,
) -> None:
    """Writes the confusion matrices of single images, replaced as a whole.

    Args:
        folder: of the trial.
        name: of the set.
        cells: int64 `[K, 3]` of image, true class × classes + predicted class, and pixels; all else is 0.
        images: their names.
        classes: their names.
        multilabel: whether there is a class more in the cells, that of none.
    """
    path = matrices_path(folder, name)
    temporary = path.with_name(f".{path.name}.tmp")
    columns = dict(zip(("image", "cell", "pixels"), cells.T, strict=True))
    small = {"image": columns["image"].astype(np.uint32), "cell": columns["cell"].astype(np.uint32)}
    small |= {"multilabel": np.array(True)} if multilabel else {}
    with temporary.open("wb") as file:
        np.savez_compressed(
            file, **small, pixels=columns["pixels"], names=np.array(images, np.str_), classes=np.array(classes, np.str_)
        )
    temporary.replace(path)


def read_counts(folder: Path, name: str) -> tuple[np.ndarray, list[str]] | None:
    """Counts int64 `[images, 3, C]` of a set and the images' names; None if they are not there or damaged."""
    try:
        with np.load(matrices_path(folder, name), allow_pickle=False) as file:
            names, classes = file["names"].tolist(), len(file["classes"])
            cells = np.stack([file[key].astype(np.int64) for key in ("image", "cell", "pixels")], axis=1)
            multilabel = "multilabel" in file
        return count_images(cells, len(names), classes, multilabel), names
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return None


def is_scored(folder: Path, known: Mapping[str, Any], name: str, scored: ScoredSet) -> bool:
    """Whether the scores of a set are there, and are of these images."""
    return known.get(name, {}).get("images") == scored.identity and read_counts(folder, name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there or damaged, so that it is made again."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
