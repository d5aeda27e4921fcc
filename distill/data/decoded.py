"""Files as decoded: raw arrays in a folder that are mapped into memory, or the last ones that were decoded.

Decoding a PNG costs milliseconds for each megapixel, and yields all of it; a map gives any part of it, for the cost of
copying that part. Maps are made by whoever reads a file first, and the system holds in memory what it has space for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.data.arrays import first_line
from distill.errors import ConfigError
from distill.storage import sync, writing

LAST = 2  # arrays held: an image, and its mask


class Decoded:
    """Decoded files.

    Args:
        folder: of the maps; whole files are decoded each time if not given, but for the last.
        hold: without a folder, hold what was decoded last, for the next part of it.
    """

    def __init__(self, folder: Path | None, hold: bool = False):
        self.folder, self.hold = folder, hold
        self.last: dict[tuple[Path, str], np.ndarray] = {}

    def get(self, path: Path, how: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """What a file holds; not to be written to.

        Args:
            path: the file.
            how: all else that the result depends on.
            decode: gives it.

        Raises:
            ConfigError: whatever `decode` raises; or the map cannot be read.
            OSError: the map cannot be written, or the file is gone; names it.
        """
        if self.folder is None:
            key = (path, how)
            found = self.last[key] if key in self.last else decode()
            if self.hold:
                self.last.pop(key, None)
                while len(self.last) >= LAST:
                    del self.last[next(iter(self.last))]
                self.last[key] = found
            return found
        stat = path.stat()
        facts = (os.path.abspath(path), how, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        name = hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:32]
        kept = self.folder / f"{name}.npy"
        if not kept.is_file():
            self._put(kept, decode())
        try:
            found = np.load(kept, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # of its header's parser
            raise ConfigError(
                f"{kept}: cannot be read ({first_line(error)}); remove it, and it is made again"
            ) from None
        return found

    def _put(self, kept: Path, array: np.ndarray) -> None:
        """Writes a map whole, beside others that may write the same."""
        temporary = kept.with_name(f".{kept.stem}-{os.getpid()}.npy")
        with writing(kept, array.nbytes):
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                np.save(temporary, array)
                sync(temporary)
                temporary.replace(kept)
            finally:
                temporary.unlink(missing_ok=True)
