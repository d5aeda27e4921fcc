"""Images of any channels and depth: read as they are, augmented in their own units, and refused with one line."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from distill.batch import UNLABELED
from distill.config.data import DataConfig
from distill.data import (
    build_transform,
    channel_statistics,
    check_splits,
    open_splits,
    own_splits,
    pixels_of,
    train_batches,
    val_batches,
)
from distill.data.images import read_header, read_image, upright
from distill.data.sampler import StepSampler
from distill.data.transforms import Pixels
from distill.errors import ConfigError
from distill.visualize import resized

HEIGHT, WIDTH = 40, 56
LIMIT = 1_000_000


def values(channels: int, dtype: str, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype == "float32":
        return generator.normal(500, 200, (*size, channels)).astype(np.float32)
    return generator.integers(0, 256 if dtype == "uint8" else 60_000, (*size, channels)).astype(dtype)


def deep_png(path: Path, image: np.ndarray, kind: int) -> None:
    """A PNG of 16 bits, written here: neither PIL nor OpenCV writes them all."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def write(path: Path, image: np.ndarray) -> None:
    """An image in a file that holds it exactly."""
    channels = image.shape[2]
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".png" and image.dtype == np.uint16 and channels > 1:
        deep_png(path, image, {2: 4, 3: 2, 4: 6}[channels])
    elif path.suffix == ".tif" and (channels > 4 or (channels > 1 and image.dtype != np.uint8)):
        pytest.importorskip("tifffile").imwrite(path, image, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(image[..., 0] if channels == 1 else image).save(path)


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [
        *((".png", n, "uint8") for n in (1, 2, 3, 4)),
        *((".png", n, "uint16") for n in (1, 3, 4)),
        *((".tif", n, d) for n in (1, 3, 4, 6, 20) for d in ("uint8", "uint16", "float32")),
        *((".npy", n, d) for n in (1, 2, 7) for d in ("uint8", "uint16", "float32")),
    ],
)
def test_files_are_read_as_they_are(tmp_path, suffix, channels, dtype):
    path, image = tmp_path / f"a{suffix}", values(channels, dtype)
    write(path, image)
    header = read_header(path, LIMIT, channels)
    assert (header.height, header.width, header.channels, header.dtype) == (HEIGHT, WIDTH, channels, dtype)
    found = read_image(path, LIMIT, channels)
    assert found.dtype == dtype
    assert (found == image).all()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (16, 32), "compression": "zlib"},
        {"rowsperstrip": 7},
        {"byteorder": ">"},
        {"bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tiffs_of_any_build_are_read_exactly(tmp_path, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    image = values(5, dtype)
    stored = np.moveaxis(image, 2, 0) if options.get("planarconfig") == "separate" else image
    if dtype == "float32" and options.get("predictor"):
        pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", stored, **{"photometric": "minisblack", "planarconfig": "contig"} | options)
    assert (read_image(tmp_path / "a.tif", LIMIT, 5) == image).all()


def test_other_numbers_become_float32_and_small_ones_exactly(tmp_path):
    for dtype in (np.int8, np.int16, np.float16, np.float64):
        image = values(3, "uint8").astype(dtype) - 90
        np.save(tmp_path / "a.npy", image.astype(dtype))
        found = read_image(tmp_path / "a.npy", LIMIT, 3)
        assert found.dtype == np.float32
        assert (found == image.astype(np.float32)).all()
    np.save(tmp_path / "a.npy", values(3, "uint8").astype(">u2"))
    assert read_image(tmp_path / "a.npy", LIMIT, 3).dtype == np.dtype("=u2")


def test_color_is_read_as_gray_where_one_channel_is_wanted(tmp_path):
    image = values(3, "uint8")
    write(tmp_path / "a.png", image)
    assert (read_image(tmp_path / "a.png", LIMIT, 1)[..., 0] == np.asarray(Image.fromarray(image).convert("L"))).all()


def tile_bomb(path: Path) -> None:
    """Six channels of 10×10 pixels in a tile of 20,000×20,000."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        path, np.zeros((16, 16, 6), np.uint16), tile=(16, 16), photometric="minisblack", planarconfig="contig"
    )
    data = bytearray(path.read_bytes())
    for tag in (322, 323):
        entry = (
            data.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in data
            else data.index(struct.pack("<HH", tag, 3))
        )
        data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 20_000)
    path.write_bytes(data)


def strip_bomb(path: Path) -> None:
    """Six channels of 16×16 pixels whose strip inflates to 2 GB."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        path, np.zeros((16, 16, 6), np.uint16), compression="zlib", photometric="minisblack", planarconfig="contig"
    )
    packer, data = zlib.compressobj(9), bytearray(path.read_bytes())
    block = packer.compress(bytes(1 << 21)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = block + 1000 * block[2:]
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].tags[273].valueoffset, file.pages[0].tags[279].valueoffset
        sizes = [file.pages[0].tags[tag].dtype for tag in (273, 279)]
    for place, value, size in ((offset, len(data), sizes[0]), (count, len(body), sizes[1])):
        data[place : place + (2 if size == 3 else 4)] = struct.pack("<H" if size == 3 else "<I", value)
    path.write_bytes(bytes(data) + body)


