"""What a data set consists of, as a fingerprint: equal if names and contents of its files are, wherever they lie."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from distill.data.datasets import Dataset, Splits
from distill.errors import ConfigError


def contents(splits: Splits) -> dict[str, str]:
    """Fingerprints of the splits that have files: `data.train_files` and so on → number of files, and a hash of them.

    Every file is read, whatever `data.check` is: sizes and times alone would let an edit pass, or refuse a copy.

    Raises:
        ConfigError: a file cannot be read.
    """
    named = {"train": splits.train, "unlabeled": splits.unlabeled, "val": splits.val}
    return {
        f"data.{name}_files": _fingerprint(dataset) for name, dataset in named.items() if dataset and any(dataset.files)
    }


def contents_of(dataset: Dataset) -> str:
    """Fingerprint of a data set: of its files, or of its items' names where it has none.

    Raises:
        ConfigError: a file cannot be read.
    """
    if any(dataset.files):
        return _fingerprint(dataset)
    names = hashlib.sha256("\n".join(dataset.names).encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{len(dataset)} items, sha256 {names}"


def content_hash(path: Path) -> str:
    """SHA-256 of a file; it is read again only if its size, inode or times have changed.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: is not a file; replace or remove it")
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from None


@cache
def _hash(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(dataset: Dataset) -> str:
    known = hashlib.sha256()
    for paths in dataset.file_sets:
        for path in paths:
            known.update(f"{content_hash(path)} {path.name!r}\n".encode())
    return f"{sum(map(len, dataset.file_sets))} files, sha256 {known.hexdigest()[:16]}"
