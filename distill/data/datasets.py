"""Data sets: pairs of an image and a mask, read with PIL (it refuses truncated files, keeps palette indices and
does not rotate images behind the mask's back).

A new layout on disk is a function that lists pairs, and an entry in `open_splits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from distill.batch import MAX_CLASSES, UNLABELED, VOID
from distill.config.schema import OWN, DataConfig
from distill.data.synthetic import scene, shapes
from distill.data.transforms import resize_labels
from distill.errors import ConfigError, harmless, printable
from distill.visualize import decoded_pixels, default_palette, own_pixel_limit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# PIL goes by content and knows formats that start programs (EPS); masks come in none that alters labels (JPEG).
IMAGE_FORMATS, MASK_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP"), ("PNG", "BMP", "TIFF")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # as RGB they would be cut off at 255
MASK_MODES = ("L", "P", "I", "I;16")
LABELS = 65536
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
)
CAMVID_PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
CAMVID_VOID = 11

Pair = tuple[np.ndarray, np.ndarray]


@dataclass
class Dataset:
    """Images and masks by index.

    Attributes:
        names: what each item is called in messages and results.
        read: index → image uint8 `[H, W, 3]` RGB and mask uint8 `[H, W]` of class ids or `VOID`.
        files: the files behind each item; empty if it has none.
        inspect: index → raises ConfigError if the item's files are not what they should be, without decoding them.
        drawn: as `read`, for data sets that augment: draws from the global generators, which the caller seeds.
        size: index → height and width of what `read` gives, for less than reading it; None if there is no such way.
    """

    names: list[str]
    read: Callable[[int], Pair]
    files: list[tuple[Path, ...]]
    inspect: Callable[[int], None]
    drawn: Callable[[int], Pair] | None = None
    size: Callable[[int], tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Dataset) -> Dataset:
        """The items of this and then those of another."""
        first = len(self)
        return Dataset(
            self.names + other.names,
            lambda i: self.read(i) if i < first else other.read(i - first),
            self.files + other.files,
            lambda i: self.inspect(i) if i < first else other.inspect(i - first),
            size=lambda i: self.size_of(i) if i < first else other.size_of(i - first),
        )

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an item."""
        height, width = self.size(index) if self.size else self.read(index)[1].shape
        return height, width


@dataclass
class Splits:
    """Data sets over the same classes.

    Attributes:
        train: images to learn from, with their labels.
        val: images to score on.
        classes: names, in the order of the ids.
        palette: a color `(r, g, b)` a class.
        unlabeled: images without labels, for the distillation terms alone, or None.
    """

    train: Dataset
    val: Dataset
    classes: list[str]
    palette: list[tuple[int, int, int]]
    unlabeled: Dataset | None = None


def open_splits(config: DataConfig) -> Splits:
    """Finds the data; reads none of it yet.

    Raises:
        ConfigError: a missing folder, an image without mask, an empty split, no or too many classes.
    """
    if config.format == OWN:
        raise ConfigError(f"data.format: {OWN!r} is data handed over in Python; call distill.distill as before")
    if config.format == "synthetic":
        classes: Sequence[str] = shapes.CLASSES
        palette: Sequence[Sequence[int]] = shapes.PALETTE
        sizes = (config.synthetic_train, config.synthetic_val)
        train, val = (_synthetic(config, seed, n) for seed, n in enumerate(sizes))
    else:
        if config.format == "camvid":
            classes, palette, void = CAMVID_CLASSES, CAMVID_PALETTE, CAMVID_VOID
            folders = [("train", "trainannot"), ("val", "valannot")]
        else:
            if not config.classes:
                raise ConfigError("data.classes: format 'folders' needs the class names, in the order of their ids")
            classes, palette, void = (
                config.classes,
                config.palette or default_palette(len(config.classes)),
                config.ignore_index,
            )
            folders = [(config.train_images, config.train_masks), (config.val_images, config.val_masks)]
        root = Path(config.root)
        if not root.is_dir():
            raise ConfigError(f"data.root: {root} is not a folder")
        train, val = (_files(config, root / images, root / masks, len(classes), void) for images, masks in folders)
    train, val = first(train, config.max_train_samples), first(val, config.max_eval_samples)
    unlabeled = _unlabeled(config, Path(config.root) / config.unlabeled) if config.unlabeled else None
    return Splits(train, val, *check_classes(classes, palette), unlabeled)


