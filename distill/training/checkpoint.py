"""Training states on disk that are either whole and verified, or not there.

A state is written to a temporary folder, synced, listed in a manifest (size and sha256 of each file), renamed into
place, and only then are older ones removed. Reading verifies the manifest and falls back to the state before.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from distill.errors import ConfigError
from distill.storage import digest, sha256, size_of, sync, sync_folder, write_json, writing
from distill.training.optimizer_file import read_optimizer
from distill.training.provenance import describe, json_like, not_compared, refuse_other_settings
from distill.training.state import TrainState

MANIFEST, CHECKSUM = "MANIFEST.json", "MANIFEST.sha256"
MAX_MANIFEST_BYTES = 1_000_000


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

    def save(self, state: TrainState) -> None:
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
            files = {path.name: digest(path) for path in sorted(temporary.iterdir())}
            counts = {"step": state.step, "best": state.best, "clipped": state.clipped}
            manifest = counts | {"changes": state.changes, "facts": self.facts}
            write_json(temporary / MANIFEST, manifest | {"settings": self.settings, "files": files})
            (temporary / CHECKSUM).write_text(f"{sha256(temporary / MANIFEST)}  {MANIFEST}\n")
            sync_folder(temporary)
            if final.exists():
                shutil.rmtree(final)  # only met when it was refused: a state that verifies is gone on from
            temporary.rename(final)
            sync(self.folder)
        # A state with more steps is one that was refused; it must not count as one of those to keep.
        there = self.list()
        kept = there[: there.index(final) + 1][-self.limit :]
        for old in there:
            if old not in kept:
                shutil.rmtree(old)

    def load(self, which: str = "latest") -> TrainState | None:
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

    def _read(self, folder: Path) -> TrainState:
        manifest = self._manifest(folder)
        step, changes, settings, facts = (manifest[key] for key in ("step", "changes", "settings", "facts"))
        if allowed := refuse_other_settings(folder, settings, self.settings, self.allowed):
            changes = [*changes, {"step": step, "settings": allowed}]
            self.note(f"resumes with changed settings, as allow_change says ({describe(allowed)})")
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
        return TrainState(step, tensors, optimizer, manifest["best"], manifest["clipped"], changes)

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
            for name, listed in files.items():
                if digest(folder / name) != listed:
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


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed had not finished, anywhere in the folder of a run that is locked."""
    for stale in list(folder.rglob(".*.tmp")):
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
        else:
            stale.unlink(missing_ok=True)
