"""What `teacher.checkpoint` and `teacher.python` name: told apart before anything is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.smp_files import read_object

SourceKind = Literal["smp", "transformers", "torchvision", "weights", "onnx", "exported", "python"]
TORCHVISION = "torchvision/"
SUFFIXES: dict[str, SourceKind] = {".onnx": "onnx", ".pt2": "exported"}
RECORD = "foreign.json"  # of a foreign teacher, in a run's folder of its teacher, in place of the weights
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "merges.txt"]  # neither code nor other pickles
EXPECTED = (
    "expected a run, a folder of SMP's or transformers' save_pretrained, torchvision/<name>, .onnx, .pt2, or weights "
    f"alone ({', '.join(WEIGHTS)})"
)


@dataclass(frozen=True)
class Source:
    """A teacher that is named.

    Attributes:
        kind: what it is; `smp` is what this project writes itself.
        name: as it was named.
        path: its folder or file; the Python file of `python`.
        files: the files that it is known again by.
    """

    kind: SourceKind
    name: str
    path: Path = Path()
    files: list[Path] = field(default_factory=list)


def find_source(config: TeacherConfig) -> Source:
    """What the settings name.

    Raises:
        ConfigError: nothing that is known here; or the id of a folder on the Hub that cannot be fetched.
    """
    if config.python:
        return _python(config.python)
    name = config.checkpoint or ""
    path = Path(name)
    if path.is_dir():
        return _folder(name, path)
    if name.startswith(TORCHVISION):
        return Source("torchvision", name)
    if path.is_file():
        if kind := SUFFIXES.get(path.suffix.lower()):
            return Source(kind, name, path, [path])
        if path.suffix.lower() in WEIGHTS:
            return Source("weights", name, path, [path])
        raise ConfigError(f"teacher.checkpoint: {name} ends with {path.suffix!r}; {EXPECTED}")
    known = (*SUFFIXES, *WEIGHTS, ".py")
    if HUB_ID.fullmatch(name) and path.suffix not in known and not path.parent.is_dir():
        return _folder(name, _fetched(name))
    if path.suffix in known:
        raise ConfigError(f"teacher.checkpoint: {name} is not there")
    return Source("smp", name, path)  # of several machines only the first needs to have it


def refuse_missing(name: str) -> None:
    """Raises ConfigError if the folder of a teacher is not there; asked where its files are read."""
    if not Path(name).is_dir():
        raise ConfigError(f"teacher.checkpoint: {name} is not there; {EXPECTED}")


def _python(name: str) -> Source:
    """A Python file, and a function in it."""
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ConfigError(f"teacher.python: {name!r}; expected path.py:function")
    if not Path(file).is_file():
        raise ConfigError(f"teacher.python: {file} is not there, or no file")
    return Source("python", name, Path(file), [Path(file)])


def _folder(name: str, path: Path) -> Source:
    """A run, SMP's, or transformers'."""
    inner = path / "teacher"
    inner = inner if inner.is_dir() else path
    if (inner / RECORD).is_file():
        raise ConfigError(
            f"teacher.checkpoint: {name}: its teacher came from elsewhere, and only a record of it is kept; name that "
            f"teacher itself"
        )
    settings = read_object(inner / "config.json") if (inner / "config.json").is_file() else {}
    if "_model_class" in settings or "own_module" in settings or not {"model_type", "architectures"} & settings.keys():
        return Source("smp", str(inner) if path != Path(name) else name, inner)
    weights = sorted(inner.glob("*.safetensors")) or sorted(inner.glob("pytorch_model*.bin"))
    about = (inner / each for each in ("config.json", "preprocessor_config.json", "processor_config.json"))
    return Source("transformers", name, inner, [file for file in about if file.is_file()] + weights)


def _fetched(name: str) -> Path:
    """The folder of a Hub id on this machine, downloaded if it is not there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the library has many kinds, and those of the network
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(
            f"teacher.checkpoint: {name} is no file or folder here, and as an id on the Hub it was not fetched "
            f"({reason}); with no network, fetch it elsewhere and give its folder"
        ) from error
