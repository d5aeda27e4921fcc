"""A file of a teacher's answers: the maps of a few dozen images, in the format of safetensors, a checksum for each."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.pixel_positions import MapGeometry
from distill.errors import ConfigError

REFILL = "remove it, and what it held is asked of the teacher again"
# What reading a header raises that is not as it was written, and may be anything.
NOT_AS_WRITTEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class DamagedError(ConfigError):
    """A file does not hold what was written to it."""

    def __init__(self, file: Path):
        super().__init__(f"{file}: is damaged; {REFILL}")


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
            DamagedError: they are not those that were written.
            ConfigError: they cannot be read.
        """
        count = int(np.prod(self.shape))
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                content = file.read(count)
        except OSError as error:
            raise _unreadable(self.file, error) from None
        if len(content) != count or zlib.crc32(content) != self.checksum:
            raise DamagedError(self.file)
        return np.frombuffer(content, np.uint8).reshape(self.shape)


def read_entries(path: Path, key: str, width: int) -> dict[str, Entry]:
    """The maps of a file, from its header.

    Args:
        path: the file.
        key: of the cache that it belongs to.
        width: bytes of a cell.

    Raises:
        DamagedError: it is not as written, or of another cache.
        ConfigError: it cannot be read.
    """
    header, start, size = _header(path)
    try:
        metadata = header.pop("__metadata__")
        listed = hashlib.sha256(metadata["maps"].encode()).hexdigest()
        if metadata["key"] != key or listed != metadata["sha256"]:
            raise DamagedError(path)
        entries = {}
        for name, about in json.loads(metadata["maps"]).items():
            geometry = about["geometry"]
            lies = MapGeometry(
                tuple(geometry["grid"]), tuple(geometry["padded_size"]), geometry["align_corners"], geometry["stride"]
            )
            shape, offset = tuple(header[name]["shape"]), start + header[name]["data_offsets"][0]
            if len(shape) != 3 or shape[2] != width or not 0 <= offset <= size - int(np.prod(shape)):
                raise DamagedError(path)
            entries[name] = Entry(path, offset, shape, about["crc32"], lies)
    except NOT_AS_WRITTEN:
        raise DamagedError(path) from None
    return entries


def key_of(path: Path) -> str | None:
    """The key of the cache that a file was written for; None if it cannot be told."""
    try:
        return str(_header(path)[0]["__metadata__"]["key"])
    except (ConfigError, *NOT_AS_WRITTEN):
        return None


def content_of(maps: Mapping[str, tuple[np.ndarray, MapGeometry]], key: str) -> bytes:
    """What a file of some maps holds; the same bytes each time."""
    entries = {
        name: {"crc32": zlib.crc32(stored.tobytes()), "geometry": asdict(geometry)}
        for name, (stored, geometry) in maps.items()
    }
    text = json.dumps(entries, sort_keys=True)
    metadata = {"key": key, "maps": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return _safetensors({name: stored for name, (stored, _) in maps.items()}, metadata)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header of a file, where its maps begin, and where it ends."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise DamagedError(path)
            return dict(json.loads(file.read(length))), 8 + length, size
    except OSError as error:
        raise _unreadable(path, error) from None
    except NOT_AS_WRITTEN:
        raise DamagedError(path) from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be read ({error.strerror}); make it readable, or {REFILL}")


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
