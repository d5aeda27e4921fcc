"""Data sets: pairs of an image and a mask by index, and how the settings' data become some.

Where files lie is for `distill.data.layouts` to know, how they are read for `images` and `masks`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from distill.batch import MAX_CLASSES, UNLABELED, ImageKind
from distill.config.data import NAMED_BY_SETTINGS, DataConfig
from distill.config.networks import OWN
from distill.data.arrays import Header
from distill.data.decoded import Decoded
from distill.data.images import ROTATED, read_header, read_image, read_window, reads_windows, upright
from distill.data.layouts import read_layout
from distill.data.masks import Coding, Labels, coding, inspect_mask, read_mask
from distill.data.pairs import PairOfFiles, find_images
from distill.data.planes import inspect_planes, plane_coding, read_planes
from distill.data.synthetic import bands, scene, shapes
from distill.data.transforms import resize_labels
from distill.data.windows import Window, windows_of
from distill.errors import ConfigError, harmless
from distill.visualize import default_palette, resized

Pair = tuple[np.ndarray, np.ndarray]


@dataclass
class Dataset:
    """Images and masks by index.

    Attributes:
        names: what each item is called in messages and results.
        read: index → image `[H, W, channels]` of `dtype` and mask uint8 `[H, W]` of class ids, `VOID` or `UNLABELED`;
            with many labels a pixel, `[C, H, W]` of 0, 1 and these.
        files: the files behind each item; empty if it has none.
        inspect: index → raises ConfigError if the item's files are not what they should be, without decoding them.
        drawn: as `read`, for data sets that augment: draws from the global generators, which the caller seeds.
        size: index → height and width of what `read` gives, for less than reading it; None if there is no such way.
        part: index and window → what `read` gives, of the window alone; None if there is no way but to read it all.
        windows: of its files' images, which each item is; None if items are whole images.
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
    part: Callable[[int, Window], Pair] | None = None
    windows: list[Window] | None = None
    channels: int = 3
    dtype: str = "uint8"
    labeled: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> ImageKind:
        """What every image is."""
        return ImageKind(self.channels, self.dtype)

    @property
    def file_sets(self) -> list[tuple[Path, ...]]:
        """The files behind the items; those of an image once, however many windows it has."""
        return list(dict.fromkeys(self.files)) if self.windows else self.files

    def __add__(self, other: Dataset) -> Dataset:
        """The items of this and then those of another."""
        first = len(self)
        return Dataset(
            self.names + other.names,
            lambda i: self.read(i) if i < first else other.read(i - first),
            self.files + other.files,
            lambda i: self.inspect(i) if i < first else other.inspect(i - first),
            size=lambda i: self.size_of(i) if i < first else other.size_of(i - first),
            windows=self.windows + other.windows if self.windows and other.windows else None,
            channels=self.channels,
            dtype=self.dtype,
            labeled=self.labeled or other.labeled,
        )

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an item."""
        height, width = self.size(index) if self.size else self.read(index)[0].shape[:2]
        return height, width

    def in_windows(self, window: Sequence[int], overlapping: bool) -> Dataset:
        """Windows of the images as items, those of an image one after the other; see `windows_of`."""
        part = self.part
        if part is None:
            return self
        places = [
            (index, place)
            for index in range(len(self))
            for place in windows_of(self.size_of(index), window, overlapping)
        ]

        def inspect(number: int) -> None:
            index, place = places[number]
            if place.top == place.left == 0:  # its file is that of the windows that follow
                self.inspect(index)

        return replace(
            self,
            names=[self.names[index] + place.suffix for index, place in places],
            read=lambda number: part(*places[number]),
            files=[self.files[index] for index, _ in places],
            inspect=inspect,
            size=lambda number: (places[number][1].height, places[number][1].width),
            part=None,
            windows=[place for _, place in places],
        )


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
        multilabel: whether a pixel may have any number of the classes.
    """

    train: Dataset
    val: Dataset
    classes: list[str]
    palette: list[tuple[int, int, int]]
    unlabeled: Dataset | None = None
    void: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    multilabel: bool = False

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
    planes = plane_coding(config) if config.multilabel else None
    if config.format == "synthetic":
        labels = Labels(shapes.CLASSES, shapes.PALETTE, own_names=True)
        if planes:
            labels = Labels(list(shapes.PLANES), list(shapes.PLANES.values()))
        how = coding(labels, None if planes else config.labels)
        sizes = (config.synthetic_train, config.synthetic_val)
        train, val = (_synthetic(config, seed, n, how) for seed, n in enumerate(sizes))
        known = Header(0, 0, train.channels, train.dtype), Path()
        if config.in_channels not in (None, config.synthetic_channels):
            fix = f"is not the {config.synthetic_channels} of data.synthetic_channels; leave it out"
            raise ConfigError(f"data.in_channels: {config.in_channels} {fix}")
    else:
        layout = read_layout(config)
        check_classes(layout.labels.classes, layout.labels.palette)
        how = coding(layout.labels, None if planes else config.labels)
        known = _known(config, layout.train[0].image)
        train, val = (
            _files(config, pairs, planes or how, known, len(how.classes) if planes else 0)
            for pairs in (layout.train, layout.val)
        )
        notes = list(layout.notes)
        if config.windows:
            notes += _note_on_windows(config, layout.train)
            train, val = train.in_windows(config.windows, True), val.in_windows(config.windows, False)
    train, val = first(train, config.max_train_samples), first(val, config.max_eval_samples)
    unlabeled = None
    if config.unlabeled:
        folder = Path(config.root) / config.unlabeled
        pairs = [PairOfFiles(key, path) for key, path in find_images(folder, bool(config.in_channels)).items()]
        if config.leave_out:
            pairs = [pair for pair in pairs if not re.search(config.leave_out, pair.key)]
        unlabeled = _files(config, pairs, None, known, len(how.classes) if planes else 0)
        unlabeled = unlabeled.in_windows(config.windows, True) if config.windows else unlabeled
    void = (planes or how).void
    return Splits(train, val, *check_classes(how.classes, how.palette), unlabeled, void, notes, bool(planes))


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
        "leave_out": config.leave_out is not None and drawn,
        "label_share": config.label_share < 1 and drawn,
        "val_group": config.val_group is not None and not config.val_fraction,
        "windows": config.windows is not None and drawn,
        "decoded_dir": config.decoded_dir is not None and drawn,
    }
    for name in (name for name, is_set in unused.items() if is_set):
        where = "without data.val_fraction" if name == "val_group" else f"in data.format {config.format}"
        raise ConfigError(f"data.{name}: changes nothing {where}; leave it out")


