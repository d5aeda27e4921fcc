"""A stopped or finished run goes on with the data and the teacher that it began with, or says what is another."""

import contextlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from harness import Figure
from PIL import Image
from safetensors.torch import load_file, save_file

from distill import cli, models, pipeline
from distill.cli import run_here as main
from distill.config.schema import Config
from distill.data import save_preprocessing
from distill.data.layout_names import CAMVID as CAMVID_CLASSES
from distill.training import distributed

PREPROCESSING = "albumentations_config_eval.json"
# Where a run stands when something is changed → after which question whether to stop it stops; None: it ends.
STANDS = {"in the teacher": 2, "in the student": 2, "in the student of its own teacher": 8, "at the end": None}


@dataclass
class Way:
    """Something that is changed while a run stands still.

    Attributes:
        stands: where, one of `STANDS`.
        change: gets the folder that holds `data`, `teacher` and `run`.
        words: what the run must say.
        settings: given when it is started again.
    """

    stands: str
    change: Callable[[Path], object]
    words: str
    settings: dict[str, Any] = field(default_factory=dict)


def draw(folder: Path) -> None:
    """Data in SegNet's layout, with images that have no labels."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("more", 2)):
        for i in range(count):
            draw_pair(folder, split, f"{split}_{i}", generator)
    shutil.rmtree(folder / "moreannot")


def draw_pair(folder: Path, split: str, name: str, generator: np.random.Generator) -> None:
    for place in (folder / split, folder / f"{split}annot"):
        place.mkdir(parents=True, exist_ok=True)
    image, mask = generator.integers(0, 256, (40, 56, 3), np.uint8), generator.integers(0, 12, (40, 56), np.uint8)
    Image.fromarray(image).save(folder / split / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{split}annot" / f"{name}.png")


def edit(path: Path) -> None:
    """One value of an image or mask, behind its old times."""
    stat, values = path.stat(), np.array(Image.open(path))
    values.flat[0] = (values.flat[0] + 1) % 11
    Image.fromarray(values).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def more(folder: Path, split: str) -> None:
    draw_pair(folder / "data", split, f"{split}_9", np.random.default_rng(9))
    if split == "more":
        shutil.rmtree(folder / "data" / "moreannot")


def less(folder: Path) -> None:
    for place in ("train", "trainannot"):
        (folder / "data" / place / "train_3.png").unlink()


def rename(folder: Path) -> None:
    for place in ("train", "trainannot"):
        (folder / "data" / place / "train_0.png").rename(folder / "data" / place / "train_9.png")


def swap(folder: Path) -> None:
    one, other, aside = (folder / "data" / "trainannot" / f"train_{i}.png" for i in "12x")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def other_root(folder: Path) -> None:
    shutil.copytree(folder / "data", folder / "other")
    edit(folder / "other" / "trainannot" / "train_2.png")


def normalization(folder: Path, key: str) -> None:
    path = folder / PREPROCESSING
    saved = json.loads(path.read_text())
    (normalize,) = (t for t in saved["transform"]["transforms"] if t["__class_fullname__"].endswith("Normalize"))
    normalize[key][0] *= 1.01
    path.write_text(json.dumps(saved))


def config_json(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_dropout": 0.5}))


def weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file(tensors | {name: tensors[name] * 1.01}, path, {"format": "pt"})


def data_way(stands: str, change: Callable[[Path], object], split: str, **settings) -> Way:
    return Way(stands, change, f"data.{split}_files", settings)


IN_TEACHER, IN_STUDENT, OWN, END = STANDS
WAYS: dict[str, Way] = {
    "a label": data_way(IN_TEACHER, lambda f: edit(f / "data/trainannot/train_1.png"), "train"),
    "a label, nothing checked": data_way(
        IN_TEACHER, lambda f: edit(f / "data/trainannot/train_1.png"), "train", data__check="off"
    ),
    "a value of an image": data_way(IN_TEACHER, lambda f: edit(f / "data/train/train_1.png"), "train"),
    "an image more": data_way(IN_TEACHER, lambda f: more(f, "train"), "train"),
    "an image less": data_way(IN_TEACHER, less, "train"),
    "an image of another name": data_way(IN_TEACHER, rename, "train"),
    "two masks swapped": data_way(IN_TEACHER, swap, "train"),
    "another data.root": data_way(IN_TEACHER, other_root, "train", data__root="other"),
    "a label to score on": data_way(IN_TEACHER, lambda f: edit(f / "data/valannot/val_1.png"), "val"),
    "an image more to score on": data_way(IN_TEACHER, lambda f: more(f, "val"), "val"),
    "a label, teacher from elsewhere": data_way(IN_STUDENT, lambda f: edit(f / "data/trainannot/train_1.png"), "train"),
    "an image more without labels": data_way(IN_STUDENT, lambda f: more(f, "more"), "unlabeled"),
    "a value of an image without labels": data_way(IN_STUDENT, lambda f: edit(f / "data/more/more_1.png"), "unlabeled"),
    "the teacher's mean": Way(IN_STUDENT, lambda f: normalization(f / "teacher", "mean"), "teacher.files"),
    "the teacher's std": Way(IN_STUDENT, lambda f: normalization(f / "teacher", "std"), "teacher.files"),
    "the teacher's preprocessing removed": Way(
        IN_STUDENT, lambda f: (f / "teacher" / PREPROCESSING).unlink(), "teacher.files"
    ),
    "the teacher's classes removed": Way(
        IN_STUDENT, lambda f: (f / "teacher" / "id2label.json").unlink(), "teacher.files"
    ),
    "the teacher's options": Way(IN_STUDENT, lambda f: config_json(f / "teacher"), "teacher.files"),
    "the teacher's weights": Way(IN_STUDENT, lambda f: weights(f / "teacher"), "teacher.checkpoint"),
    "its own teacher's mean": Way(OWN, lambda f: normalization(f / "run" / "teacher", "mean"), PREPROCESSING),
    "its own teacher's weights": Way(OWN, lambda f: weights(f / "run" / "teacher"), "model.safetensors"),
    "a label when the teacher is finished": data_way(OWN, lambda f: edit(f / "data/trainannot/train_1.png"), "train"),
    "a label at the end": data_way(END, lambda f: edit(f / "data/trainannot/train_1.png"), "train"),
    "the teacher's mean at the end": Way(END, lambda f: normalization(f / "teacher", "mean"), "teacher.files"),
    "the student's mean at the end": Way(END, lambda f: normalization(f / "run" / "student", "mean"), PREPROCESSING),
}
# What is no change: these must go on, and end with the same bits.
RUNTIME_SETTINGS: dict[str, Way] = {
    "nothing": Way(IN_STUDENT, lambda f: None, ""),
    "data in another place": Way(
        IN_STUDENT, lambda f: (f / "data").rename(f / "other"), "", {"data__root": "other", "data__check": "headers"}
    ),
    "new times": Way(IN_STUDENT, lambda f: [os.utime(path) for path in (f / "data").rglob("*.png")], ""),
}


def settings_of(folder: Path, stands: str, **settings) -> Config:
    """A short run with images that have no labels."""
    settings = {"data__root": "data", "data__format": "camvid", "data__unlabeled": "more"} | settings
    if stands in (IN_STUDENT, END):
        settings["teacher__checkpoint"] = folder / "teacher"
    settings["data__root"] = folder / settings["data__root"]
    return tiny_config(folder / "run", baseline__enabled=False, export__enabled=False, **settings)


@contextlib.contextmanager
def stopping(after: int | None) -> Iterator[None]:
    """Runs stop at that question whether they should, and no teacher is too bad."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "check_teacher", lambda *_: None)
        asked = itertools.count(1)
        patch.setattr(distributed, "stop_on_signal", lambda: lambda: next(asked) == after)
        yield


