"""Files and folders that are whole or not there: hashes, atomic writes, free space, the lock on a folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

from torch import Tensor

from distill.errors import ConfigError

BYTES_BESIDE_TENSOR = 1_000  # its name, shape and place, and what fills up a block
OPTIONAL = {"json": "unless None"}  # metadata of fields that a JSON file may lack
INTERNAL = {"json": "never"}


def publish(folder: Path, write: Callable[[Path], None], needed_bytes: int) -> None:
    """Lets `write` fill a temporary folder, syncs it and renames it to `folder`: whole or not there.

    Raises:
        OSError: no space, or the folder cannot be written; names it and the bytes needed and free.
    """
    temporary = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder, needed_bytes):
        temporary.mkdir(parents=True)
        write(temporary)
        sync_folder(temporary)
        temporary.rename(folder)
        sync(folder.parent)


@contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Asks for space before something is written, and names path and bytes when that fails.

    Raises:
        OSError: less space is free than is needed, or writing failed.
    """
    try:
        free = shutil.disk_usage(next(there for there in (path, *path.parents) if there.exists())).free
        if free < needed_bytes:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")
        yield
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error.strerror or error}); it needs about {needed_bytes:,} bytes, and "
            f"what was there before is untouched"
        ) from error


def size_of(tensors: Any) -> int:
    """Bytes on disk of tensors in dicts, names and shapes included: rather more than less."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size() + BYTES_BESIDE_TENSOR
    if isinstance(tensors, Mapping):
        return sum(map(size_of, tensors.values()))
    return 0


def write_json(path: Path, value: Any) -> None:
    """JSON that a person can read, replaced as a whole."""
    text = json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace")  # names that are no UTF-8
    write_text(path, text.decode() + "\n")


def write_text(path: Path, text: str) -> None:
    """A text, replaced as a whole: at any moment a file holds the old one or the new one.

    Raises:
        OSError: no space, or the folder cannot be written; names the file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, len(text)):
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)


@dataclass
class Record:
    """What is written as a JSON object: a dataclass whose fields are its keys."""

    def to_json(self) -> dict[str, Any]:
        """The object; `OPTIONAL` fields that are None are left out, `INTERNAL` ones always."""
        found = {f.name: (getattr(self, f.name), f.metadata.get("json")) for f in fields(self)}
        return {
            name: _plain(value)
            for name, (value, written) in found.items()
            if written != "never" and (written is None or value is not None)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_json` gave; keys that are no fields are passed over, missing ones have their defaults."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def digest(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as a manifest lists them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return str(digest(path)["sha256"])


def sync_folder(folder: Path) -> None:
    """Syncs the files of a folder, once they have the mode that the umask leaves; safetensors gives its own 0600."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(mode)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(folder: Path) -> IO[str]:
    """Keeps other runs out of a folder for as long as the returned file is open; a run that died holds nothing.

    Raises:
        ConfigError: another run is at work in it, or it holds a link, through which a run would write elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if links := [path for path in folder.iterdir() if path.is_symlink()]:
        raise ConfigError(f"{links[0]}: is a link; what is in the folder of a run is its own, so remove it")
    file = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644), "a+")
    held = weakref.ref(file)

    def let_go() -> None:
        """A worker that outlives this process must not keep its lock."""
        if copy := held():
            copy.close()

    os.register_at_fork(after_in_child=let_go)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise ConfigError(f"{folder}: another run is at work in it (process {file.read().strip()})") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