def tiff(path: Path, image: np.ndarray, **options) -> None:
    pytest.importorskip("tifffile").imwrite(
        path, image, **{"photometric": "minisblack", "planarconfig": "contig"} | options
    )


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def with_nan(image: np.ndarray) -> np.ndarray:
    image[3, 4, 0] = np.nan
    image[5, 6, 0] = np.inf
    return image


# What is wrong, the channels that are asked for, and words of the message.
BAD = {
    "NaN in a TIFF": (".tif", 5, lambda p: tiff(p, with_nan(values(5, "float32"))), "2 of its values are not finite"),
    "NaN in an array": (".npy", 2, lambda p: np.save(p, with_nan(values(2, "float32"))), "not finite"),
    "more channels": (".npy", 3, lambda p: np.save(p, values(4, "uint8")), "has 4 channels, data.in_channels is 3"),
    "gray": (".png", 3, lambda p: write(p, values(1, "uint8")), "has 1 channel, data.in_channels is 3"),
    "channels first": (".npy", 3, lambda p: np.save(p, np.zeros((3, 40, 50), np.uint8)), "has 50 channels"),
    "four axes": (".npy", 3, lambda p: np.save(p, np.zeros((1, 40, 50, 3))), r"shape \[1, 40, 50, 3\]"),
    "large integers": (".npy", 3, lambda p: np.save(p, np.zeros((40, 50, 3), np.int64)), "is an image of int64"),
    "objects": (".npy", 3, lambda p: np.save(p, np.array([{}]), allow_pickle=True), "cannot be read as npy"),
    "a cut array": (".npy", 3, lambda p: (np.save(p, values(3, "uint16")), cut(p, 0.5)), "cannot be read as npy"),
    "a huge array": (".npy", 3, lambda p: np.lib.format.open_memmap(p, "w+", np.uint8, (9000, 9000, 3)), "max_pixels"),
    "a cut TIFF": (".tif", 6, lambda p: (tiff(p, values(6, "uint16")), cut(p, 0.5)), "cannot be (read|decoded)"),
    "a cut strip": (".tif", 6, lambda p: (tiff(p, values(6, "uint16"), compression="zlib"), cut(p, 0.5)), "cannot be"),
    "a cut deep PNG": (".png", 3, lambda p: (write(p, values(3, "uint16")), cut(p, 0.7)), "cannot be"),
    "deep gray with alpha": (".png", 2, lambda p: write(p, values(2, "uint16")), "16-bit gray and alpha"),
    "several pages": (
        ".tif",
        6,
        lambda p: tiff(p, values(6, "uint16").transpose(2, 0, 1), planarconfig=None),
        "holds 6 pictures",
    ),
    "a tile bomb": (".tif", 6, tile_bomb, "in tiles of 400,000,000"),
    "many pixels": (".tif", 6, lambda p: tiff(p, np.zeros((1100, 1000, 6), np.uint16)), "more than data.max_pixels"),
    "many bytes": (".npy", 300, lambda p: np.save(p, np.zeros((100, 310, 300), np.uint8)), "take 9,300,000 bytes"),
    "text": (".tif", 6, lambda p: p.write_bytes(b"II*\0" + bytes(40)), "cannot be read as TIFF"),
    "nothing in a TIFF": (".tif", 6, lambda p: p.write_bytes(b"MM\0*\0\0\0\x08\0\0"), "is a TIFF of 1 bits"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_images_are_named_on_one_line(tmp_path, fault):
    suffix, channels, make, words = BAD[fault]
    path = tmp_path / f"a{suffix}"
    make(path)
    with pytest.raises(ConfigError, match=words) as error:
        read_image(path, LIMIT, channels)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_strip_is_not_inflated_beyond_its_image(tmp_path):
    strip_bomb(tmp_path / "a.tif")
    assert (tmp_path / "a.tif").stat().st_size < 3_000_000
    import tracemalloc

    tracemalloc.start()
    assert (read_image(tmp_path / "a.tif", LIMIT, 6) == 0).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_without_tifffile_the_message_names_the_extra(tmp_path, monkeypatch):
    tiff(tmp_path / "a.tif", values(6, "uint16"))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ConfigError, match=r"pip install 'distill\[tiff\]'"):
        read_image(tmp_path / "a.tif", LIMIT, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pil_makes_of_the_tag(orientation):
    image = values(3, "uint8")
    tags = Image.Exif()
    tags[0x0112] = orientation
    picture = Image.fromarray(image)
    picture.info["exif"] = tags.tobytes()
    assert (upright(image, orientation) == np.asarray(ImageOps.exif_transpose(picture))).all()


def test_resizing_is_the_same_for_every_type():
    image = values(3, "uint8")
    usual = resized(image, 20, 28)
    assert (usual == np.asarray(Image.fromarray(image).resize((28, 20), Image.Resampling.BILINEAR))).all()
    for dtype in (np.uint16, np.float32):
        found = resized(image.astype(dtype), 20, 28)
        assert found.dtype == dtype
        assert np.abs(found - usual.astype(np.float32)).max() <= 1
    assert resized(image[..., :1], 20, 28).shape == (20, 28, 1)


def folder(root: Path, channels: int, dtype: str, suffix: str = ".npy", more: bool = True) -> dict:
    """A data set of two classes in folders, and the settings that read it."""
    for split, count in (("train", 3), ("val", 2)):
        (root / split / "images").mkdir(parents=True)
        (root / split / "masks").mkdir()
        for i in range(count):
            write(root / split / "images" / f"{split}{i}{suffix}", values(channels, dtype, 100 * i + len(split)))
            mask = (np.indices((HEIGHT, WIDTH)).sum(0) // 9 % 2).astype(np.uint8)
            Image.fromarray(mask).save(root / split / "masks" / f"{split}{i}.png")
    settings = {"format": "folders", "root": str(root), "classes": ["a", "b"], "in_channels": channels}
    if more:
        (root / "more").mkdir()
        write(root / "more" / f"x{suffix}", values(channels, dtype, 9))
        settings["unlabeled"] = "more"
    return settings | {"crop_size": [32, 32]}


PHOTOMETRIC = [
    {"RandomScale": {"scale_limit": [-0.25, 0.25], "p": 1.0}},
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"GaussNoise": {"p": 0.5}},
    {"Affine": {"rotate": [-20, 20], "p": 0.5}},
]


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (6, "uint16"), (4, "float32"), (20, "uint16")])
def test_the_whole_way_from_the_settings_to_a_batch(tmp_path, channels, dtype):
    suffix = ".png" if dtype == "uint8" else ".npy"
    config = DataConfig(**folder(tmp_path, channels, dtype, suffix), augmentations=PHOTOMETRIC)
    splits = open_splits(config)
    assert (splits.train.channels, splits.train.dtype) == (channels, dtype)
    assert sum(check_splits(splits, config)) == 3 * HEIGHT * WIDTH
    both = splits.train + splits.unlabeled
    assert (both.channels, both.dtype) == (channels, dtype)
    transform = build_transform(config, pixels_of(both))
    batch = next(train_batches(both, transform, StepSampler(4, 4, 1, 0, 0, 0, 1), 0, 30))
    assert batch.image.shape == (4, channels, 32, 32)
    assert batch.image.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert (batch.mask == UNLABELED).any()
    if dtype != "uint8":  # in the images' own units
        assert batch.image.max() > 2 * np.median(values(channels, dtype)) - batch.image.std() * 3
        assert batch.image[batch.image > 0].mean() > 100
    _, scored = next(val_batches(splits.val, 2, 0, 1))
    assert (scored.image[0].permute(1, 2, 0).numpy() == splits.val.read(0)[0]).all()


