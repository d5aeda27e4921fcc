"""Large images as windows, and files kept as decoded."""

import itertools

import numpy as np
import pytest
from PIL import Image

from distill.batch import UNLABELED
from distill.config.data import DataConfig
from distill.data import contents, known_by, open_splits, own_splits, tiff
from distill.data import datasets as module
from distill.data.images import read_window
from distill.data.windows import Window, windows_of
from distill.errors import ConfigError

SIZE = 50, 70


@pytest.fixture
def settings(tmp_path):
    """Two images to learn from, one of them small, and one to score on; as `.npy` and PNG alike."""
    random = np.random.default_rng(0)
    for split, sizes in (("train", [SIZE, (20, 30)]), ("val", [SIZE])):
        for kind in ("images", "masks", "arrays"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i, size in enumerate(sizes):
            image = random.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            np.save(tmp_path / split / "arrays" / f"{i}.npy", image)
            Image.fromarray(random.integers(0, 2, size, np.uint8)).save(tmp_path / split / "masks" / f"{i}.png")
    return {"format": "folders", "root": str(tmp_path), "classes": ["a", "b"], "crop_size": [16, 16]}


@pytest.mark.parametrize("size", [(50, 70), (20, 31), (7, 200), (24, 32), (25, 64)])
def test_windows_cover_an_image(size):
    for overlapping in (True, False):
        seen = np.zeros(size, int)
        found = windows_of(size, (24, 32), overlapping)
        for window in found:
            seen[window.top : window.top + window.height, window.left : window.left + window.width] += 1
            assert window.height <= 24 and window.width <= 32
        assert seen.min() == 1 and (overlapping or seen.max() == 1)
        assert len({window.suffix for window in found}) == len(found)
        assert found[0].whole == (len(found) == 1) == (size[0] <= 24 and size[1] <= 32)
        if overlapping:
            assert {(w.height, w.width) for w in found} == {(min(24, size[0]), min(32, size[1]))}
            for a, b in itertools.pairwise(sorted({w.left for w in found})):
                assert b - a <= 2 * 32 / 3


@pytest.mark.parametrize("how", ["png", "npy", "mapped"])
def test_a_window_is_an_image_of_its_own(settings, tmp_path, how):
    more = {"in_channels": 3, "train_images": "train/arrays", "val_images": "val/arrays"} if how == "npy" else {}
    more |= {"decoded_dir": str(tmp_path / "decoded")} if how == "mapped" else {}
    whole = open_splits(DataConfig(**settings))
    splits = open_splits(DataConfig(**settings, **more, windows=[24, 32]))
    places = windows_of(SIZE, (24, 32), True)
    assert splits.train.names == [*(f"0_y{w.top:05d}x{w.left:05d}" for w in places), "1"]
    for split, overlapping in (("train", True), ("val", False)):
        images, windows = getattr(whole, split), getattr(splits, split)
        expected = [(i, w) for i in range(len(images)) for w in windows_of(images.size_of(i), (24, 32), overlapping)]
        assert len(windows) == len(expected) >= 9
        for number, (index, window) in enumerate(expected):
            read = windows.read(number)
            assert all(np.array_equal(a, window.of(b)) for a, b in zip(read, images.read(index), strict=True))
            assert all(one.flags.writeable for one in read)
            assert windows.size_of(number) == read[1].shape
            windows.inspect(number)
    assert len(set(known_by(splits.train, None))) == len(splits.train)
    assert known_by(splits.train, None)[-1] == known_by(open_splits(DataConfig(**settings, **more)).train, None)[1]
    said = [] if how == "mapped" else ["each window has its whole .png decoded"]
    assert [note.partition(";")[0] for note in splits.notes] == said


def test_of_an_array_only_the_window_is_read(settings, monkeypatch):
    more = {"in_channels": 3, "train_images": "train/arrays", "val_images": "val/arrays"}
    splits = open_splits(DataConfig(**settings, **more, windows=[24, 32]))
    monkeypatch.setattr(module, "read_image", None)
    assert splits.train.read(3)[0].shape == (24, 32, 3)


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}, {"planarconfig": "separate"}])
def test_of_a_tiff_only_strips_and_tiles_in_the_window_are_read(tmp_path, monkeypatch, layout):
    tifffile = pytest.importorskip("tifffile")
    image, path = np.random.default_rng(0).integers(0, 60_000, (50, 70, 5), np.uint16), tmp_path / "a.tif"
    stored = np.moveaxis(image, 2, 0) if "planarconfig" in layout else image
    options = {"planarconfig": "contig", "compression": "zlib"} | layout
    tifffile.imwrite(path, stored, photometric="minisblack", **options)
    unpacked, unpack = [], tiff._decompressed
    monkeypatch.setattr(tiff, "_decompressed", lambda *a: unpacked.append(a[2]) or unpack(*a))
    for window in windows_of((50, 70), (24, 32), True) + windows_of((50, 70), (17, 70), False):
        assert np.array_equal(read_window(path, 10_000, 5, window), window.of(image))
    unpacked.clear()
    read_window(path, 10_000, 5, Window(16, 32, 5, 5))
    expected = {"tile": 1, "rowsperstrip": 1, "planarconfig": 5}.get(next(iter(layout), ""), 1)
    assert len(unpacked) == expected


