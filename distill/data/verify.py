"""Every file is looked at before the first step, and what was found good is not read again until something changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from distill.batch import VOID
from distill.config.data import DataConfig
from distill.data.contents import content_hash, contents
from distill.data.datasets import Dataset, Splits
from distill.data.loader import View
from distill.data.planes import NONE, label_counts
from distill.data.statistics import pixels_of
from distill.data.transforms import build_transform
from distill.errors import ConfigError

MAX_LISTED = 20  # bad files named in one message
AUGMENTED = 16  # times that the smallest image is augmented, to see whether it can be
MAX_RECORD_BYTES = 10_000
VERSION = 2  # of what is looked at: a verdict of an older one does not count


def check_splits(
    splits: Splits, config: DataConfig, progress: Callable[..., Iterable[int]] = lambda x, **_: x
) -> list[int] | None:
    """Looks at every file, as `data.check` says: not at all, at its header, or decoded with every label.

    Args:
        splits: the data.
        config: where it came from.
        progress: wraps the loop over items, such as tqdm.

    Returns:
        Pixels of the training masks by class, with many labels a pixel then those of none, void last; None unless
        every label was looked at.

    Raises:
        ConfigError: names the bad files, one a line if there are several, or says what the labels lack.
    """
    if config.check == "off":
        return None
    problems: list[str] = []
    seen: dict[str, Path] = {}
    pixels = {split: np.zeros(256, np.int64) for split, _ in _named(splits)}
    smallest: dict[str, tuple[int, int]] = {}  # shorter side and index
    for split, dataset in _named(splits):
        for index in progress(range(len(dataset)), desc=f"checking {split}", leave=False):
            try:
                dataset.inspect(index)
                if config.check == "full":
                    _, mask = dataset.read(index)
                    pixels[split] += label_counts(mask)
                    side = min(mask.shape[-2:]), index
                    smallest[split] = min(smallest.get(split, side), side)
                for image in dataset.files[index][:1]:
                    digest = content_hash(image)
                    if split == "val" and digest in seen:
                        raise ConfigError(
                            f"{image}: the same image as {seen[digest]}, which is trained on; keep one of them"
                        )
                    if split != "val":
                        seen[digest] = image
            except ConfigError as error:
                problems += [str(error)] if str(error) not in problems else []  # of another window of the file
    if problems:
        more = len(problems) - MAX_LISTED
        listed = "\n  ".join(problems[:MAX_LISTED] + ([f"… and {more} more"] if more > 0 else []))
        raise ConfigError(problems[0] if len(problems) == 1 else f"{len(problems)} bad files:\n  {listed}")
    if config.check != "full":
        return None
    _augment(splits, config, {split: index for split, (_, index) in smallest.items()})
    if splits.val.labeled and not pixels["val"][:VOID].any():
        raise ConfigError(
            f"data.val_masks: no pixel of the {len(splits.val)} validation masks has a class, all are void (label "
            f"{_listed(splits.void)}), so nothing can be scored; check the masks"
        )
    if not splits.labeled:
        return None
    found = by_class(pixels["train"], splits)
    check_labels(found, splits, config)
    return found


def by_class(pixels: np.ndarray, splits: Splits) -> list[int]:
    """Pixels by class, void last, of those of all labels `[256]`."""
    # With many labels a pixel, most places have none of most classes: they count beside void, too.
    rest = pixels[NONE : NONE + splits.multilabel]
    return [int(n) for n in (*pixels[: len(splits.classes)], *rest, pixels[VOID])]


def _augment(splits: Splits, config: DataConfig, smallest: Mapping[str, int]) -> None:
    """Augments the smallest image of each split that is trained on: it is the one that may not bear it."""
    for split, dataset in _named(splits):
        if split != "val":
            view = View(dataset, build_transform(config, pixels_of(dataset)), seed=0)
            for epoch in range(AUGMENTED):
                view[epoch, smallest[split]]


def _listed(labels: Sequence[int]) -> str:
    """Labels of void as words; every color that is no class means it where there is none."""
    return ", ".join(map(str, labels[:5])) + (", …" if len(labels) > 5 else "") if labels else "of none"


def check_labels(pixels: Sequence[int], splits: Splits, config: DataConfig) -> None:
    """Stops before a training on labels that lack a class, or that are void for the most part.

    Args:
        pixels: of the training masks by class, void last.
        splits: the data.
        config: where they came from; drawn scenes are right as they are, however few.

    Raises:
        ConfigError: says what is missing and the likely cause.
    """
    void = pixels[-1] / max(1, sum(pixels))
    missing = [f"{name!r} (id {i})" for i, name in enumerate(splits.classes) if not pixels[i]]
    found, cures = [], []
    if missing and not config.allow_missing_classes:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        found.append(f"no training mask shows {listed}")
        cures.append("data.allow_missing_classes true")
    if void > config.max_void_share:
        found.append(f"{100 * void:.1f} % of the training masks' pixels are void")
        cures.append(f"data.max_void_share above {void:.3f}")
    if config.format == "synthetic" or not found:
        return
    cause = "are data.classes all the classes, in the order of their ids"
    # A rare foreground of 255 is a small share of void.
    rare = bool(missing) if splits.multilabel else len(splits.classes) == 2 and not pixels[1]
    if void > config.max_void_share or (void and rare):
        meant = "foreground" if splits.multilabel else splits.classes[-1]
        fix = f"set data.labels '{{{splits.void[0]}: {meant}}}'" if len(splits.void) == 1 else "set data.labels"
        cause = f"does the label {_listed(splits.void)} mean a class, as in masks of 0 and 255 ({fix})"
    raise ConfigError(f"data.classes: {' and '.join(found)}; {cause}? If it is meant: {' and '.join(cures)}")


def check_once(
    splits: Splits,
    config: DataConfig,
    record: Path,
    progress: Callable[..., Iterable[int]] = lambda x, **_: x,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Looks at every file unless a record says that these very files were found good.

    Args:
        splits: the data.
        config: where it came from.
        record: JSON file that may hold what this function returned before.
        progress: as in `check_splits`.
        say: called with a line worth telling the user.

    Returns:
        What the record is to hold from now on, with fingerprints of the data (`contents`); None if it has no files.

    Raises:
        ConfigError: names the bad files.
    """
    for note in splits.notes:
        say(note)
    files = [path for _, dataset in _named(splits) for paths in dataset.file_sets for path in paths]
    found = fingerprint(splits, config) if files else None
    known = _read(record)
    good_enough = known.get("check") in ("full", config.check) or config.check == "off"
    if found and known.get("sha256") == found and good_enough:
        say(f"already checked: {len(files)} files, none has changed")
        if known.get("labels") and config.check != "off":
            check_labels(known["labels"], splits, config)
        return known
    verdict: dict[str, Any] = {"check": config.check, "files": len(files), "sha256": found}
    verdict["labels"] = check_splits(splits, config, progress)
    return verdict | {"contents": contents(splits)} if files else None