def prepare(folder: Path, stands: str) -> None:
    """Data, a teacher, and a run that stands there."""
    draw(folder / "data")
    torch.manual_seed(3)
    wanted = tiny_config(folder / "run").teacher
    teacher = models.build(wanted, CAMVID_CLASSES)
    models.save(teacher, folder / "teacher")
    save_preprocessing(folder / "teacher", wanted.mean, wanted.std, teacher.stride)
    if stands == IN_STUDENT:  # so that what it is stopped in is the training
        with stopping(None):
            pipeline.fill_cache(settings_of(folder, stands))
    with stopping(STANDS[stands]):
        code = main(settings_of(folder, stands))
    assert code == (cli.EXIT_STOPPED if STANDS[stands] else 0)


def start_again(folder: Path, way: Way, **settings) -> tuple[int, str]:
    """Makes the change and starts the run again: exit code, and what it said about errors."""
    way.change(folder)
    said = io.StringIO()
    with stopping(None), contextlib.redirect_stderr(said):
        code = main(settings_of(folder, way.stands, **way.settings | settings))
    return code, said.getvalue()


def ready(folder: Path, stands: str) -> Path:
    """A place where a run stands, as it was before anything was changed."""
    place, saved = folder / stands, folder / "saved" / stands
    if not saved.exists():
        prepare(place, stands)
        shutil.copytree(place, saved)
    shutil.rmtree(place)
    shutil.copytree(saved, place)
    return place


def mixings(names: Sequence[str], folder: Path) -> Figure:
    """Starts a run again on changed data or with a changed teacher, in each way."""
    failures = []
    for name in names:
        way = WAYS[name]
        place = ready(folder, way.stands)
        before = (place / "run" / "config.yaml").read_bytes()
        code, said = start_again(place, way)
        if code != 1:
            failures.append(f"{name}: went on with it")
        elif way.words not in said or len(said.splitlines()) != 1:
            failures.append(f"{name}: {said!r}")
        elif "at the end" not in name and (place / "run" / "config.yaml").read_bytes() != before:
            failures.append(f"{name}: refused, and the settings overwritten")
    mixed = sum("went on" in failure for failure in failures)
    return Figure(
        "data or teacher changed between stop and resume, and mixed",
        f"0 / {len(names)}",
        f"{mixed} / {len(names)}",
        not failures,
        failures,
        {"ways": list(names)},
    )