def test_a_file_is_decoded_once(settings, tmp_path, monkeypatch):
    decoded, read_image, read_mask = [], module.read_image, module.read_mask
    monkeypatch.setattr(module, "read_image", lambda path, *a: decoded.append(path.name) or read_image(path, *a))
    monkeypatch.setattr(module, "read_mask", lambda path, *a: decoded.append(path.name) or read_mask(path, *a))
    windows = open_splits(DataConfig(**settings, windows=[24, 32])).train
    for number in range(len(windows)):  # one after the other, as they are looked at before a training
        windows.read(number)
    assert decoded == ["0.png", "0.png", "1.png", "1.png"]
    decoded.clear()
    folder = tmp_path / "decoded"
    config = DataConfig(**settings, decoded_dir=str(folder))
    expected = [open_splits(DataConfig(**settings)).train.read(i) for i in (0, 1)]
    decoded.clear()
    for _ in range(2):
        train = open_splits(config).train
        for i in (1, 0, 1):
            assert all(map(np.array_equal, train.read(i), expected[i]))
    assert decoded == ["1.png", "1.png", "0.png", "0.png"]
    other = open_splits(DataConfig(**settings, decoded_dir=str(folder), labels={0: "b", 1: "a"})).train
    assert (other.read(1)[1] == 1 - expected[1][1]).all()
    Image.fromarray(255 - expected[1][0]).save(tmp_path / "train" / "images" / "1.png")
    assert (open_splits(config).train.read(1)[0] == 255 - expected[1][0]).all()
    kept = next(folder.iterdir())
    for path in folder.iterdir():
        path.write_bytes(b"\x93NUMPY")
    with pytest.raises(ConfigError, match=r"\.npy: cannot be read .*; remove it, and it is made again"):
        open_splits(config).train.read(1)
    assert kept.is_file()


def test_images_without_labels_have_windows_too(settings, tmp_path):
    splits = open_splits(DataConfig(**settings, unlabeled="val/images", windows=[24, 32]))
    assert splits.unlabeled.read(1)[1].tolist() == np.full((24, 32), UNLABELED).tolist()
    assert contents(splits)["data.unlabeled_files"].startswith("1 files")  # however many windows
    both = splits.train + splits.unlabeled
    assert len(set(known_by(both, None))) == len(both)


def test_windows_that_change_nothing_or_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"windows: \[24, 32\] are of images as they are; leave them"):
        DataConfig(**settings, windows=[24, 32], image_size=[20, 20])
    with pytest.raises(ValueError, match=r"windows: \[24, 32\] must be at least as large as crop_size \[25, 16\]"):
        DataConfig(**settings | {"crop_size": [25, 16]}, windows=[24, 32])
    with pytest.raises(ConfigError, match=r"data\.windows: changes nothing in data\.format synthetic"):
        open_splits(DataConfig(windows=[96, 128]))
    with pytest.raises(ConfigError, match=r"data\.decoded_dir: changes nothing for data handed over"):
        own_splits([], [], DataConfig(decoded_dir="x"))
