"""Mask files: how their values or colors say the class of a pixel, and how classes are merged, renamed and ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from distill.batch import MAX_CLASSES, VOID
from distill.data.images import MASK_FORMATS, decode, open_picture
from distill.errors import ConfigError

MASK_MODES = ("L", "P", "I", "I;16")
COLOR_MODES = ("RGB", "RGBA", "P", "L")
LABELS = 65536
ROWS = 1024  # of a mask that are looked up at once
IGNORE, REST = "ignore", "*"

Color = Sequence[int]


@dataclass
class Labels:
    """What mask files hold, before anything is merged or renamed.

    Attributes:
        classes: names, in the order of their ids.
        palette: a color `(r, g, b)` a class, for pictures.
        values: the value that stands for each class; its number in the list if not given.
        void: values that stand for void.
        others_are_void: whether every further value is void, too.
        colors: the color that stands for each class, in masks that are pictures; further ones stand for void.
        own_names: whether the names are the data set's, not those of `data.classes`.
    """

    classes: Sequence[str]
    palette: Sequence[Color]
    values: Sequence[int] | None = None
    void: Sequence[int] = (VOID,)
    others_are_void: bool = False
    colors: Sequence[Color] | None = None
    own_names: bool = False


@dataclass
class Coding:
    """How mask files are read.

    Attributes:
        classes: names of the classes that remain.
        palette: a color a class.
        table: int16 `[LABELS + 1]`: class id of each value, `VOID`, or -1; the last for whatever is below or above.
        colors: color as one number (`256² r + 256 g + b`) → place in `table`; None for masks of values.
        void: the values of void, for messages.
    """

    classes: list[str]
    palette: list[Color]
    table: np.ndarray
    colors: dict[int, int] | None
    void: list[int]


def coding(labels: Labels, changes: Mapping[str | int, str] | None) -> Coding:
    """How masks are read whose labels are changed by a table.

    Args:
        labels: what the files hold.
        changes: `data.labels`: name or value → name of a class, or `ignore`; `*` stands for all that is not named.

    Raises:
        ConfigError: a name that there is not, a value or color that no mask holds, colors that stand twice.
    """
    changes = changes or {}
    rest: dict[str | int, str] = dict.fromkeys(labels.classes, changes[REST]) if REST in changes else {}
    by_value, by_name = _sorted_out(labels, rest | {k: v for k, v in changes.items() if k != REST})
    targets = [by_name.get(name, name) for name in labels.classes]
    rest_of_values = [changes[REST]] if REST in changes and not labels.own_names and labels.colors is None else []
    listed = dict.fromkeys([*targets, *by_value.values(), *rest_of_values])  # in the order in which they come
    classes = [name for name in listed if name != IGNORE]
    if len(classes) > MAX_CLASSES:
        raise ConfigError(f"data.classes: {len(classes)} classes; masks of 8 bits hold at most {MAX_CLASSES}")
    ids = {name: i for i, name in enumerate(classes)} | {IGNORE: VOID}
    color_of = dict(reversed(list(zip(targets, labels.palette, strict=False))))
    palette = [color_of.get(name, (255, 255, 255)) for name in classes]
    if bad := [value for value in labels.void if value >= LABELS]:
        raise ConfigError(f"data.ignore_index: {bad[0]} is more than a mask can hold; at most {LABELS - 1}")
    table = np.full(LABELS + 1, -1, dtype=np.int16)
    if labels.others_are_void:
        table[:-1] = VOID
    if labels.colors is None:
        # Where the names are data.classes, a class that has values of its own in the table loses the one by its place.
        kept = set() if labels.own_names else set(by_value.values()) - {IGNORE}
        for value, target in zip(labels.values or range(len(targets)), targets, strict=True):
            table[value] = -1 if target in kept else ids[target]
        table[list(labels.void)] = VOID
        for value, target in by_value.items():
            table[value] = ids[target]
        for target in rest_of_values:
            table[:-1][table[:-1] < 0] = ids[target]
        return Coding(classes, palette, table, None, [int(v) for v in np.flatnonzero(table[:LABELS] == VOID)])
    if by_value:
        raise ConfigError(
            f"data.labels: {next(iter(by_value))} is a value, but masks are read by their colors; name it"
        )
    table[: len(targets)] = [ids[target] for target in targets]
    table[len(targets) : len(labels.colors)] = VOID
    return Coding(classes, palette, table, _numbers(labels.colors, len(targets)), [])


def inspect_mask(path: Path, max_pixels: int, by_color: bool, two: bool = False) -> tuple[int, int]:
    """Height and width of a mask, from its header.

    Args:
        path: the file.
        max_pixels: that it may have.
        by_color: whether colors stand for classes.
        two: whether there are two classes, for which single bits do.

    Raises:
        ConfigError: it cannot be opened, or is of another kind.
    """
    with open_picture(path, max_pixels, MASK_FORMATS) as mask:
        if mask.mode not in (COLOR_MODES if by_color else MASK_MODES) and not (two and mask.mode == "1"):
            fix = "expected one class id a pixel (8-bit gray or palette PNG)"
            if by_color:
                fix = "expected colors (RGB or palette PNG), as data.mask_colors says"
            elif mask.mode in ("RGB", "RGBA"):
                fix += ", or set data.mask_colors to the color of each class"
            raise ConfigError(f"{path}: is a mask of mode {mask.mode}; {fix}")
        return mask.height, mask.width


def read_mask(path: Path, max_pixels: int, how: Coding) -> np.ndarray:
    """A mask: uint8 `[H, W]` of class ids or `VOID`.

    Raises:
        ConfigError: it cannot be read, or holds a value or color that is no class.
    """
    mask = decode(path, max_pixels, MASK_FORMATS)
    return labels_of(path, np.asarray(mask) if how.colors is None else _places(path, mask, how.colors), how)


def labels_of(path: Path, raw: np.ndarray, how: Coding) -> np.ndarray:
    """Class ids or `VOID`, uint8, of what a file holds, in its shape; see `read_mask`."""
    labels = np.empty(raw.shape, np.uint8)
    for top in range(0, len(raw), ROWS):  # of large masks, eight bytes a pixel would be too much at once
        rows = raw[top : top + ROWS]
        if rows.dtype != np.uint8:  # which is in the table as it is
            rows = rows.astype(np.int64)
        ids = how.table[rows if rows.dtype == np.uint8 else rows.clip(-1, LABELS)]
        labels[top : top + ROWS] = ids
        if not (ids < 0).any():
            continue
        value = int(rows[ids < 0][0])
        count = int((raw == value).sum())
        known = np.flatnonzero((how.table[:LABELS] >= 0) & (how.table[:LABELS] != VOID))
        listed = f"0 to {len(known) - 1}" if (known == np.arange(len(known))).all() else _listed(known)
        raise ConfigError(
            f"{path}: label {value} ({count} pixels) is outside the class list {listed} "
            f"and is not the void label {_listed(how.void)}; {_fix(value, known, how)} or remove it"
        )
    return labels


def _fix(value: int, known: np.ndarray, how: Coding) -> str:
    """What a label that is no class is likely to mean."""
    if (known != np.arange(len(known))).any():
        return "add it to data.labels"
    if value == VOID and len(known) == 2:
        return f"set data.labels '{{255: {how.classes[1]}}}' if that is meant, or data.ignore_index"
    if value == len(known):
        return "set data.ignore_index, or data.reduce_zero_label if 0 is void and ids start at 1,"
    return "set data.ignore_index"


def _sorted_out(labels: Labels, changes: Mapping[str | int, str]) -> tuple[dict[int, str], dict[str, str]]:
    """The changes by value and by name."""
    by_value: dict[int, str] = {}
    by_name: dict[str, str] = {}
    for key, target in changes.items():
        text = str(key)
        if text in labels.classes:
            by_name[text] = target
        elif text.isdecimal() and int(text) < LABELS:
            by_value[int(text)] = target
        else:
            raise ConfigError(
                f"data.labels: {text!r} is neither a class ({', '.join(labels.classes)}) nor a value of masks, 0 to "
                f"{LABELS - 1}; correct or remove it"
            )
    return by_value, by_name


def _numbers(colors: Sequence[Color], classes: int) -> dict[int, int]:
    """Colors as numbers → their places."""
    if len(colors) < classes:
        raise ConfigError(
            f"data.mask_colors: {len(colors)} colors for {classes} classes; give one a class, in their order"
        )
    found: dict[int, int] = {}
    for place, color in enumerate(colors):
        if len(color) != 3 or not all(0 <= c <= 255 for c in color):
            raise ConfigError(f"data.mask_colors: {list(color)} is no color; give [r, g, b], each 0 to 255")
        number = (color[0] << 16) + (color[1] << 8) + color[2]
        if number in found:
            raise ConfigError(f"data.mask_colors: {list(color)} stands twice; each class needs a color of its own")
        found[number] = place
    return found


def _places(path: Path, mask: Image.Image, colors: Mapping[int, int]) -> np.ndarray:
    """The place of each pixel's color in the table, int64 `[H, W]`."""
    rgb = np.asarray(mask.convert("RGB")).astype(np.int64)
    numbers = (rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2]
    known = np.array(sorted(colors))
    place = np.searchsorted(known, numbers).clip(0, len(known) - 1)
    if (wrong := known[place] != numbers).any():
        number = int(numbers[wrong][0])
        color = [number >> 16, number >> 8 & 255, number & 255]
        raise ConfigError(
            f"{path}: color {color} ({int((numbers == number).sum())} pixels) is not in data.mask_colors; add it "
            f"(after those of the classes it means void) or remove it; was the mask resized with blended colors?"
        )
    return np.array([colors[int(number)] for number in known])[place]


def _listed(values: Sequence[int] | np.ndarray) -> str:
    shown = ", ".join(str(int(v)) for v in values[:8])
    return shown + (f" and {len(values) - 8} more" if len(values) > 8 else "")
