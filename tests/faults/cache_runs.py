"""Runs that read a cache or fill it, as the command line starts them, and what befalls their process."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY, flags, tiny_config
from harness import Launch
from PIL import Image

from distill import cli, models
from distill.data import open_splits, save_preprocessing, teacher_cache
from distill.data.synthetic import scene
from distill.training.trainer import Trainer

NOBODY = 65534
TEACHERS = ("teacher", "other")
DATA = {
    "data.format": "folders",
    "data.allow_missing_classes": "true",  # a few scenes do not show them all
    "data.check": "headers",
    "baseline.enabled": "false",
    "export.enabled": "false",
    "num_sample_images": 0,
    "teacher.allow_near_chance": "true",
}


def draw(root: Path) -> None:
    """Scenes as files, eight to train and three to validate."""
    splits = open_splits(tiny_config(root).data)
    for split, dataset in (("train", splits.train), ("val", splits.val)):
        for i in range(len(dataset)):
            draw_pair(root, split, f"{split}_{i}", *dataset.read(i))


def draw_pair(root: Path, split: str, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """An image and its mask as PNG files."""
    for part, values in (("images", image), ("masks", mask)):
        (root / split / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / split / part / f"{name}.png")


def no_fault(folder: Path) -> None:
    """Nothing happens to the run itself."""


def disk_full(folder: Path) -> None:
    """The disk has room for two data files and a half."""
    _at_the_third_file(lambda path, content: _no_space(path))


def killed_filling(folder: Path) -> None:
    """`kill -9` while the third data file is written."""
    _at_the_third_file(lambda path, content: os.kill(os.getpid(), signal.SIGKILL))


def killed_training(folder: Path) -> None:
    """`kill -9` in the fourth step of the student."""
    train_step, steps = Trainer.train_step, iter(range(100))

    def step(self: Trainer, *arguments: Any, **others: Any) -> Any:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, *arguments, **others)

    Trainer.train_step = step  # type: ignore[method-assign]


def read_only(folder: Path) -> None:
    """Who runs may read the cache and not write it; root, to whom nothing is closed, becomes somebody else."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            if "cache" not in path.relative_to(folder).parts:
                os.chown(path, NOBODY, NOBODY)
        for above in folder.parents:
            if "pytest-" in str(above) or "board-" in str(above):  # these are closed to others
                above.chmod(0o755)
        os.seteuid(NOBODY)
    else:
        (folder / "cache").chmod(0o555)


FAULTS = {function.__name__: function for function in (no_fault, disk_full, killed_filling, killed_training, read_only)}


def _open_again(folder: Path) -> None:
    """Takes back what `read_only` did."""
    if (folder / "cache").is_dir():
        (folder / "cache").chmod(0o755)


def _at_the_third_file(happens: Callable[[Path, bytes], object]) -> None:
    written, files = Path.write_bytes, iter(range(100))

    def write(path: Path, content: bytes) -> int:
        if path.name.endswith(".tmp") and next(files) == 3:  # the manifest is the first
            written(path, content[: len(content) // 2])
            happens(path, content)
        return written(path, content)

    Path.write_bytes = write  # type: ignore[method-assign]


def _no_space(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def command(folder: Path, arguments: Sequence[str], fault: str) -> int:
    """The command line in this process, with two maps a file; exit code."""
    teacher_cache.MAPS_PER_FILE = 2
    FAULTS[fault](folder)
    return cli.main(arguments)


def arguments(folder: Path, run: str = "run", **settings: Any) -> list[str]:
    """The command line of a student's training from a teacher that is there."""
    usual = {"data.classes": [*scene.CLASSES], "teacher.checkpoint": "teacher", "teacher.cache.dir": folder / "cache"}
    wanted = {k: v for k, v in TINY.items() if not k.startswith("data.synth")} | DATA | usual | settings
    wanted |= {"output_dir": folder / run, "data.root": folder / "data"}
    wanted["teacher.checkpoint"] = folder / wanted["teacher.checkpoint"]
    return ["train", *flags({k: json.dumps(v) if isinstance(v, list) else v for k, v in wanted.items()})]


def launched(folder: Path, fault: str = "no_fault", run: str = "run", **settings: Any) -> Launch:
    """That command line, under way; what it prints goes to a file beside `folder`."""
    log = folder.parent / f"{run}.log"
    log.unlink(missing_ok=True)
    return Launch(command, (folder, arguments(folder, run, **settings), fault), 1, log)


def finished(folder: Path, fault: str = "no_fault", **settings: Any) -> tuple[int, str]:
    """Exit code, and what was printed."""
    _open_again(folder)
    launch = launched(folder, fault, **settings)
    (code,) = launch.wait()
    return code, launch.output()


def prepare(folder: Path) -> None:
    """Data, two teachers, and the cache of one of them as a run left it; the run is not kept."""
    draw(folder / "data")
    wanted = tiny_config(folder / "run").teacher
    for seed, name in enumerate(TEACHERS):
        torch.manual_seed(seed)
        teacher = models.build(wanted, scene.CLASSES)
        models.save(teacher, folder / name)
        save_preprocessing(folder / name, wanted.mean, wanted.std, teacher.stride)


class Place:
    """A folder that is the same each time, and the students that runs in it should end with.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.saved, self.folder, self.known = folder / "saved", folder / "place", {}
        prepare(self.folder)
        shutil.copytree(self.folder, self.saved)
        self.known[""] = self.student()
        shutil.copytree(self.folder / "cache", self.saved / "cache")

    def fresh(self) -> Path:
        """The folder, as it was before anything was done to it."""
        _open_again(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return shutil.copytree(self.saved, self.folder)

    def student(self, name: str = "", change: Callable[[Path], object] = no_fault) -> bytes:
        """What a run ends with that begins with no cache, once the change is made."""
        if name not in self.known:
            change(self.fresh())
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            code, said = finished(self.folder)
            assert code == 0, said
            self.known[name] = student(self.folder)
        return self.known[name]


def student(folder: Path, run: str = "run") -> bytes:
    """The weights that a run ended with; nothing if there are none."""
    path = folder / run / "student" / "model.safetensors"
    return path.read_bytes() if path.is_file() else b""


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, file by file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
