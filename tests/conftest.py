"""Small things that many tests need: a tiny data set on disk, tiny settings, a way to start the script."""

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from no_charts import no_charts
from PIL import Image

from distill.config.parse import parse
from distill.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "data.synthetic_train": 8,
    "data.synthetic_val": 3,
    "data.synthetic_size": [64, 96],
    "data.crop_size": [64, 64],
    "teacher.encoder_name": "tu-test_resnet",
    "student.encoder_name": "tu-test_resnet",
    "student.options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "teacher.max_train_steps": 6,
    "student.max_train_steps": 6,
    "per_device_train_batch_size": 2,
    "eval_steps": 3,
    "checkpointing_steps": 2,
    "logging_steps": 1,
    "num_threads": 1,
}

torch.set_num_threads(1)
# By default hypothesis tries the same examples every time; for the board (-m faults) others, and more of them.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "faults":
        hypothesis.settings.load_profile("full")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "faults":
        for item in items:
            if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
                item.add_marker("faults")


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now stays: a run collects after each stage, and needs not look at it again


def examples(count: int) -> hypothesis.settings:
    """How many examples a test tries by default; twenty times as many, at random, for the board."""
    return hypothesis.settings(max_examples=count if hypothesis.settings.default.derandomize else 20 * count)


def flags(settings: dict) -> list[str]:
    """Settings as command line flags."""
    return [f"--{key}={value}" for key, value in settings.items()]


def tiny_config(folder: Path, **settings) -> Config:
    """A run of seconds; names with `__` for dots."""
    wanted = TINY | {"output_dir": str(folder)} | {k.replace("__", "."): v for k, v in settings.items()}
    return parse(flags(wanted))


def start_script(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = (), **settings
) -> subprocess.CompletedProcess:
    """Runs scripts/distill.py from a folder that is not the repository's."""
    wanted = TINY | {"output_dir": str(folder)} | {k.replace("__", "."): v for k, v in settings.items()}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "distill.py"), *flags(wanted), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(autouse=True)
def quick_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process draw no charts, unless the test is of reporting."""
    if "reporting" not in request.path.parts:
        no_charts(monkeypatch.setattr)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once for all processes that run the tests: `once(name, make)`; it is nobody's to change."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all processes

    def made(name: str, make: Callable[[Path], object]) -> Path:
        place, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                place.mkdir()
                make(place)
                done.touch()
        return place

    return made


@pytest.fixture(scope="session")
def finished(once) -> Path:
    """A finished run of the script, from a folder that is not the repository's; `printed` beside it is what it said."""

    def make(place: Path) -> None:
        run = start_script(place / "tiny", name="tiny")
        assert run.returncode == 0, run.stderr
        (place / "printed").write_text(run.stdout + run.stderr)

    return once("finished", make) / "tiny"


@pytest.fixture(scope="session")
def graphs(once) -> Path:
    """Where known_graphs.py keeps them."""
    return once("graphs", lambda place: None)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Six images in SegNet's layout: four to train, two to validate, classes 0 to 10 and void 11."""
    generator = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for split, count in (("train", 4), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            mask = generator.integers(0, 12, (40, 56), dtype=np.uint8)
            Image.fromarray(image).save(root / split / f"{split}_{i}.jpg")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{split}_{i}.png")
    return root
