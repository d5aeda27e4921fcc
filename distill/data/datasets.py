"""Data sets: pairs of an image and a mask by index, and how the settings' data become some.

Where files lie is for `distill.data.layouts` to know, how they are read for `images` and `masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distill.batch import MAX_CLASSES, UNLABELED, ImageKind
from distill.config.schema import NAMED_BY_SETTINGS, OWN, DataConfig
from distill.data.arrays import Header
from distill.data.images import ROTATED, read_header, read_image, upright
from distill.data.layouts import read_layout
from distill.data.masks import Coding, Labels, coding, inspect_mask, read_mask
from distill.data.pairs import PairOfFiles, find_images
from distill.data.synthetic import bands, scene, shapes
from distill.data.transforms import resize_labels
from distill.errors import ConfigError, harmless
from distill.visualize import default_palette, resized

Pair = tuple[np.ndarray, np.ndarray]


@dataclass
class Dataset:
    """Images and masks by index.

    Attributes:
        names: what each item is called in messages and results.
        read: index → image `[H, W, channels]` of `dtype` and mask uint8 `[H, W]` of class ids, `VOID` or `UNLABELED`.
        files: the files behind each item; empty if it has none.
        inspect: index → raises ConfigError if the item's files are not what they should be, without decoding them.
        drawn: as `read`, for data sets that augment: draws from the global generators, which the caller seeds.
        size: index → height and width of what `read` gives, for less than reading it; None if there is no such way.
        channels: values of a pixel; 3 are RGB unless `data.in_channels` says otherwise.
        dtype: `uint8`, `uint16` or `float32`.
        labeled: whether it has masks; without, every pixel is `UNLABELED`.
    """

    names: list[str]
    read: Callable[[int], Pair]
    files: list[tuple[Path, ...]]
    inspect: Callable[[int], None]
    drawn: Callable[[int], Pair] | None = None
    size: Callable[[int], tuple[int, int]] | None = None
    channels: int = 3
    dtype: str = "uint8"
    labeled: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> ImageKind:
        """What every image is."""
        return ImageKind(self.channels, self.dtype)

    def __add__(self, other: Dataset) -> Dataset:
        """The items of this and then those of another."""
        first = len(self)
        return Dataset(
            self.names + other.names,
            lambda i: self.read(i) if i < first else other.read(i - first),
            self.files + other.files,
            lambda i: self.inspect(i) if i < first else other.inspect(i - first),
            size=lambda i: self.size_of(i) if i < first else other.size_of(i - first),
            channels=self.channels,
            dtype=self.dtype,
            labeled=self.labeled or other.labeled,
        )

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an item."""
        height, width = self.size(index) if self.size else self.read(index)[1].shape
        return height, width


@dataclass
class Splits:
    """Data sets over the same classes, whose images have the same channels and type.

    Attributes:
        train: images to learn from, with their labels if there are any.
        val: images to score on.
        classes: names, in the order of the ids.
        palette: a color `(r, g, b)` a class.
        unlabeled: images without labels, for the distillation terms alone, or None.
        void: labels of void in the files, for messages.
        notes: what was taken for granted about the data, to be said aloud.
    """

    train: Dataset
    val: Dataset
    classes: list[str]
    palette: list[tuple[int, int, int]]
    unlabeled: Dataset | None = None
    void: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def image(self) -> ImageKind:
        """What every image is."""
        return self.train.kind

    @property
    def labeled(self) -> bool:
        """Whether there are labels to learn from; only if not, `val.labeled` may be false, too."""
        return self.train.labeled


def open_splits(config: DataConfig) -> Splits:
    """Finds the data; reads none of it yet, but for the type of the first image if `data.in_channels` is set.

    Raises:
        ConfigError: a missing folder, an image without mask, an empty split, no or too many classes.
    """
    if config.format == OWN:
        raise ConfigError(f"data.format: {OWN!r} is data handed over in Python; call distill.distill as before")
    _refuse_unused(config)
    notes: list[str] = []
    if config.format == "synthetic":
        how = coding(Labels(shapes.CLASSES, shapes.PALETTE, own_names=True), config.labels)
        sizes = (config.synthetic_train, config.synthetic_val)
        train, val = (_synthetic(config, seed, n, how) for seed, n in enumerate(sizes))
        known = Header(0, 0, train.channels, train.dtype), Path()
        if config.in_channels not in (None, config.synthetic_channels):
            fix = f"is not the {config.synthetic_channels} of data.synthetic_channels; leave it out"
            raise ConfigError(f"data.in_channels: {config.in_channels} {fix}")
    else:
        layout = read_layout(config)
        check_classes(layout.labels.classes, layout.labels.palette)
        how = coding(layout.labels, config.labels)
        known = _known(config, layout.train[0].image)
        train, val = (_files(config, pairs, how, known) for pairs in (layout.train, layout.val))
        notes = list(layout.notes)
    train, val = first(train, config.max_train_samples), first(val, config.max_eval_samples)
    unlabeled = None
    if config.unlabeled:
        folder = Path(config.root) / config.unlabeled
        pairs = [PairOfFiles(key, path) for key, path in find_images(folder, bool(config.in_channels)).items()]
        unlabeled = _files(config, pairs, None, known)
    return Splits(train, val, *check_classes(how.classes, how.palette), unlabeled, how.void, notes)


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


