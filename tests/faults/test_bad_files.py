"""Bad files: each is named with a fix before the first step, and none is trained on. Odd ones are read right."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from bad_files import BAD, FIX, HEIGHT, IMAGE, MASK, SETTINGS, WIDTH, bad_files, draw, instead, paint, start
from conftest import tiny_config
from harness import Launch, distil
from PIL import Image, PngImagePlugin

from distill.batch import VOID
from distill.data import check_splits, open_splits
from distill.data.synthetic import scene


def test_bad_files_are_named_and_not_trained_on(tmp_path):
    assert len(BAD) >= 40
    figure = bad_files(list(BAD), tmp_path)
    assert figure.ok, "\n".join(figure.failures)


def test_void_may_be_another_value_and_is_then_no_label(tmp_path):
    root = draw(tmp_path / "data")
    paint(np.uint8, 255)(root)
    code, message = start(tmp_path / "run", root, data__ignore_index=200)
    assert code == 1
    assert "label 255" in message
    assert "65535" in start(tmp_path / "run", root, data__ignore_index=70_000)[1]


@pytest.mark.parametrize("name", ["train/images", IMAGE])
def test_what_may_not_be_read_is_named(tmp_path, name):
    root = draw(tmp_path / "data")
    # Imports what reading needs: to somebody else, where it is installed may be closed, too.
    config = tiny_config(tmp_path / "run", data__root=root, **SETTINGS).data
    check_splits(open_splits(config), config)
    (root / name).chmod(0)
    for folder in (tmp_path, *(f for f in tmp_path.parents if "pytest-" in str(f))):  # pytest's are closed to others
        folder.chmod(0o755)
    root_user = os.geteuid() == 0
    if root_user:  # to whom nothing is closed
        os.seteuid(65534)
    try:
        code, message = start(tmp_path / "run", root)
    finally:
        if root_user:
            os.seteuid(0)
    (root / name).chmod(0o755)
    assert code == 1
    assert str(root / name) in message
    assert FIX.search(message)


def sample() -> tuple[np.ndarray, np.ndarray]:
    return scene.render(0, 2, HEIGHT, WIDTH)


def palette(path: Path) -> None:
    image = Image.fromarray(sample()[1])
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


MASKS = {
    "8 bits": lambda p: Image.fromarray(sample()[1]).save(p),
    "palette": palette,
    "16 bits": lambda p: Image.fromarray(sample()[1].astype(np.uint16)).save(p),
    "32 bits": lambda p: Image.fromarray(sample()[1].astype(np.int32)).save(p.with_suffix(".tif")),
    "BMP": lambda p: Image.fromarray(sample()[1]).save(p.with_suffix(".bmp")),
    "capitals": lambda p: Image.fromarray(sample()[1]).save(p.with_suffix(".PNG")),
}
IMAGES = {
    "PNG": lambda p: Image.fromarray(sample()[0]).save(p.with_suffix(".png")),
    "transparent": lambda p: Image.fromarray(np.dstack([sample()[0], sample()[0][..., :1]])).save(
        p.with_suffix(".png")
    ),
    "WebP": lambda p: Image.fromarray(sample()[0]).save(p.with_suffix(".webp"), lossless=True),
    "capitals": lambda p: Image.fromarray(sample()[0]).save(p.with_suffix(".PNG")),
    "PNG named jpg": lambda p: Image.fromarray(sample()[0]).save(p, "PNG"),
    "progressive": lambda p: Image.fromarray(sample()[0]).save(p, quality=100, subsampling=0, progressive=True),
    "CMYK": lambda p: Image.fromarray(sample()[0]).convert("CMYK").save(p, quality=100, subsampling=0),
    "long text": lambda p: Image.fromarray(sample()[0]).save(p.with_suffix(".png"), pnginfo=_note("x" * 1000)),
}


def _note(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", text, zip=True)
    return info


@pytest.mark.parametrize("kind", MASKS)
def test_odd_masks_are_read_right(tmp_path, kind):
    root = draw(tmp_path)
    instead(MASK, MASKS[kind])(root)
    config = tiny_config(tmp_path / "run", data__root=root, **SETTINGS)
    assert (open_splits(config.data).train.read(2)[1] == sample()[1]).all()


@pytest.mark.parametrize("kind", IMAGES)
def test_odd_images_are_read_right(tmp_path, kind):
    root = draw(tmp_path)
    instead(IMAGE, IMAGES[kind])(root)
    config = tiny_config(tmp_path / "run", data__root=root, **SETTINGS)
    difference = np.abs(open_splits(config.data).train.read(2)[0].astype(int) - sample()[0]).max()
    assert difference <= (8 if kind in ("progressive", "CMYK") else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_away_is_named_and_the_run_goes_on_once_it_is_back(tmp_path, workers):
    root, folder = draw(tmp_path / "data"), tmp_path / "run"
    settings = SETTINGS | {"data__root": root, "data__cache": "false", "data__num_workers": workers}
    settings |= {"teacher__max_train_steps": 400, "checkpointing_steps": 1}
    launch = Launch(distil, (folder, settings), 1, tmp_path / "log")
    while not list((folder / "training" / "teacher").glob("checkpoint-*")):
        assert launch.running, launch.output()
        time.sleep(0.01)
    (root / IMAGE).rename(root / "away.jpg")
    assert launch.wait(60) == [1]
    assert IMAGE in launch.output().splitlines()[-1]
    (root / "away.jpg").rename(root / IMAGE)
    again = Launch(distil, (folder, settings), 1, tmp_path / "again")
    while "resumes from step" not in again.output():
        assert again.running, again.output()
        time.sleep(0.01)
    again.kill()


def test_padding_is_void(tmp_path):
    root = draw(tmp_path)
    config = tiny_config(tmp_path / "run", data__root=root, data__crop_size=[128, 128], **SETTINGS)
    from distill.data import build_transform

    image, mask = open_splits(config.data).train.read(2)
    _, padded = build_transform(config.data)(image, mask, (0, 0, 0))
    assert (padded == VOID).sum() > padded.size // 3
