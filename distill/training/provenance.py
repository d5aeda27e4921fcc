"""What a stage is made from: settings, data and teacher. Compared before anything goes on from it.

Data and teacher stand among the settings as fingerprints, so that they are refused, or allowed to change, by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from distill.config.networks import OWN
from distill.config.schema import ADDED, GONE, RENAMED, RUNTIME_SETTINGS, Config, flatten
from distill.errors import ConfigError
from distill.models.foreign.source import find_source
from distill.models.smp_files import FILES
from distill.storage import sha256
from distill.training.stage import BASELINE, INT8, STAGES, TEACHER, Stage

RECORD = "stage.json"  # of a finished stage, in its folder
# Not settings, and not recorded by older versions: what they made says nothing of these, so these are not compared.
FINGERPRINTS = ("data.train_files", "data.unlabeled_files", "data.val_files", "teacher.files")


def settings_of_stage(
    config: Config, stage: Stage, processes: int, files: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings that decide what a stage ends with, and the fingerprints of the data that it reads."""
    factors = ("per_device_train_batch_size", "gradient_accumulation_steps")  # only their product counts
    left_out, flat = (*RUNTIME_SETTINGS, *factors), flatten(config) | dict(files or {})
    settings = {k: v for k, v in flat.items() if k not in left_out and not k.startswith(stage.irrelevant)}
    if (file := stage.network(config).weights_file) and f"{stage.section}.encoder_weights" in settings:
        settings[f"{stage.section}.encoder_weights"] = f"sha256 {sha256(file)[:16]}" if file.is_file() else str(file)
    if config.teacher.more and "teacher.more" in settings:
        settings["teacher.more"] = [_known_again(config, path) for path in config.teacher.more]
    global_batch_size = processes * config.per_device_train_batch_size * config.gradient_accumulation_steps
    return settings | {"global_batch_size": global_batch_size}


def network_files(folder: Path) -> dict[str, str]:
    """Hashes of what a network's folder says beside its weights: file → SHA-256, its first 16 digits."""
    paths = (folder / name for name in FILES if name != "model.safetensors")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths if path.is_file()}


def teacher_folder(config: Config) -> Path:
    """Where the teacher is read from."""
    if config.teacher.source is None or config.teacher.checkpoint is None:
        return config.folder / "teacher"
    path = Path(config.teacher.checkpoint)  # a foreign teacher is no folder, see `foreign_teacher`
    return path / "teacher" if (path / "teacher").is_dir() else path


def _known_again(config: Config, path: str) -> str:
    """By what a further teacher is known again: its weights, and what its folder says beside them."""
    source = find_source(replace(config.teacher, checkpoint=path, python=None))
    if source.kind != "smp":
        return f"sha256 {[sha256(file)[:16] for file in source.files]}" if source.files else path
    folder = teacher_folder(replace(config, teacher=replace(config.teacher, checkpoint=path)))
    weights = folder / "model.safetensors"
    return f"sha256 {sha256(weights)[:16]} {network_files(folder)}" if weights.is_file() else path


