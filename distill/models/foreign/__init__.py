"""Teachers that this project did not make: told apart, opened, and brought to the interface of `Network`.

Each kind of teacher has a module of its own that gives a `Found`, what it is and a module from normalized images to a
map; `ForeignNetwork` makes logits of whatever the map holds, and `Mapped` the data's classes of theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from distill.batch import RGB, ImageKind
from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.asked import fingerprint
from distill.models.foreign.arrays import ALONE, OpenRunner, open_onnx
from distill.models.foreign.classes import Mapped, match
from distill.models.foreign.exported import open_exported
from distill.models.foreign.network import ForeignNetwork, Found, weights_of
from distill.models.foreign.python_file import open_python
from distill.models.foreign.source import RECORD, Source, find_source, refuse_missing
from distill.models.foreign.torchvision_names import open_torchvision
from distill.models.foreign.transformers_folder import open_transformers
from distill.models.foreign.weights_file import is_torchvision, open_smp_weights, open_torchvision_weights
from distill.models.image_input import check_bands
from distill.models.network import Network, load
from distill.models.smp_files import read_classes

__all__ = [
    "RECORD",
    "ForeignNetwork",
    "Mapped",
    "Opened",
    "find_source",
    "open_teacher",
    "refuse_missing",
    "weights_of",
]

TRIED = (96, 128)  # height and width of the part of an image that a teacher is tried out with, about


@dataclass
class Opened:
    """A teacher that is not a folder of SMP's with the data's classes.

    Attributes:
        network: on the CPU.
        source: where it is from.
        told: what was found, a line each.
        known_by: what it is known again by: file (or other part) → SHA-256.
    """

    network: Network
    source: Source
    told: list[str] = field(default_factory=list)
    known_by: dict[str, str] = field(default_factory=dict)

    @property
    def copied(self) -> bool:
        """Whether its weights are kept in the run's folder; those of foreign teachers stay where they are."""
        return not isinstance(self.inner, ForeignNetwork)

    @property
    def sha256(self) -> str:
        """Of all that it is known by."""
        return hashlib.sha256(json.dumps(self.known_by, sort_keys=True).encode()).hexdigest()

    @property
    def inner(self) -> Network:
        """The network with its own classes."""
        return self.network.inner if isinstance(self.network, Mapped) else self.network


def open_teacher(
    config: TeacherConfig,
    classes: Sequence[str],
    image: Tensor,
    open_runner: OpenRunner,
    hashed: Callable[[Path], str],
    kind: ImageKind = RGB,
) -> Opened | None:
    """The teacher that the settings name, as one of the data's classes.

    Args:
        config: the settings.
        classes: the data's.
        image: one of the data's, `[1, C, H, W]`: what the outputs are is found out with it.
        open_runner: opens an ONNX file.
        hashed: SHA-256 of a file.
        kind: of the data's images.

    Returns:
        None for a run or a folder of SMP's with the data's classes, which is read as ever.

    Raises:
        ConfigError: it cannot be opened, or its classes are others.
    """
    source = find_source(config)
    if source.kind == "smp" or (source.kind == "weights" and not is_torchvision(config.arch)):
        _refuse_settings(source, config)
    if source.kind == "smp":
        return _of_smp_folder(source, config, classes, kind)
    known_by = {file.name: hashed(file)[:16] for file in source.files}
    if source.kind == "weights" and not is_torchvision(config.arch):
        names = config.class_names or list(classes)
        smp_network = open_smp_weights(source, config, names, kind)
        line = f"teacher  {source.path.name}: weights of {config.arch} on {config.encoder_name}, {len(names)} classes"
        return replace(_with_classes(smp_network, source, config, classes, [line]), known_by=known_by)
    bands = config.channels
    colors = (image if bands is None else image[:, bands]) * (255 / kind.white)
    found = _found(source, config, len(config.class_names or classes), colors, open_runner)
    names = _names(found, config, classes, source)
    mean, std = found.mean or config.mean, found.std or config.std
    found.bgr = found.bgr or config.bgr
    if source.kind in ("python", "torchvision"):  # their weights are in no file that is known here
        known_by["weights"] = fingerprint(found.model)[:16]
    check_bands(bands, kind)
    many = config.head == "multilabel"
    how = (found.size or config.window, config.label_smoothing, known_by, kind, bands, many)
    network = ForeignNetwork(found, names, mean, std, *how)
    where = _tried(network.eval(), image, source)
    opened = _with_classes(network, source, config, classes, [_line(found, network, where)])
    return replace(opened, known_by=known_by)


