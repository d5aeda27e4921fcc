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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.batch import Outputs
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


@dataclass(frozen=True)
class Entry:
    """A map in a file.

    Attributes:
        file: where it is.
        offset: of its first byte.
        shape: rows, columns and bytes of a cell.
        checksum: CRC-32 of its bytes.
        geometry: how its cells lie in the image.
    """

    file: Path
    offset: int
    shape: tuple[int, int, int]
    checksum: int
    geometry: MapGeometry

    def read(self) -> np.ndarray:
        """The bytes, uint8 of `shape`.

        Raises:
            ConfigError: they are not those that were written.
        """
        count = int(np.prod(self.shape))
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                content = file.read(count)
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be read ({error.strerror}); {REFILL}") from None
        if len(content) != count or zlib.crc32(content) != self.checksum:
            raise ConfigError(f"{self.file}: is damaged; {REFILL}")
        return np.frombuffer(content, np.uint8).reshape(self.shape)


REFILL = "remove it, and what it held is asked of the teacher again"


class TeacherCache:
    """The maps of a folder, by what their images are known by.

    Args:
        folder: the folder; made if it is not there.
        made_with: whose answers it holds: teacher, settings and preprocessing, JSON values by name.
        classes: number of classes.
        dtype: how they are kept; see `Codec`.

    Attributes:
        folder: as given.
        codec: how maps become bytes.
        entries: the maps that are there.
        damaged: files that are not what they should be; what they held is not in `entries`.

    Raises:
        ConfigError: it holds the answers of another teacher, or something else.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any], classes: int, dtype: CacheDtype = "int8"):
        self.folder, self.codec = folder, Codec(classes, dtype)
        self.made_with = {"version": VERSION, **made_with, "classes": classes, "dtype": dtype}
        self.key = hashlib.sha256(json.dumps(self.made_with, sort_keys=True).encode()).hexdigest()[:32]
        self.entries: dict[str, Entry] = {}
        self.damaged: list[Path] = []

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
                found = self._entries_of(path)
                for entry in found.values() if verify else ():
                    entry.read()
                self.entries |= found
            except (ConfigError, ValueError, KeyError, TypeError):
                self.damaged.append(path)
        return self

    def compare(self) -> None:
        """Raises ConfigError unless the folder is new, or holds the answers of this teacher."""
        path = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"teacher.cache.dir: {self.folder} is not a folder; set another")
        if not path.is_file():
            if self.folder.is_dir() and any(not p.name.startswith(".") for p in self.folder.iterdir()):
                raise ConfigError(f"teacher.cache.dir: {self.folder} holds something else; set another folder")
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))["made_with"]
            names = [n for n in sorted(there.keys() | self.made_with) if there.get(n) != _plain(self.made_with.get(n))]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(f"{path}: cannot be read; remove {self.folder}, and it is filled again") from None
        if names:
            told = ", ".join(
                f"{n} {_short(there.get(n))} there, {_short(self.made_with.get(n))} here" for n in names[:4]
            )
            raise ConfigError(
                f"teacher.cache.dir: {self.folder} holds the answers of another teacher ({told}); set another folder "
                f"or remove it"
            )

    def begin(self) -> None:
        """Makes the folder, with its manifest, and removes what writers that are gone left behind.

        Raises:
            OSError: it cannot be written; names it.
        """
        text = json.dumps({"made_with": self.made_with}, indent=2, ensure_ascii=False) + "\n"
        with writing(self.folder, len(text)):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).is_file():
            self._put(self.folder / MANIFEST, text.encode())
        for path in self.folder.glob(".*-*-*.tmp"):
            host, _, process = path.name[1:].rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
                path.unlink(missing_ok=True)
        for path in self.damaged:
            path.unlink(missing_ok=True)

    def write(self, maps: Mapping[str, tuple[np.ndarray, MapGeometry]]) -> None:
        """Adds a file.

        Args:
            maps: by what each image is known by, its map's bytes and how its cells lie.

        Raises:
            OSError: no space, or the folder cannot be written; names the file.
        """
        entries = {
            name: {"crc32": zlib.crc32(stored.tobytes()), "geometry": asdict(geometry)}
            for name, (stored, geometry) in maps.items()
        }
        text = json.dumps(entries, sort_keys=True)
        metadata = {"key": self.key, "maps": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        content = _safetensors({name: stored for name, (stored, _) in maps.items()}, metadata)
        path = self.folder / (hashlib.sha256("".join(sorted(maps)).encode()).hexdigest()[:24] + SUFFIX)
        self._put(path, content)
        self.entries |= self._entries_of(path)

    def _put(self, path: Path, content: bytes) -> None:
        """Writes a file whole, beside others that may write the same."""
        temporary = self.folder / f".{socket.gethostname()}-{os.getpid()}-{path.stem[:8]}.tmp"
        with writing(path, len(content)):
            try:
                temporary.write_bytes(content)
                sync(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _entries_of(self, path: Path) -> dict[str, Entry]:
        """The maps of a file, from its header; raises ValueError, KeyError or TypeError if it is not as written."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("cut off")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        if metadata["key"] != self.key or hashlib.sha256(metadata["maps"].encode()).hexdigest() != metadata["sha256"]:
            raise ValueError("another teacher's, or damaged")
        entries = {}
        for name, about in json.loads(metadata["maps"]).items():
            geometry = about["geometry"]
            lies = MapGeometry(
                tuple(geometry["grid"]), tuple(geometry["padded_size"]), geometry["align_corners"], geometry["stride"]
            )
            shape = tuple(header[name]["shape"])
            if len(shape) != 3 or shape[2] != self.codec.width:
                raise ValueError("of another shape")
            entries[name] = Entry(path, 8 + length + header[name]["data_offsets"][0], shape, about["crc32"], lies)
        return entries


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
            Float16 `[C, h, w]`, relative to the largest of each cell of the map.
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
    return [
        content_hash(files[0])[:32] + size if files else pixel_hash(dataset.read(i)[0])
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


def _safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A file of uint8 arrays; the library's own would have its names in another order each time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "U8", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays.values())])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
