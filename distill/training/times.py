"""How long a training took, and how long its teacher was asked: added up over interruptions, in files of their own.

They stand outside what a run publishes, which is the same byte for byte however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from distill.storage import write_json


class Stopwatch:
    """Seconds of a training's steps, validation and saving apart; with a file, they are known again after a kill.

    Args:
        path: JSON file of steps done → seconds; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.began = path, 0.0
        self.seconds: float | None = 0.0
        self.known: dict[str, float] = read(path) if path and path.is_file() else {}

    def start(self) -> None:
        """At the beginning of a step."""
        self.began = time.perf_counter()

    def stop(self) -> None:
        """At its end; the gradient's norm was looked at by then, so that an accelerator is done, too."""
        if self.seconds is not None:
            self.seconds += time.perf_counter() - self.began

    def save(self, step: int) -> None:
        """Remembers the seconds up to a step; called before its state is saved, so that no state lacks them."""
        if self.path and self.seconds is not None:
            earlier = {done: seconds for done, seconds in self.known.items() if int(done) < step}
            self.known = earlier | {str(step): round(self.seconds, 3)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.known)

    def resume(self, step: int) -> None:
        """Goes on from a step; steps after it, which are done again, count once."""
        self.seconds = self.known.get(str(step))


class AskingTimes:
    """Seconds for which a teacher was asked for its answers, by the folder that they went to.

    Each process writes a file of its own: several may fill one folder.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.own: dict[str, dict[str, float]] = {}

    def add(self, cache: Path, images: int, seconds: float) -> None:
        """Counts images that were asked about and written."""
        stem = _stem(cache)
        own = self.own.setdefault(stem, {"images": 0, "seconds": 0.0})
        own["images"] += images
        own["seconds"] = round(own["seconds"] + seconds, 3)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{stem}-{socket.gethostname()}-{os.getpid()}-{id(self):x}.json", own)

    def per_image(self, cache: Path) -> float | None:
        """Seconds for an image, the mean of all that were asked about; None if none was."""
        found = [read(path) for path in sorted(self.folder.glob(f"{_stem(cache)}-*.json"))]
        images = sum(one.get("images", 0) for one in found)
        return sum(one.get("seconds", 0.0) for one in found) / images if images else None


def read(path: Path) -> dict[str, Any]:
    """What a file of times holds; nothing if it cannot be read, since a result must not fail for that."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _stem(cache: Path) -> str:
    return hashlib.sha256(str(cache.resolve()).encode()).hexdigest()[:12]