def check_classes(
    classes: Sequence[str], palette: Sequence[Sequence[int]] | None
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and colors, if they can be some; colors are made up if there are none.

    Raises:
        ConfigError: they cannot.
    """
    palette = palette or default_palette(len(classes))
    if bad := [name for name in classes if not harmless(name)]:
        raise ConfigError(f"data.classes: {bad[0]!r} has a control character or is not UTF-8; rename it")
    if len(classes) < 2:
        raise ConfigError(f"data.classes: {list(classes)} leaves nothing to decide; name the background as a class too")
    if twice := [name for i, name in enumerate(classes) if name in classes[:i]]:
        raise ConfigError(f"data.classes: {twice[0]!r} stands twice; give each class a name of its own")
    if len(classes) > MAX_CLASSES:
        raise ConfigError(f"data.classes: {len(classes)} classes; masks of 8 bits hold at most {MAX_CLASSES}")
    if len(palette) != len(classes) or any(len(color) != 3 for color in palette):
        raise ConfigError(f"data.palette: needs {len(classes)} colors [r, g, b], one a class; has {len(palette)}")
    return list(classes), [(int(r), int(g), int(b)) for r, g, b in palette]


def _synthetic(config: DataConfig, seed: int, length: int) -> Dataset:
    height, width = config.synthetic_size
    names = [f"scene-{seed}-{i:05d}" for i in range(length)]

    def read(index: int) -> Pair:
        return scene.render(seed, index, height, width)

    read_or_known = _cached(read) if config.cache else read
    return Dataset(names, read_or_known, [()] * length, lambda index: None, size=lambda index: (height, width))


def _files(config: DataConfig, images: Path, masks: Path, classes: int, void: int) -> Dataset:
    pairs = _match(images, masks)
    if void >= LABELS:
        raise ConfigError(f"data.ignore_index: {void} is more than a mask can hold; at most {LABELS - 1}")
    lut = np.full(LABELS + 1, -1, dtype=np.int16)  # the last for whatever is below or above
    lut[:classes] = np.arange(classes)
    lut[void] = VOID

    def inspect(index: int) -> None:
        image_path, mask_path = pairs[index]
        with _open_image(image_path, config) as image, _open(mask_path, config.max_pixels, MASK_FORMATS) as mask:
            if mask.mode not in MASK_MODES:
                fix = "expected one class id a pixel (8-bit gray or palette PNG)"
                raise ConfigError(f"{mask_path}: is a mask of mode {mask.mode}; {fix}")
            if image.size != mask.size:
                sizes = f"is {_size(mask)}, but its image {image_path} is {_size(image)}"
                raise ConfigError(f"{mask_path}: {sizes}; make them the same size")

    def read(index: int) -> Pair:
        inspect(index)
        image_path, mask_path = pairs[index]
        image = _decode(image_path, config.max_pixels).convert("RGB")
        mask = _decode(mask_path, config.max_pixels, MASK_FORMATS)
        if config.image_size:
            image = image.resize((config.image_size[1], config.image_size[0]), Image.Resampling.BILINEAR)
        raw = np.asarray(mask).astype(np.int64)
        ids = lut[raw.clip(-1, LABELS)]
        if (ids < 0).any():
            value = int(raw[ids < 0][0])
            count = int((raw == value).sum())
            raise ConfigError(
                f"{mask_path}: label {value} ({count} pixels) is outside the class list 0 to {classes - 1} "
                f"and is not the void label {void}; set data.ignore_index or remove it"
            )
        labels = ids.astype(np.uint8)
        return np.asarray(image), resize_labels(labels, config.image_size) if config.image_size else labels

    names = [image.stem for image, _ in pairs]
    size = _size_on_disk([image for image, _ in pairs], config)
    return Dataset(names, _cached(read) if config.cache else read, list(pairs), inspect, size=size)


def _unlabeled(config: DataConfig, folder: Path) -> Dataset:
    """Images alone; the mask of each says that no pixel has a label."""
    paths = list(_by_stem(folder, IMAGE_SUFFIXES).values())

    def read(index: int) -> Pair:
        inspect(index)
        image = _decode(paths[index], config.max_pixels).convert("RGB")
        if config.image_size:
            image = image.resize((config.image_size[1], config.image_size[0]), Image.Resampling.BILINEAR)
        return np.asarray(image), np.full((image.height, image.width), UNLABELED, dtype=np.uint8)

    def inspect(index: int) -> None:
        _open_image(paths[index], config).close()

    names = [path.stem for path in paths]
    files: list[tuple[Path, ...]] = [(path,) for path in paths]
    size = _size_on_disk(paths, config)
    return Dataset(names, _cached(read) if config.cache else read, files, inspect, size=size)


def _size_on_disk(paths: Sequence[Path], config: DataConfig) -> Callable[[int], tuple[int, int]]:
    """Height and width by index, from the files' headers, unless all are resized."""

    def size(index: int) -> tuple[int, int]:
        if config.image_size:
            return config.image_size[0], config.image_size[1]
        with _open_image(paths[index], config) as image:
            return image.height, image.width

    return size


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder with one of the suffixes, in the order of their names; at least one image."""
    found: dict[str, Path] = {}
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: is not a folder; set data.root and the folders below it")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    except PermissionError:
        raise ConfigError(f"{folder}: cannot be read; check its permissions") from None
    for path in paths:
        if not harmless(path.name):
            raise ConfigError(f"{printable(str(path))}: its name has a control character or is not UTF-8; rename it")
        if path.stem in found:
            raise ConfigError(f"{path}: has the same stem as {found[path.stem].name}; rename one of them")
        found[path.stem] = path
    if suffixes is IMAGE_SUFFIXES and not found:
        raise ConfigError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _match(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images and their masks by stem, in the order of their names."""
    image_of, mask_of = _by_stem(images, IMAGE_SUFFIXES), _by_stem(masks, MASK_SUFFIXES)
    if missing := sorted(image_of.keys() - mask_of.keys()):
        raise ConfigError(
            f"{image_of[missing[0]]}: has no mask {masks / missing[0]}.png ({len(missing)} of {len(image_of)} "
            f"images have none); masks are matched by stem"
        )
    return [(image_of[stem], mask_of[stem]) for stem in image_of]


def _open(path: Path, max_pixels: int, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """Reads the header only."""
    try:
        size = path.stat().st_size  # 0 for a pipe, too, which would be waited for
        if not 0 < size <= 8 * max_pixels + 1_000_000:
            raise OSError(f"it has {size:,} bytes, more than data.max_pixels can take" if size else "it is empty")
        with own_pixel_limit():
            image = Image.open(path, formats=formats)
        if decoded_pixels(image) > max_pixels:  # before anything decodes it, as looking for tags does in a PNG
            tiles = f" in tiles of {decoded_pixels(image):,}" if image.width * image.height <= max_pixels else ""
            more = f"is {_size(image)}{tiles}, more than data.max_pixels {max_pixels}"
            raise ConfigError(f"{path}: {more}; set that or remove it")
        pictures, orientation = getattr(image, "n_frames", 1), image.getexif().get(0x0112, 1)
    except ConfigError:
        raise
    except Exception as error:  # PIL raises many kinds for broken files
        kinds = ", ".join(formats)
        raise ConfigError(f"{path}: cannot be read as {kinds} ({_line(error)}); replace or remove it") from None
    if image.format != "MPO" and pictures > 1:  # MPO: a photo with a smaller twin
        raise ConfigError(f"{path}: holds {pictures} pictures; store one")
    if orientation != 1:
        raise ConfigError(
            f"{path}: is rotated by an EXIF tag that masks do not have; store it rotated, without the tag"
        )
    return image


def _open_image(path: Path, config: DataConfig) -> Image.Image:
    """Reads the header of an image to learn from, which has 8 bits a channel."""
    image = _open(path, config.max_pixels)
    if image.mode in DEEP_MODES:
        raise ConfigError(f"{path}: is an image of mode {image.mode}; store it with 8 bits a channel")
    return image


def _decode(path: Path, max_pixels: int, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    image = _open(path, max_pixels, formats)
    try:
        image.load()
    except Exception as error:
        raise ConfigError(f"{path}: cannot be decoded ({_line(error)}); replace or remove it") from None
    return image


def _cached(read: Callable[[int], Pair]) -> Callable[[int], Pair]:
    memory: dict[int, Pair] = {}

    def remember(index: int) -> Pair:
        if index not in memory:
            memory[index] = read(index)
        return memory[index]

    return remember


def first(dataset: Dataset, count: int | None) -> Dataset:
    """The first so many items; all if there is no count."""
    if count is None or count >= len(dataset):
        return dataset
    return replace(dataset, names=dataset.names[:count], files=dataset.files[:count])


def _size(image: Image.Image) -> str:
    return f"{image.width}×{image.height}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