def fingerprint(splits: Splits, config: DataConfig) -> str | None:
    """Hash of all that a verdict depends on, without reading the images; None if a file cannot even be asked for.

    A file stands there with its path, size, inode and times, so one whose content changes behind the file system's
    back (a failing disk) goes unnoticed here. It is still named when it is read, unless it decodes.
    """
    settings: list[Any] = [config.format, splits.classes, config.ignore_index, config.max_pixels, PIL.__version__]
    settings += [config.augmentations, config.crop_size, config.image_size]  # whether small images bear them
    read_as = [config.in_channels, config.labels, config.mask_colors, config.reduce_zero_label, splits.image.dtype]
    settings += read_as if read_as != [None, None, None, False, "uint8"] else []  # which older verdicts lack
    settings += ["multilabel"] * config.multilabel
    known = hashlib.sha256(json.dumps([VERSION, *settings]).encode())
    try:
        for split, dataset in _named(splits):
            for path in (path for paths in dataset.file_sets for path in paths):
                stat = path.stat()
                facts = f"{split} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}\0"
                known.update(facts.encode() + os.fsencode(path.absolute()) + b"\0")
    except OSError:
        return None
    return known.hexdigest()


def _named(splits: Splits) -> Sequence[tuple[str, Dataset]]:
    pairs = (("train", splits.train), ("unlabeled", splits.unlabeled), ("val", splits.val))
    return [(name, dataset) for name, dataset in pairs if dataset]


def _read(record: Path) -> dict[str, Any]:
    try:
        if record.is_file() and record.stat().st_size < MAX_RECORD_BYTES:
            return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        pass  # then everything is looked at
    return {}
