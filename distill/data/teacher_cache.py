"""What a teacher said of each image, kept on disk: asked once for whole, clean images, read again for every crop.

A folder holds `manifest.json`, which says whose answers these are, and files of a few dozen maps each, in the format of
safetensors with a checksum for each map. A file is whole or not there, and what it is called follows from the images in
it. So any number of processes and machines may fill one folder at the same time, and be killed at it.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.batch import Outputs
from distill.data.cache_files import NOT_AS_WRITTEN, DamagedError, Entry, content_of, key_of, read_entries
from distill.data.codec import CacheDtype, Codec
from distill.data.contents import content_hash
from distill.data.datasets import Dataset
from distill.data.pixel_positions import MapGeometry, interpolation_of, source_positions
from distill.errors import ConfigError
from distill.storage import sync, writing

VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
MAPS_PER_FILE = 32


class TeacherCache:
    """The maps of a folder, by what their images are known by.

    Args:
        folder: the folder; made if it is not there.
        made_with: whose answers it holds: teacher, settings and preprocessing, JSON values by name.
        classes: number of classes.
        dtype: how they are kept; see `Codec`.
        multilabel: whether classes do not exclude each other.

    Attributes:
        folder: as given.
        codec: how maps become bytes.
        entries: the maps that are there.
        damaged: files that are not what they should be; what they held is not in `entries`.
        rewritten: whether its manifest was damaged, and was written anew.

    Raises:
        ConfigError: it holds the answers of another teacher, or something else.
    """

    def __init__(
        self,
        folder: Path,
        made_with: Mapping[str, Any],
        classes: int,
        dtype: CacheDtype = "int8",
        multilabel: bool = False,
    ):
        self.folder, self.codec = folder, Codec(classes, dtype, multilabel)
        self.made_with = {"version": VERSION, **made_with, "classes": classes, "dtype": dtype}
        self.key = hashlib.sha256(json.dumps(self.made_with, sort_keys=True).encode()).hexdigest()[:32]
        self.entries: dict[str, Entry] = {}
        self.damaged: list[Path] = []
        self.rewritten = False

    def open(self, verify: bool = True) -> TeacherCache:
        """Finds what is there; returns itself.

        Args:
            verify: read every byte of it, so that damage is found before a map is needed.
        """
        self.compare()
        self.entries.clear()
        self.damaged.clear()
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                self.entries |= self._read(path, verify)
            except DamagedError:
                self.damaged.append(path)
            except ConfigError:
                if path.exists():  # else another run has just removed it
                    raise
        return self

    def compare(self) -> None:
        """Raises ConfigError unless the folder is new, or holds the answers of this teacher.

        A manifest that is damaged or gone is written anew where the files beside it say that they are of this cache.
        """
        path, here = self.folder / MANIFEST, _plain(self.made_with)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"teacher.cache.dir: {self.folder} is not a folder; set another")
        there = _manifest(path)
        if there == here:
            return
        if {key_of(file) for file in self.folder.glob(f"*{SUFFIX}")} - {None} == {self.key}:
            with suppress(OSError):  # from where it can only be read, it is read all the same
                self._put(path, self._text())
                self.rewritten = True
            return
        if not path.is_file():
            if self.folder.is_dir() and any(not p.name.startswith(".") for p in self.folder.iterdir()):
                raise ConfigError(f"teacher.cache.dir: {self.folder} holds something else; set another folder")
            return
        if there is None:
            raise ConfigError(f"{path}: cannot be read; remove {self.folder}, and it is filled again")
        names = [n for n in sorted(there.keys() | here) if there.get(n) != here.get(n)]
        whose = "was written in another format" if "version" in names else "holds the answers of another teacher"
        names = ["version"] if "version" in names else names[:4]
        told = ", ".join(f"{n} {_short(there.get(n))} there, {_short(here.get(n))} here" for n in names)
        raise ConfigError(f"teacher.cache.dir: {self.folder} {whose} ({told}); set another folder or remove it")

    def begin(self) -> None:
        """Makes the folder, with its manifest, and removes what writers that are gone left behind.

        Raises:
            ConfigError: a run with another teacher has begun with it in the meantime.
            OSError: it cannot be written; names it.
        """
        with writing(self.folder, len(self._text())):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).is_file():
            self._put(self.folder / MANIFEST, self._text(), first=True)
        self.compare()  # of several that begin at the same time the first has written it
        for path in self.folder.glob(".*-*-*.tmp"):
            host, _, process = path.name[1:].rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
                path.unlink(missing_ok=True)
        for path in self.damaged:
            try:
                self._read(path)  # another run may have written it anew
            except DamagedError:
                _remove(path)
            except ConfigError:
                continue

    def write(self, maps: Mapping[str, tuple[np.ndarray, MapGeometry]]) -> None:
        """Adds a file.

        Args:
            maps: by what each image is known by, its map's bytes and how its cells lie.

        Raises:
            OSError: no space, or the folder cannot be written; names the file.
        """
        path = self.folder / (hashlib.sha256("".join(sorted(maps)).encode()).hexdigest()[:24] + SUFFIX)
        self._put(path, content_of(maps, self.key))
        self.entries |= self._read(path, verify=False)

    def _read(self, path: Path, verify: bool = True) -> dict[str, Entry]:
        """The maps of a file."""
        found = read_entries(path, self.key, self.codec.width)
        for entry in found.values() if verify else ():
            entry.read()
        return found

    def _text(self) -> bytes:
        """What the manifest holds."""
        return (json.dumps({"made_with": self.made_with}, indent=2, ensure_ascii=False) + "\n").encode()

    def _put(self, path: Path, content: bytes, first: bool = False) -> None:
        """Writes a file whole, beside others that may write the same; if it has to be the first, only if it is."""
        temporary = self.folder / f".{socket.gethostname()}-{os.getpid()}-{path.stem[:8]}.tmp"
        with writing(path, len(content)):
            try:
                temporary.write_bytes(content)
                sync(temporary)
                if not (first and _linked(temporary, path)):
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class CachedTargets:
    """A teacher's maps for the images of a data set, read for the crops that are taken from them.

    Attributes:
        cache: the maps.
        names: what each image of the data set is known by.
    """

    cache: TeacherCache
    names: Sequence[str]

    def crop(self, index: int, moved: np.ndarray) -> np.ndarray:
        """The teacher's logits for a crop, as it would give them at its own stride.

        Args:
            index: of the image.
            moved: where the crop comes from: the transformed image of coordinates (see `pixel_positions.coordinates`).

        Returns:
            Float16 `[C, h, w]`, relative to the largest of each cell of the map; or of classes that do not exclude each
            other, as they are.
        """
        entry = self.cache.entries[self.names[index]]
        crop = entry.geometry.of_crop(moved.shape[:2])  # type: ignore[arg-type]
        positions = source_positions(moved, crop.centers(0), crop.centers(1))
        rows, columns, width = entry.shape
        cells, weights = interpolation_of(entry.geometry, positions, (rows, columns))
        corners = self.cache.codec.decode(entry.read().reshape(-1, width)[cells])
        logits = np.einsum("nmkc,nmk->cnm", corners, weights, optimize=False)
        return logits.astype(np.float16)

    def refuse_other_pixels(self, index: int, image: np.ndarray, name: str) -> None:
        """Raises ConfigError if a data set of somebody's own gives another image than the teacher was asked about."""
        if pixel_hash(image) != self.names[index]:
            raise ConfigError(
                f"{name}: has other pixels than when the teacher was asked; leave augmenting to data.augmentations, or "
                f"set teacher.cache.enabled false"
            )

    def outputs(self, logits: Any, size: tuple[int, int]) -> Outputs:
        """Crops' logits `[N, C, h, w]` as a network's outputs for crops of a size."""
        geometry = next(iter(self.cache.entries.values())).geometry.of_crop(size)
        return Outputs(logits, size, geometry.padded_size, geometry.align_corners)


