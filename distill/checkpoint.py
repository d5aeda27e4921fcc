"""Training states on disk that are either whole and verified, or not there.

A state is written to a temporary folder, synced, listed in a manifest (size and sha256 of each file), renamed into
place, and only then are older ones removed. Reading verifies the manifest and falls back to the state before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.config import ConfigError
from distill.optimizer_file import read_optimizer
from distill.provenance import describe, json_like, not_compared, refuse_other_settings

MANIFEST, CHECKSUM = "MANIFEST.json", "MANIFEST.sha256"
MAX_MANIFEST_BYTES = 1_000_000
BYTES_BESIDE_TENSOR = 1_000  # its name, shape and place, and what fills up a block


@dataclass
class State:
    """Everything that decides how a training goes on.

    Randomness is not in it: order, augmentation and dropout are functions of the seed and the step.

    Attributes:
        step: optimizer steps done.
        tensors: named groups of tensors (`model`, `ema`, `best`).
        optimizer: state dict of the optimizer (and of the gradient scaler).
        best: best validation mIoU so far and its step.
        clipped: steps whose gradients were clipped.
        changes: settings that were allowed to change on the way: `{"step": …, "settings": {name: [before, after]}}`.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    best: dict[str, float] = field(default_factory=dict)
    clipped: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The states of one training.

    Args:
        folder: holds one folder `checkpoint-<step>` a state.
        settings: settings that alter the result, flat; a state with others is refused.
        facts: what may alter the bits but not the result (versions, threads); noted when it differs.
        limit: how many states are kept.
        note: called with a line worth telling the user.
        allowed: settings that may differ all the same.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        limit: int,
        note: Callable[[str], None] = print,
        allowed: Collection[str] = (),
    ):
        self.folder, self.limit, self.note, self.allowed = folder, limit, note, allowed
        self.settings, self.facts = json_like(settings), json_like(facts)

    def save(self, state: State) -> None:
        """Writes a state and removes those beyond the limit; when it raises, the older ones are untouched.

        Raises:
            OSError: no space, or the folder cannot be written; names it and the bytes needed and free.
        """
        final = self.folder / f"checkpoint-{state.step:07d}"
        temporary = self.folder / f".{final.name}.tmp"
        for stale in self.folder.glob(".checkpoint-*.tmp"):
            shutil.rmtree(stale)
        with writing(final, size_of(state.tensors) + size_of(state.optimizer)):
            temporary.mkdir(parents=True)
            for name, tensors in state.tensors.items():
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors"
                )
            torch.save(state.optimizer, temporary / "optimizer.pt")
            files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
            counts = {"step": state.step, "best": state.best, "clipped": state.clipped}
            manifest = counts | {"changes": state.changes, "facts": self.facts}
            write_json(temporary / MANIFEST, manifest | {"settings": self.settings, "files": files})
            (temporary / CHECKSUM).write_text(f"{sha256(temporary / MANIFEST)}  {MANIFEST}\n")
            _settle(temporary)
            if final.exists():
                shutil.rmtree(final)  # only met when it was refused: a state that verifies is gone on from
            temporary.rename(final)
            _sync(self.folder)
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

    def last_settings(self) -> dict[str, Any] | None:
        """What the newest whole state was made with; None if there is none."""
        for folder in reversed(self.list()):
            with suppress(BadCheckpoint):
                return dict(self._manifest(folder)["settings"])
        return None

    def _read(self, folder: Path) -> State:
        manifest = self._manifest(folder)
        step, changes, settings, facts = (manifest[key] for key in ("step", "changes", "settings", "facts"))
        if allowed := refuse_other_settings(folder, settings, self.settings, self.allowed):
            changes = [*changes, {"step": step, "settings": allowed}]
            self.note(f"goes on with changed settings, as allow_change says ({describe(allowed)})")
        if unknown := [*not_compared(settings, self.settings), *(key for key in self.facts if key not in facts)]:
            self.note(f"{folder.name} does not say {', '.join(unknown)}: not compared")
        for key, value in self.facts.items():
            if key in facts and facts[key] != value:
                self.note(f"{key} was {facts[key]} and is {value}: the result may differ in its last bits")
        try:
            names = [name for name in manifest["files"] if name.endswith(".safetensors")]
            tensors = {Path(name).stem: load_file(folder / name) for name in names}
            optimizer = read_optimizer(folder / "optimizer.pt")
        except Exception as error:  # safetensors, zip and pickle each raise their own
            raise BadCheckpoint(f"{folder}: {' '.join(str(error).split())[:300]}") from error
        return State(step, tensors, optimizer, manifest["best"], manifest["clipped"], changes)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """The manifest of a state, all of whose files are what it says."""
        try:
            if strange := [path for path in folder.iterdir() if path.is_symlink() or not path.is_file()]:
                raise BadCheckpoint(f"{strange[0]}: is not a plain file")
            if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
                raise BadCheckpoint(f"{folder / MANIFEST}: has more than {MAX_MANIFEST_BYTES:,} bytes")
            if (folder / CHECKSUM).read_text() != f"{sha256(folder / MANIFEST)}  {MANIFEST}\n":
                raise BadCheckpoint(f"{folder / MANIFEST}: differs from its checksum")
            manifest = {"clipped": 0, "changes": []} | json.loads((folder / MANIFEST).read_text())
            files, step = manifest["files"], manifest["step"]
            names = {path.name for path in folder.iterdir()} - {MANIFEST, CHECKSUM}
            if names != set(files):
                raise BadCheckpoint(f"{folder}: holds {sorted(names)}, its manifest lists {sorted(files)}")
            for name, digest in files.items():
                if _digest(folder / name) != digest:
                    raise BadCheckpoint(f"{folder / name}: differs from its manifest")
            if type(step) is not int or folder.name != f"checkpoint-{step:07d}":
                raise BadCheckpoint(f"{folder / MANIFEST}: says step {step!r:.30}; the folder's name does not")
            kinds = {"best": dict, "clipped": int, "changes": list, "settings": dict, "facts": dict}
            if wrong := [key for key, kind in kinds.items() if not isinstance(manifest[key], kind)]:
                raise BadCheckpoint(f"{folder / MANIFEST}: {wrong[0]} is {manifest[wrong[0]]!r:.30}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint(f"{folder}: {error}") from error
        return manifest


class BadCheckpoint(ConfigError):
    """A state on disk that is not what was written."""


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
        _settle(temporary)
        temporary.rename(folder)
        _sync(folder.parent)


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
        _sync(temporary)
        temporary.replace(path)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return str(_digest(path)["sha256"])


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed had not finished, anywhere in the folder of a run that is locked."""
    for stale in list(folder.rglob(".*.tmp")):
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
        else:
            stale.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Syncs the files of a folder, once they have the mode that the umask leaves; safetensors gives its own 0600."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(mode)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
