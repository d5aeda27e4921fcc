"""Training states on disk that are either whole and verified, or not there.

A state is written to a temporary folder, synced, listed in a manifest (size and sha256 of each file), renamed into
place, and only then are older ones removed. Reading verifies the manifest and falls back to the state before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.config import ConfigError

MANIFEST, CHECKSUM = "MANIFEST.json", "MANIFEST.sha256"
MAX_MANIFEST_BYTES = 1_000_000


@dataclass
class State:
    """Everything that decides how a training goes on.

    Randomness is not in it: order, augmentation and dropout are functions of the seed and the step.

    Attributes:
        step: optimizer steps done.
        tensors: named groups of tensors (`model`, `ema`, `best`).
        optimizer: state dict of the optimizer (and of the gradient scaler).
        best: best validation mIoU so far and its step.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    best: dict[str, float] = field(default_factory=dict)


class Checkpoints:
    """The states of one training.

    Args:
        folder: holds one folder `checkpoint-<step>` a state.
        settings: settings that alter the result, flat; a state with others is refused.
        facts: what may alter the bits but not the result (versions, threads); noted when it differs.
        limit: how many states are kept.
        note: called with a line worth telling the user.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        limit: int,
        note: Callable[[str], None] = print,
    ):
        self.folder, self.limit, self.note = folder, limit, note
        self.settings, self.facts = json_like(settings), json_like(facts)

    def save(self, state: State) -> None:
        """Writes a state and removes those beyond the limit; when it raises, the older ones are untouched.

        Raises:
            OSError: no space, or the folder cannot be written; names it and the bytes needed.
        """
        final = self.folder / f"checkpoint-{state.step:07d}"
        temporary = self.folder / f".{final.name}.tmp"
        try:
            for stale in self.folder.glob(".checkpoint-*.tmp"):
                shutil.rmtree(stale)
            temporary.mkdir(parents=True)
            for name, tensors in state.tensors.items():
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors"
                )
            torch.save(state.optimizer, temporary / "optimizer.pt")
            files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
            manifest = {"step": state.step, "best": state.best, "facts": self.facts, "settings": self.settings}
            write_json(temporary / MANIFEST, manifest | {"files": files})
            (temporary / CHECKSUM).write_text(f"{sha256(temporary / MANIFEST)}  {MANIFEST}\n")
            for path in temporary.iterdir():
                _sync(path)
            _sync(temporary)
            if final.exists():
                shutil.rmtree(final)  # only met when it was refused: a state that verifies is gone on from
            temporary.rename(final)
            _sync(self.folder)
        except OSError as error:
            needed = sum(t.numel() * t.element_size() for group in state.tensors.values() for t in group.values())
            raise OSError(
                f"{final}: could not be written ({error.strerror or error}); it needs about {3 * needed:,} bytes, "
                f"older checkpoints are untouched"
            ) from error
        # A state with more steps is one that was refused; it must not count as one of those to keep.
        there = self.list()
        kept = there[: there.index(final) + 1][-self.limit :]
        for old in there:
            if old not in kept:
                shutil.rmtree(old)

    def load(self, which: str = "latest") -> State | None:
        """The newest state that verifies, or the one asked for; None if there is none yet.

        Raises:
            ConfigError: the state asked for does not verify, all of them are bad, or the settings differ.
        """
        if which != "latest" and Path(which).parent.resolve() == self.folder.resolve():
            return self._read(Path(which))
        refused = []
        for folder in reversed(self.list()):
            try:
                return self._read(folder)
            except BadCheckpoint as error:
                refused.append(str(error))
                self.note(f"refused {error}; trying the one before")
        if refused:
            raise ConfigError(f"{self.folder}: no checkpoint verifies ({refused[0]}); remove the folder to start again")
        return None

    def list(self) -> list[Path]:
        """Folders of the states, oldest first."""
        found = [p for p in self.folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
        return sorted(found, key=lambda p: int(p.name.split("-")[1]))

    def _read(self, folder: Path) -> State:
        try:
            if strange := [path for path in folder.iterdir() if path.is_symlink() or not path.is_file()]:
                raise BadCheckpoint(f"{strange[0]}: is not a plain file")
            if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
                raise BadCheckpoint(f"{folder / MANIFEST}: has more than {MAX_MANIFEST_BYTES:,} bytes")
            if (folder / CHECKSUM).read_text() != f"{sha256(folder / MANIFEST)}  {MANIFEST}\n":
                raise BadCheckpoint(f"{folder / MANIFEST}: differs from its checksum")
            manifest = json.loads((folder / MANIFEST).read_text())
            files = manifest["files"]
            names = {path.name for path in folder.iterdir()} - {MANIFEST, CHECKSUM}
            if names != set(files):
                raise BadCheckpoint(f"{folder}: holds {sorted(names)}, its manifest lists {sorted(files)}")
            for name, digest in files.items():
                if _digest(folder / name) != digest:
                    raise BadCheckpoint(f"{folder / name}: differs from its manifest")
            settings, facts = manifest["settings"], manifest["facts"]
            step, best = int(manifest["step"]), manifest["best"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadCheckpoint(f"{folder}: {error}") from error
        refuse_other_settings(folder, settings, self.settings)
        for key, value in self.facts.items():
            if facts.get(key) != value:
                self.note(f"{key} was {facts.get(key)} and is {value}: the result may differ in its last bits")
        try:
            tensors = {Path(name).stem: load_file(folder / name) for name in files if name.endswith(".safetensors")}
            with zipfile.ZipFile(folder / "optimizer.pt") as archive:
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise BadCheckpoint(f"{folder / 'optimizer.pt'}: is compressed; torch.save does not do that")
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # safetensors, zip and pickle each raise their own
            raise BadCheckpoint(f"{folder}: {' '.join(str(error).split())[:300]}") from error
        return State(step, tensors, optimizer, best)


class BadCheckpoint(ConfigError):
    """A state on disk that is not what was written."""


def refuse_other_settings(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigError with a diff if what is in a folder was made with other settings."""
    here = json_like(here)
    changed = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if changed:
        diff = ", ".join(f"{key} {there.get(key)!r} there, {here.get(key)!r} here" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(f"{folder}: was made with other settings ({diff}{more}); set another --name or remove it")


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder, syncs it and renames it to `folder`: whole or not there."""
    temporary = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in temporary.iterdir():
        _sync(path)
    _sync(temporary)
    temporary.rename(folder)
    _sync(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """JSON that a person can read, replaced as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def json_like(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same values as they come back from JSON."""
    return dict(json.loads(json.dumps(dict(value))))


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return str(_digest(path)["sha256"])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