def _refuse_settings(source: Source, config: TeacherConfig) -> None:
    """Raises ConfigError for settings that SMP's networks do not have: they give logits of RGB images of any size."""
    defaults = TeacherConfig()
    for name in ("output", "bgr", "window"):
        if getattr(config, name) != getattr(defaults, name):
            raise ConfigError(f"teacher.{name}: is for other kinds of teachers, {source.name} is SMP's; leave it out")


def _found(source: Source, config: TeacherConfig, classes: int, image: Tensor, open_runner: OpenRunner) -> Found:
    if source.kind == "transformers":
        return open_transformers(source)
    if source.kind == "torchvision":
        return open_torchvision(source)
    if source.kind == "weights":
        return open_torchvision_weights(source, config.arch)
    with torch.no_grad():
        if source.kind == "onnx":
            return open_onnx(source, config, classes, image, open_runner(source.path))
        if source.kind == "exported":
            return open_exported(source, config, classes, image)
        return open_python(source, config, classes, image)


def _names(found: Found, config: TeacherConfig, classes: Sequence[str], source: Source) -> list[str]:
    """Names of the teacher's classes: those of the settings, its own, or, if it has as many, the data's."""
    names = config.class_names or found.classes
    if names and len(names) == 1 and found.outputs == 2 and config.head != "multilabel":
        names = ["background", *names]
    if names is None:
        if found.outputs != len(classes):
            alone = " (background and foreground, in one channel)" if ALONE in found.notes else ""
            raise ConfigError(
                f"{source.name}: has {found.outputs} classes without names{alone}, and the data has {len(classes)}; "
                f"name its outputs in teacher.class_names"
            )
        found.notes.append("classes taken to be the data's, in their order")
        return list(classes)
    if len(names) != found.outputs and found.kind != "labels":
        said = "teacher.class_names" if config.class_names else "the teacher itself"
        raise ConfigError(f"{source.name}: has {found.outputs} classes, but {said} names {len(names)}")
    return list(names)


@torch.no_grad()
def _tried(network: ForeignNetwork, image: Tensor, source: Source) -> str:
    """Of which size its map is, found out with a part of an image.

    Raises:
        ConfigError: it fails, or gives something else than its classes.
    """
    size = network.window or [max(network.stride, n // network.stride * network.stride) for n in TRIED]
    image = image[..., : size[0], : size[1]]
    try:
        outputs = network(image)
    except ConfigError:
        raise
    except Exception as error:  # whatever its library raises
        reason = " ".join(str(error).split())[:200]
        height, width = image.shape[-2:]
        raise ConfigError(f"{source.name}: fails on an image of {height}×{width}: {reason}") from error
    ratio = outputs.padded_size[0] / outputs.logits.shape[2]
    return "at full size" if ratio == 1 else f"at 1/{ratio:g}"


def _line(found: Found, network: ForeignNetwork, where: str) -> str:
    """What the teacher is, in a line."""
    parts = [f"{len(network.classes)} classes", f"{found.kind} {where}"]
    if network.window:
        parts.append(f"windows of {network.window[1]}×{network.window[0]}, blended")
    parts += ["BGR"] if found.bgr else []
    return f"teacher  {found.name}: {', '.join([*parts, f'mean/std from {found.said_by}', *found.notes])}"


def _of_smp_folder(source: Source, config: TeacherConfig, classes: Sequence[str], kind: ImageKind) -> Opened | None:
    """A run or SMP's folder of other classes; None if it has the data's, or does not say."""
    folder = source.path / "teacher" if (source.path / "teacher").is_dir() else source.path
    names = read_classes(folder) if (folder / "config.json").is_file() else None
    names = config.class_names or names
    if names is None or (names == list(classes) and not config.classes):
        return None
    if not config.classes and not config.class_names and not config.allow_untaught:
        try:
            match(names, classes, None)
        except ConfigError:
            return None  # refused as ever, with both lists
    network = load(folder, None, config.mean, config.std, kind, config.channels, config.head == "multilabel")
    if len(network.classes) != len(names):
        raise ConfigError(
            f"{folder}: predicts {len(network.classes)} classes, but teacher.class_names has {len(names)}"
        )
    network.classes = names
    return _with_classes(network, source, config, classes, [f"teacher  {folder}: {len(names)} classes"])


def _with_classes(
    network: Network, source: Source, config: TeacherConfig, classes: Sequence[str], told: list[str]
) -> Opened:
    """The network as one of the data's classes."""
    matched = match(network.classes, classes, config.classes, config.allow_untaught)
    if matched.is_identity and len(matched.ours) == len(matched.theirs):
        network.classes = list(classes)
        return Opened(network, source, told)
    return Opened(Mapped(network, matched), source, [*told, *matched.table()])
