"""Pairs of files: images and their masks by stem, and validation images set aside by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data.images import ARRAY_SUFFIXES, IMAGE_SUFFIXES, MASK_SUFFIXES
from distill.errors import ConfigError, harmless, printable


@dataclass(frozen=True)
class PairOfFiles:
    """An image and its mask.

    Attributes:
        key: name within the data set, with the folders below its own and `/` between them.
        image: the file.
        mask: the file; None if there is none.
        planes: with many labels a pixel, the file of each class; none if `mask` holds them all.
    """

    key: str
    image: Path
    mask: Path | None = None
    planes: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The key as a file could be called."""
        return self.key.replace("/", "_")

    @property
    def files(self) -> tuple[Path, ...]:
        """Image and masks, or the image alone."""
        return (self.image, *self.masks)

    @property
    def masks(self) -> tuple[Path, ...]:
        """The mask, or that of each class."""
        return self.planes or ((self.mask,) if self.mask else ())


def find(folder: Path, suffixes: Sequence[str], setting: str = "data.root and the folders below it") -> dict[str, Path]:
    """The files of a folder with one of the suffixes, by key, in the order of their names.

    Those of its folders are taken if it has none of its own.

    Args:
        folder: where they are.
        suffixes: lower case, with the dot.
        setting: what a message says to set.

    Raises:
        ConfigError: it is no folder, a name that a terminal would obey, or two files of one stem.
    """
    found: dict[str, Path] = {}
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: is not a folder; set {setting}")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
        if not paths:
            paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    except PermissionError:
        raise ConfigError(f"{folder}: cannot be read; check its permissions") from None
    for path in paths:
        if not harmless(str(path.relative_to(folder))):
            raise ConfigError(f"{printable(str(path))}: its name has a control character or is not UTF-8; rename it")
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise ConfigError(f"{path}: has the same stem as {found[key].name}; rename one of them")
        found[key] = path
    return found


def find_images(folder: Path, as_they_are: bool) -> dict[str, Path]:
    """The images of a folder, by key; at least one.

    Args:
        folder: where they are.
        as_they_are: whether arrays count, too.
    """
    suffixes = ARRAY_SUFFIXES if as_they_are else IMAGE_SUFFIXES
    if not (found := find(folder, suffixes)):
        arrays = not as_they_are and any(folder.rglob("*.npy"))
        hint = "; for its .npy files, set data.in_channels to the number of their channels" if arrays else ""
        raise ConfigError(f"{folder}: holds no images ({', '.join(suffixes)}){hint}")
    return found


def match(
    images: Path,
    masks: Path | None,
    as_they_are: bool = False,
    image_suffix: str = "",
    mask_suffix: str = "",
    suffixes: Sequence[str] = MASK_SUFFIXES,
) -> list[PairOfFiles]:
    """Images and their masks by stem, in the order of their names.

    Args:
        images: folder.
        masks: folder, which may be the same if there is a `mask_suffix`; None for images alone.
        as_they_are: whether arrays count as images.
        image_suffix: end of an image's stem that its mask's does not have; other files are left out.
        mask_suffix: end of a mask's stem that its image's does not have.
        suffixes: of files that are masks.

    Raises:
        ConfigError: an image without mask, no images, or names that cannot be told apart.
    """
    image_of = _without(find_images(images, as_they_are), image_suffix)
    if mask_suffix and not image_suffix:  # they may lie in one folder
        image_of = {key: path for key, path in image_of.items() if not key.endswith(mask_suffix)}
    if not image_of:
        raise ConfigError(f"{images}: holds no images whose names end in {image_suffix!r}; set data.image_suffix")
    if masks is None:
        return [PairOfFiles(key, path) for key, path in image_of.items()]
    mask_of = _without(find(masks, suffixes), mask_suffix)
    if missing := sorted(image_of.keys() - mask_of.keys()):
        raise ConfigError(
            f"{image_of[missing[0]]}: has no mask {masks / missing[0]}{mask_suffix}{suffixes[0]} ({len(missing)} of "
            f"{len(image_of)} images have none); masks are matched by stem"
        )
    return [PairOfFiles(key, image_of[key], mask_of[key]) for key in image_of]


def _without(found: dict[str, Path], suffix: str) -> dict[str, Path]:
    """Files whose keys end in a suffix, by what is before it."""
    return {key.removesuffix(suffix): path for key, path in found.items() if key.endswith(suffix)}


def hold_out(
    pairs: Sequence[PairOfFiles], fraction: float, group: str | None
) -> tuple[list[PairOfFiles], list[PairOfFiles]]:
    """Images to train on, and a share that is set aside to score on.

    Which ones follows from their names alone, so more images move none to the other side.

    Args:
        pairs: all of them.
        fraction: of them, 0 to 1, that is set aside on average.
        group: regular expression; images stay together for which its first group (or all it matches) is the same.

    Raises:
        ConfigError: the expression does not match a name, or one side stays empty.
    """
    sides: tuple[list[PairOfFiles], list[PairOfFiles]] = ([], [])
    names = set()
    for pair in pairs:
        name = pair.key
        if group is not None:
            if not (found := re.search(group, pair.key)):
                raise ConfigError(
                    f"data.val_group: {group!r} matches nothing in {pair.key!r}; match every image's name"
                )
            name = found.group(1 if found.re.groups else 0) or ""
        names.add(name)
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        sides[number < fraction].append(pair)
    if not all(sides):
        what = f"{len(names)} groups" if group is not None else f"{len(pairs)} images"
        side = "no validation image" if not sides[1] else "no training image"
        raise ConfigError(
            f"data.val_fraction: {fraction:g} of {what} leaves {side}; set another, or a folder of validation images"
        )
    return sides


def leave_out(pairs: Sequence[PairOfFiles], pattern: str) -> tuple[list[PairOfFiles], list[PairOfFiles]]:
    """Images to train on, and those in whose names a regular expression is found.

    Raises:
        ConfigError: it is found in none, or in all.
    """
    sides: tuple[list[PairOfFiles], list[PairOfFiles]] = ([], [])
    for pair in pairs:
        sides[re.search(pattern, pair.key) is not None].append(pair)
    if not all(sides):
        found = "all" if sides[1] else "none"
        names = f"{pairs[0].key} … {pairs[-1].key}" if pairs else "there are no images"
        raise ConfigError(
            f"data.leave_out: {pattern!r} is found in {found} of the {len(pairs)} names of training images ({names}); "
            "name a part of them"
        )
    return sides


def spread(pairs: list[PairOfFiles], share: float) -> list[PairOfFiles]:
    """A share of the images, above 0 to 1, spread evenly over them; at least one."""
    count = max(1, round(share * len(pairs)))
    return [pairs[i * len(pairs) // count] for i in range(count)]