def known_by(dataset: Dataset, image_size: Sequence[int] | None) -> list[str]:
    """What each image is known by: its file's bytes and how it is read, or its pixels if it has no file."""
    size = f"-{image_size[0]}x{image_size[1]}" if image_size else ""
    if (dataset.channels, dataset.dtype) != (3, "uint8"):  # one file may be read as gray, as RGB and with all its bits
        size += f"-{dataset.channels}x{dataset.dtype}"
    parts = [window.suffix for window in dataset.windows] if dataset.windows else [""] * len(dataset)
    return [
        content_hash(files[0])[:32] + size + parts[i] if files else pixel_hash(dataset.read(i)[0])
        for i, files in enumerate(dataset.files)
    ]


def pixel_hash(image: np.ndarray) -> str:
    """What an image without a file is known by."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:32]


def missing_groups(names: Sequence[str], there: Mapping[str, Any]) -> Iterator[tuple[int, list[int]]]:
    """Which images go into one file: numbers of the groups that lack some, and these images.

    The groups follow from the data set alone, so that processes which know nothing of each other share the work.
    """
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)  # two equal images are one
    wanted = list(first.values())
    for number, start in enumerate(range(0, len(wanted), MAPS_PER_FILE)):
        group = [i for i in wanted[start : start + MAPS_PER_FILE] if names[i] not in there]
        if group:
            yield number, group


def _manifest(path: Path) -> dict[str, Any] | None:
    """What a manifest says; None if it says nothing."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["made_with"])
    except (OSError, *NOT_AS_WRITTEN):
        return None


def _linked(temporary: Path, path: Path) -> bool:
    """Gives a file its name, unless there is one of that name; False where the file system cannot."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = f"is damaged and could not be removed ({error.strerror})"
        raise OSError(f"{path}: {reason}; make {path.parent} writable, or set another teacher.cache.dir") from None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