def test_other_depths_and_channels_than_the_first_are_named(tmp_path):
    config = DataConfig(**folder(tmp_path, 4, "uint16", more=False))
    np.save(tmp_path / "val/images/val1.npy", values(4, "float32"))
    with pytest.raises(ConfigError, match=r"val1\.npy: is float32, but .*train0\.npy is uint16; store") as error:
        check_splits(open_splits(config), config)
    assert len(str(error.value).splitlines()) == 1
    np.save(tmp_path / "val/images/val1.npy", values(5, "uint16"))
    with pytest.raises(ConfigError, match=r"val1\.npy: has 5 channels, data.in_channels is 4"):
        check_splits(open_splits(config), config)


def test_sixteen_bits_without_the_setting_say_what_to_set(tmp_path):
    settings = folder(tmp_path, 1, "uint16", ".png", more=False)
    config = DataConfig(**settings | {"in_channels": None})
    with pytest.raises(ConfigError, match=r"8 bits a channel, or set data\.in_channels 1"):
        open_splits(config).train.read(0)


def test_files_that_need_the_setting_say_so(tmp_path):
    settings = folder(tmp_path, 6, "uint16", ".tif", more=False)
    with pytest.raises(ConfigError, match=r"train0\.tif: cannot be read as .*set data\.in_channels if it is a TIFF"):
        open_splits(DataConfig(**settings | {"in_channels": None})).train.read(0)
    assert open_splits(DataConfig(**settings)).train.read(0)[0].shape == (HEIGHT, WIDTH, 6)
    settings = folder(tmp_path / "arrays", 2, "uint8", ".npy", more=False)
    with pytest.raises(ConfigError, match=r"holds no images .*; for its \.npy files, set data\.in_channels"):
        open_splits(DataConfig(**settings | {"in_channels": None}))


