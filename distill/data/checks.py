"""Every file is looked at before the first step, and what was found good is not read again until something changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL

from distill.config import ConfigError, DataConfig
from distill.data import datasets
from distill.data.datasets import Dataset, Splits

MAX_LISTED = 20  # bad files named in one message
MAX_RECORD_BYTES = 10_000
# A verdict is that of this code.
CODE = b"".join(Path(source).read_bytes() for source in (__file__, str(datasets.__file__)))


def check_splits(splits: Splits, level: str, progress: Callable[..., Iterable[int]] = lambda x, **_: x) -> None:
    """Looks at every file.

    Args:
        splits: the data.
        level: `off`, `headers` (open every file) or `full` (decode every file and look at every label).
        progress: wraps the loop over items, such as tqdm.

    Raises:
        ConfigError: names the bad files, one a line if there are several.
    """
    problems: list[str] = []
    seen: dict[str, Path] = {}
    if level == "off":
        return
    for split, dataset in _named(splits):
        for index in progress(range(len(dataset)), desc=f"checking {split}", leave=False):
            try:
                dataset.inspect(index)
                if level == "full":
                    dataset.read(index)
                for image in dataset.files[index][:1]:
                    with image.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                    if split == "val" and digest in seen:
                        raise ConfigError(
                            f"{image}: the same image as {seen[digest]}, which is trained on; keep one of them"
                        )
                    if split != "val":
                        seen[digest] = image
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        more = len(problems) - MAX_LISTED
        listed = "\n  ".join(problems[:MAX_LISTED] + ([f"… and {more} more"] if more > 0 else []))
        raise ConfigError(problems[0] if len(problems) == 1 else f"{len(problems)} bad files:\n  {listed}")


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
        What the record is to hold from now on; None if there is nothing to remember.

    Raises:
        ConfigError: names the bad files.
    """
    files = [path for _, dataset in _named(splits) for paths in dataset.files for path in paths]
    found = fingerprint(splits, config) if files and config.check != "off" else None
    known = _read(record)
    if found and known.get("sha256") == found and known.get("check") in ("full", config.check):
        say(f"checked already: {len(files)} files, none has changed")
        return known
    check_splits(splits, config.check, progress)
    return {"check": config.check, "files": len(files), "sha256": found} if found else None


def fingerprint(splits: Splits, config: DataConfig) -> str | None:
    """Hash of all that a verdict depends on, without reading the images; None if a file cannot even be asked for.

    A file stands there with its path, size, inode and times, so one whose content changes behind the file system's
    back (a failing disk) goes unnoticed here. It is still named when it is read, unless it decodes.
    """
    settings = [config.format, splits.classes, config.ignore_index, config.max_pixels, PIL.__version__]
    known = hashlib.sha256(json.dumps(settings).encode() + CODE)
    try:
        for split, dataset in _named(splits):
            for path in (path for paths in dataset.files for path in paths):
                stat = path.stat()
                facts = f"{split} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}\0"
                known.update(facts.encode() + os.fsencode(path.absolute()) + b"\0")
    except OSError:
        return None
    return known.hexdigest()


def _named(splits: Splits) -> Sequence[tuple[str, Dataset]]:
    pairs = (("train", splits.train), ("unlabelled", splits.unlabelled), ("val", splits.val))
    return [(name, dataset) for name, dataset in pairs if dataset]


def _read(record: Path) -> dict[str, Any]:
    try:
        if record.is_file() and record.stat().st_size < MAX_RECORD_BYTES:
            return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        pass  # then everything is looked at
    return {}