def first(dataset: Dataset, count: int | None) -> Dataset:
    """The first so many items; all if there is no count."""
    if count is None or count >= len(dataset):
        return dataset
    return replace(dataset, names=dataset.names[:count], files=dataset.files[:count])


def _refuse_unused(config: DataConfig) -> None:
    """Raises ConfigError for settings that change nothing in this format, and would be believed to."""
    drawn = config.format == "synthetic"
    unused = {
        "mask_colors": config.mask_colors is not None and config.format not in NAMED_BY_SETTINGS,
        "reduce_zero_label": config.reduce_zero_label and drawn,
        "val_fraction": config.val_fraction and drawn,
        "val_group": config.val_group is not None and not config.val_fraction,
    }
    for name in (name for name, is_set in unused.items() if is_set):
        where = "without data.val_fraction" if name == "val_group" else f"in data.format {config.format}"
        raise ConfigError(f"data.{name}: changes nothing {where}; leave it out")


def _synthetic(config: DataConfig, seed: int, length: int, how: Coding) -> Dataset:
    height, width = config.synthetic_size
    names = [f"scene-{seed}-{i:05d}" for i in range(length)]
    channels, depth = config.synthetic_channels, config.synthetic_depth

    def read(index: int) -> Pair:
        image, mask = scene.render(seed, index, height, width)
        return bands.spread(image, seed, index, channels, depth), how.table[mask].astype(np.uint8)

    return Dataset(
        names,
        _cached(read) if config.cache else read,
        [()] * length,
        lambda index: None,
        size=lambda index: (height, width),
        channels=channels,
        dtype=depth,
    )


def _known(config: DataConfig, path: Path) -> tuple[Header, Path]:
    """The channels and type that all images have, and the image that says so."""
    if config.in_channels is None:
        return Header(0, 0), path
    return read_header(path, config.max_pixels, config.in_channels), path


def _files(config: DataConfig, pairs: Sequence[PairOfFiles], how: Coding | None, known: tuple[Header, Path]) -> Dataset:
    """Images in files, with masks or alone; the mask of one alone says that no pixel has a label."""
    kind, said_by = known
    by_color = how is not None and how.colors is not None
    two = how is not None and len(how.classes) == 2 and not by_color

    def header_of(index: int) -> Header:
        header = read_header(pairs[index].image, config.max_pixels, config.in_channels)
        if header.dtype != kind.dtype:
            is_not = f"is {header.dtype}, but {said_by} is {kind.dtype}"
            raise ConfigError(f"{pairs[index].image}: {is_not}; store all images with the same depth")
        return header

    def inspected(index: int) -> Header:
        pair, header = pairs[index], header_of(index)
        if pair.mask is None:
            return header  # nothing that would have to be turned with it
        # A photo may be turned with a mask of the turned size; where both ways have one size, nobody can tell.
        tells = header.turned != (header.height, header.width)
        if header.orientation != 1 and not tells:
            raise ConfigError(f"{pair.image}: {ROTATED}")
        size = inspect_mask(pair.mask, config.max_pixels, by_color, two)
        if size != header.turned:
            if header.orientation != 1:
                raise ConfigError(f"{pair.image}: {ROTATED}")
            sizes = f"is {size[1]}×{size[0]}, but its image {pair.image} is {header.size}"
            raise ConfigError(f"{pair.mask}: {sizes}; make them the same size")
        return header

    def read(index: int) -> Pair:
        pair, header = pairs[index], inspected(index)
        image = read_image(pair.image, config.max_pixels, config.in_channels)
        if header.orientation != 1:
            image = upright(image, header.orientation)
        mask = read_mask(pair.mask, config.max_pixels, how) if how and pair.mask else None
        if config.image_size:
            image = resized(image, config.image_size[0], config.image_size[1])
            mask = None if mask is None else resize_labels(mask, config.image_size)
        return image, np.full(image.shape[:2], UNLABELED, dtype=np.uint8) if mask is None else mask

    def inspect(index: int) -> None:
        inspected(index)

    def size(index: int) -> tuple[int, int]:
        if config.image_size:
            return config.image_size[0], config.image_size[1]
        return header_of(index).turned

    return Dataset(
        [pair.name for pair in pairs],
        _cached(read) if config.cache else read,
        [pair.files for pair in pairs],
        inspect,
        size=size,
        channels=kind.channels,
        dtype=kind.dtype,
        labeled=bool(pairs and pairs[0].mask),
    )


def _cached(read: Callable[[int], Pair]) -> Callable[[int], Pair]:
    memory: dict[int, Pair] = {}

    def remember(index: int) -> Pair:
        if index not in memory:
            memory[index] = read(index)
        return memory[index]

    return remember