def test_statistics_are_those_of_the_pixels_and_scale_with_them(tmp_path):
    config = DataConfig(**folder(tmp_path, 6, "uint16", more=False))
    splits = open_splits(config)
    found = channel_statistics(splits)
    pixels = np.concatenate([splits.train.read(i)[0].reshape(-1, 6) for i in range(3)]).astype(float)
    assert np.allclose(found.mean, pixels.mean(0))
    assert np.allclose(found.std, pixels.std(0))
    assert np.allclose([found.low, found.high], np.percentile(pixels, (1, 99), axis=0))
    assert found == channel_statistics(open_splits(config))


def test_a_constant_channel_has_a_spread_that_can_be_divided_by(tmp_path):
    config = DataConfig(**folder(tmp_path, 2, "float32", more=False))
    for path in (tmp_path / "train/images").iterdir():
        np.save(path, np.full((HEIGHT, WIDTH, 2), 7, np.float32))
    found = channel_statistics(open_splits(config))
    assert (found.mean, found.std) == ([7, 7], [1, 1])
    assert found.high > found.low


def test_geometry_keeps_values_and_colors_change_within_the_usual_range():
    pixels = Pixels(5, "uint16", (100.0,) * 5, (4000.0,) * 5)
    image, mask = values(5, "uint16") // 16, np.zeros((HEIGHT, WIDTH), np.uint8)
    flip = {"HorizontalFlip": {"p": 1.0}}
    still = build_transform(DataConfig(augmentations=[flip], crop_size=[HEIGHT, WIDTH]), pixels)
    moved, _ = still(image, mask, (0, 0, 0))
    assert (moved == image[:, ::-1]).all(), "nothing is clipped or rounded"
    brighter = {"RandomBrightnessContrast": {"brightness_limit": [0.1, 0.1], "contrast_limit": [0, 0], "p": 1.0}}
    changed, _ = build_transform(DataConfig(augmentations=[brighter], crop_size=[HEIGHT, WIDTH]), pixels)(
        image, mask, (0, 0, 0)
    )
    inside = (image > 200) & (image < 3000)
    assert np.allclose((changed - image)[inside], 0.1 * 3900, atol=1)
    image[:5] = 30_000
    changed, _ = build_transform(DataConfig(augmentations=[brighter], crop_size=[HEIGHT, WIDTH]), pixels)(
        image, mask, (0, 0, 0)
    )
    assert np.allclose(changed[:5], 30_000, atol=1), "what is brighter than usual is not cut off"