def compare_folder(
    config: Config, processes: int, files: Mapping[str, Any], underway: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Compares what the folder of a run holds with what is asked for now.

    Args:
        config: what is asked for.
        processes: by how many processes.
        files: fingerprints of the data.
        underway: of the stages that have begun, the settings of their last state.

    Returns:
        Lines that say what finished stages were made with instead, where they are allowed to differ.

    Raises:
        ConfigError: they are not; or nothing is made with what changed, so that the records would lie.
    """
    made: dict[str, Mapping[str, Any]] = {}  # what each stage was or will be made with
    changed: list[tuple[str, str, list[Any]]] = []  # finished stage, setting, value there and value here
    own_teacher = config.teacher.source is None and config.teacher.arch != OWN  # trained here
    planned = {BASELINE: config.baseline.enabled, INT8: INT8.name in underway}  # the others always
    for name, stage in STAGES.items():
        if stage == TEACHER and not own_teacher:
            continue
        folder, wanted = config.folder / name, json_like(settings_of_stage(config, stage, processes, files))
        if finished := (folder / RECORD).is_file():
            made[name] = there = json.loads((folder / RECORD).read_text())["settings"]
        elif planned.get(stage, True):
            made[name], there, folder = wanted, underway.get(name, wanted), config.folder / "training" / name
        if name in made and not stage.quantized:  # its steps and rate are its own; it is compared when its turn comes
            there = {key: value for key, value in there.items() if key not in ("teacher.sha256", "teacher.files")}
            differences = refuse_other_settings(folder, there, wanted, config.allow_change)
            changed += [(name, key, values) for key, values in differences.items() if finished]
    for _, key, (before, now) in changed:
        # A teacher that is trained here reaches the others by its weights alone.
        of_teacher = own_teacher and key.startswith("teacher.") and not key.startswith(TEACHER.irrelevant)
        reached = ["teacher"] if of_teacher else list(made)
        is_setting = key not in (*FINGERPRINTS, "teacher.checkpoint")
        if is_setting and not any(key in made[name] and made[name][key] == now for name in reached):
            raise ConfigError(
                f"{config.folder}: {key} {before!r} there, {now!r} here, but all that it reaches is finished, so "
                f"allow_change changes nothing; leave {key} as it was, or set another --name"
            )
    return [f"{name} was made with {key} {before!r}" for name, key, (before, _) in changed]


def as_made(config: Config, settings: Mapping[str, Any]) -> Config:
    """The settings with those in place that a stage was made with."""

    def filled(section: Any, prefix: str) -> Any:
        values = {}
        for f in fields(section):
            value, name = getattr(section, f.name), prefix + f.name
            if is_dataclass(value):
                value = filled(value, f"{name}.")
            elif name != "teacher.checkpoint":  # by which a stage knows a hash, not a name
                value = settings.get(name, value)
            values[f.name] = value
        return replace(section, **values)

    made: Config = filled(config, "")
    return made


def refuse_other_settings(
    folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], allowed: Collection[str] | None = None
) -> dict[str, list[Any]]:
    """Compares settings with those that what is in a folder was made with.

    Args:
        folder: what the message names.
        there: settings it was made with.
        here: settings of this run.
        allowed: names that may differ; None if no difference can be lived with.

    Returns:
        The differences that are allowed: name → value there and value here.

    Raises:
        ConfigError: others differ; lists them.
    """
    # A setting that an older version did not have: its default is what that version did.
    there = {RENAMED.get(key, key): value for key, value in there.items()}
    defaults = json_like(flatten(Config())) | ADDED
    there = {key: value for key, value in defaults.items() if key in here} | there
    there = {key: value for key, value in there.items() if key in here or (key, value) not in GONE.items()}
    here = {key: value for key, value in json_like(here).items() if key not in not_compared(there, here)}
    keys = (key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key))
    differences = {key: [there.get(key), here.get(key)] for key in keys}
    changed = {key: values for key, values in differences.items() if key not in (allowed or ())}
    if changed:
        fix = "set another --name or remove it" + (", or go on with --allow_change" if allowed is not None else "")
        raise ConfigError(f"{folder}: was made with other settings ({describe(changed)}); {fix}")
    return differences


def not_compared(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Fingerprints that were not recorded there."""
    return [key for key in FINGERPRINTS if key in here and key not in there]


def describe(differences: Mapping[str, list[Any]], most: int = 5) -> str:
    """Differences as words; of what has parts, those that differ."""
    told = []
    for key, (there, here) in differences.items():
        parts = {key: (there, here)}
        if isinstance(there, dict) and isinstance(here, dict):
            names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
            parts = {f"{key}: {name}": (there.get(name), here.get(name)) for name in names}
        told += [f"{name} {before!r} there, {after!r} here" for name, (before, after) in parts.items()]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def json_like(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same values as they come back from JSON."""
    return dict(json.loads(json.dumps(dict(value))))