def _note_on_windows(config: DataConfig, pairs: Sequence[PairOfFiles]) -> list[str]:
    """Says where a window costs the decoding of its whole image."""
    pair = pairs[0]
    slow = {pair.mask.suffix} if pair.mask else set()
    slow |= set() if reads_windows(pair.image, config.in_channels) else {pair.image.suffix}
    if not slow or config.decoded_dir:
        return []
    files = " and ".join(sorted(slow))
    return [f"each window has its whole {files} decoded; set data.decoded_dir, and they are decoded once"]


def _synthetic(config: DataConfig, seed: int, length: int, how: Coding) -> Dataset:
    height, width = config.synthetic_size
    names = [f"scene-{seed}-{i:05d}" for i in range(length)]
    channels, depth = config.synthetic_channels, config.synthetic_depth

    def read(index: int) -> Pair:
        if config.multilabel:
            image, labels = scene.render_planes(seed, index, height, width)
        else:
            image, mask = scene.render(seed, index, height, width)
            labels = how.table[mask].astype(np.uint8)
        return bands.spread(image, seed, index, channels, depth), labels

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


def _files(
    config: DataConfig,
    pairs: Sequence[PairOfFiles],
    how: Coding | None,
    known: tuple[Header, Path],
    planes: int = 0,
) -> Dataset:
    """Images in files, with masks or alone; the mask of one alone says that no pixel has a label.

    With many labels a pixel, `planes` is the number of classes.
    """
    kind, said_by = known
    by_color = how is not None and how.colors is not None
    decoded = Decoded(Path(config.decoded_dir) if config.decoded_dir else None, hold=config.windows is not None)
    known_as = how and hashlib.sha256(how.table.tobytes() + repr(how.colors).encode()).hexdigest()
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
        if planes:
            size = inspect_planes(pair.masks, planes, config.max_pixels)
        else:
            size = inspect_mask(pair.mask, config.max_pixels, by_color, two)
        if size != header.turned:
            if header.orientation != 1:
                raise ConfigError(f"{pair.image}: {ROTATED}")
            sizes = f"is {size[1]}×{size[0]}, but its image {pair.image} is {header.size}"
            raise ConfigError(f"{pair.mask}: {sizes}; make them the same size")
        return header

    # Where files are decoded once, they are looked at once, too: the header of a large PNG is not read for each window.
    good = cache(inspected) if config.decoded_dir or config.windows else inspected

    def image_of(index: int) -> np.ndarray:
        """Decoded, perhaps for others too, so not to be written to; as all that is decoded below."""
        pair, header = pairs[index], good(index)

        def decode() -> np.ndarray:
            found = read_image(pair.image, config.max_pixels, config.in_channels)
            return found if header.orientation == 1 else upright(found, header.orientation)

        if pair.image.suffix.lower() == ".npy":  # is a raw array as it is
            return decode()
        return decoded.get(pair.image, f"image {config.in_channels}", decode)

    def mask_of(index: int, size: tuple[int, ...]) -> np.ndarray:
        path, coded = pairs[index].mask, how
        if path is None or coded is None:
            return np.broadcast_to(np.uint8(UNLABELED), (planes, *size) if planes else size)
        if planes:
            return read_planes(pairs[index].masks, planes, config.max_pixels, coded)
        return decoded.get(path, f"mask {known_as}", lambda: read_mask(path, config.max_pixels, coded))

    def read(index: int) -> Pair:
        image = image_of(index)
        mask = mask_of(index, image.shape[:2])
        if config.image_size:
            image = resized(image, config.image_size[0], config.image_size[1])
            mask = resize_labels(mask, config.image_size)
        return (image, mask) if image.flags.writeable and mask.flags.writeable else (np.array(image), np.array(mask))

    def part(index: int, window: Window) -> Pair:
        size = good(index).turned
        image = read_window(pairs[index].image, config.max_pixels, config.in_channels, window)
        return window.of(image_of(index)) if image is None else image, window.of_planes(mask_of(index, size))

    def inspect(index: int) -> None:
        inspected(index)

    def size(index: int) -> tuple[int, int]:
        if config.image_size:
            return config.image_size[0], config.image_size[1]
        return header_of(index).turned

    return Dataset(
        [pair.name for pair in pairs],
        _cached(read) if config.cache and not config.decoded_dir else read,
        [pair.files for pair in pairs],
        inspect,
        size=size,
        part=part,
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