def test_a_transform_that_needs_three_channels_is_named():
    config = DataConfig(augmentations=[{"HueSaturationValue": {}}])
    build_transform(config)
    for pixels in (Pixels(6), Pixels(4, "float32", (0.0,) * 4, (9.0,) * 4)):
        with pytest.raises(ConfigError, match=r"HueSaturationValue cannot work on images of \d channels of") as error:
            build_transform(config, pixels)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("channels", "depth"), [(1, "uint8"), (3, "uint16"), (6, "uint16")])
def test_drawn_scenes_in_other_channels_and_depths(channels, depth):
    config = DataConfig(synthetic_channels=channels, synthetic_depth=depth, synthetic_train=2, synthetic_val=1)
    splits = open_splits(config)
    (image, mask), (usual, usual_mask) = splits.train.read(1), open_splits(DataConfig()).train.read(1)
    assert (image.shape[2], image.dtype.name) == (channels, depth) == (splits.train.channels, splits.train.dtype)
    assert (mask == usual_mask).all()
    assert (image == open_splits(config).train.read(1)[0]).all(), "the same each time"
    bright = np.corrcoef(image.astype(float).mean(2).ravel(), usual.mean(2).ravel())[0, 1]
    assert bright > 0.8
    if depth == "uint16":
        assert len(np.unique(image)) > 300
    with pytest.raises(ConfigError, match="synthetic_channels"):
        open_splits(DataConfig(in_channels=channels + 1, synthetic_channels=channels))


def test_own_data_of_other_channels():
    mask = (np.indices((HEIGHT, WIDTH)).sum(0) % 2).astype(np.uint8)
    deep, gray = values(5, "uint16"), values(1, "uint8")
    config = DataConfig(format="own", classes=["a", "b"], in_channels=5)
    splits = own_splits([(torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1), mask)], [(deep, mask)], config)
    assert (splits.train.channels, splits.train.dtype) == (5, "float32")
    assert (splits.train.read(0)[0] == deep).all()
    with pytest.raises(ConfigError, match=r"val\[0\]: its image is uint16, but the first one is float32"):
        splits.val.read(0)
    config.in_channels = 1
    splits = own_splits([(gray[..., 0], mask)], [(gray, mask)], config)
    assert (splits.train.channels, splits.train.dtype, splits.val.read(0)[0].shape) == (1, "uint8", (HEIGHT, WIDTH, 1))
    with pytest.raises(ConfigError, match=r"expected \[H, W, 1\], as data\.in_channels says"):
        own_splits([(deep, mask)], [(deep, mask)], config)


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_is_decoded_for_its_tags_only_where_some_stand_behind_its_pixels(tmp_path, monkeypatch, behind):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values(3, "uint8")).save(path, exif=None if behind else exif)
    if behind:  # PIL writes them before
        content, tags = path.read_bytes(), exif.tobytes()[6:]
        chunk = struct.pack(">I", len(tags)) + b"eXIf" + tags + struct.pack(">I", zlib.crc32(b"eXIf" + tags))
        path.write_bytes(content[:-12] + chunk + content[-12:])
    decoded, load = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self) or load(self))
    assert read_header(path, LIMIT).orientation == 6
    assert bool(decoded) == behind
    Image.fromarray(values(3, "uint8")).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # its chunks do not lead to an end
    with pytest.raises(ConfigError, match=r"a\.png: cannot be read"):
        read_header(path, LIMIT)
