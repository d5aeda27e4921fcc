"""What the JSON files of a folder written by SMP's `save_pretrained` say: the network, its classes and its input.

Such folders come from others, so all is looked at before anything is built from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import ConfigError

INPUT = "input.json"  # ours, of networks that take other images than RGB of 8 bits
HEAD = "head.json"  # ours, of networks whose classes do not exclude each other
FILES = ("config.json", "model.safetensors", "id2label.json", "albumentations_config_eval.json", INPUT, HEAD)
MAX_BYTES = 1_000_000
MAX_NUMBER = 100_000  # above the channels, blocks and sizes of any known network
FETCHING = ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")  # timm's
CONTAINERS = ("Compose", "Sequential")
# They change the size of an image or its memory layout, not its values; a network here takes images of any size.
SAME_VALUES = (
    *("Resize", "LongestMaxSize", "SmallestMaxSize", "PadIfNeeded", "Pad", "CenterCrop", "Crop"),
    *("ToTensorV2", "ToTensor3D", "NoOp"),
)


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments of the network, from `config.json`, with the defaults of `classes` and `in_channels`.

    Raises:
        ConfigError: not such a folder, or a network that does not take RGB images or would be fetched or huge.
    """
    expected = "expected a folder written by SMP's save_pretrained"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'is a file' if folder.is_file() else 'is not there'}; {expected}")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            runs = " or a run, and this run has none" if (folder / "config.yaml").is_file() else ""
            raise ConfigError(f"{folder}: holds no {name}; {expected}{runs}")
    path = folder / "config.json"
    config = {"classes": 1, "in_channels": 3} | read_object(path)
    if "own_module" in config:
        raise ConfigError(
            f"{path}: holds the weights of {config['own_module']!r:.60}, a module handed over in Python; "
            f"read it with distill.load(folder, module=…), or take the ONNX file"
        )
    for name, kind in (("_model_class", str), ("encoder_name", str), ("classes", int), ("in_channels", int)):
        if type(config.get(name)) is not kind:
            raise ConfigError(f"{path}: {name}: {config.get(name)!r}; expected what SMP's save_pretrained writes")
    if ":" in config["encoder_name"]:
        raise ConfigError(f"{path}: encoder_name: {config['encoder_name']!r} would be fetched; set a name without ':'")
    for name in FETCHING:
        if name in config:
            raise ConfigError(f"{path}: {name}: would read another file; remove it, the weights are in the folder")
    for name, value in config.items():
        if any(abs(number) > MAX_NUMBER for number in _numbers(value)):
            raise ConfigError(
                f"{path}: {name}: asks for more than {MAX_NUMBER:,} of something; set what the weights have"
            )
    if config["in_channels"] < 1:
        raise ConfigError(f"{path}: in_channels: {config['in_channels']}; expected at least 1")
    return config


def read_classes(folder: Path) -> list[str] | None:
    """Class names by id, from `id2label.json`; None if there is none.

    Raises:
        ConfigError: a file that does not list them.
    """
    path = folder / "id2label.json"
    if not path.is_file():
        return None
    names = read_object(path)
    ids = [str(i) for i in range(len(names))]
    if set(names) != set(ids) or not all(isinstance(name, str) for name in names.values()):
        found = f"the keys {', '.join(map(repr, names))}" if set(names) != set(ids) else "names that are no text"
        raise ConfigError(f'{path}: has {found:.200}; expected {{"0": name, "1": name, …}}')
    return [names[i] for i in ids]


def read_multilabel(folder: Path, wanted: bool | None) -> bool:
    """Whether a network's classes do not exclude each other, from `head.json`.

    A folder of SMP's own, which names no classes either, says nothing of it: it is taken as it is wanted.

    Raises:
        ConfigError: a file that does not say it, or another kind of network than is wanted.
    """
    path = folder / HEAD
    if path.is_file() and (found := read_object(path)) != {"head": "multilabel"}:
        raise ConfigError(f'{path}: holds {json.dumps(found):.100}; expected {{"head": "multilabel"}}, or no such file')
    says = path.is_file() or (bool(wanted) and not (folder / "id2label.json").is_file())
    if wanted is not None and says != wanted:
        kinds = {True: "any number of classes at a pixel", False: "one class a pixel"}
        fix = "take another network"
        if wanted:
            fix += f', or if that is wrong write {{"head": "multilabel"}} to {path}'
        raise ConfigError(f"{folder}: gives {kinds[says]}, but the data has {kinds[wanted]}; {fix}")
    return says


def read_normalization(folder: Path, channels: int = 3) -> tuple[list[float], list[float]] | None:
    """Mean and std, in units of 255, from the pipeline in `albumentations_config_eval.json`; None if it says neither.

    Raises:
        ConfigError: a pipeline that changes the values of an image in another way; names the transform.
    """
    path = folder / "albumentations_config_eval.json"
    if not path.is_file():
        return None
    pipeline = read_object(path).get("transform")
    mean, std, white = (
        [0.0] * channels,
        [1.0] * channels,
        255.0,
    )  # white: what stands for 1 at this point of the pipeline
    try:
        for name, transform in _flat(pipeline):
            if name == "ToFloat" and white == 1:  # it leaves floats as they are
                continue
            offset, divisor, maximum = _step(name, transform, channels)
            share = maximum / white
            mean = [m + s * o * share for m, s, o in zip(mean, std, offset, strict=True)]
            std = [s * d * share for s, d in zip(std, divisor, strict=True)]
            white = 1.0
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: {str(error)[:200]}; expected Normalize with constant numbers or ToFloat, and else only resizing, "
            f"cropping and padding; correct it, or remove the file to use teacher.mean and teacher.std"
        ) from None
    return None if white == 255 else (mean, std)


def _flat(transform: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the transforms that change values, in the order in which they are applied."""
    if not isinstance(transform, dict) or not isinstance(name := transform.get("__class_fullname__"), str):
        raise ValueError(f"holds {json.dumps(transform):.60} where a transform should be")
    package, _, short = name.rpartition(".")
    if package and package.split(".")[0] != "albumentations":
        raise ValueError(f"{name} is not one of albumentations")
    if short in SAME_VALUES:
        return
    if transform.get("p", 1) != 1:
        raise ValueError(f"{short} has p {transform['p']}, so it is not applied to every image")
    if short not in CONTAINERS:
        yield short, transform
        return
    if not isinstance(parts := transform.get("transforms"), list):
        raise ValueError(f"{short} has no list of transforms")
    for part in parts:
        yield from _flat(part)


def _step(name: str, transform: dict[str, Any], channels: int) -> tuple[list[float], list[float], float]:
    """What is taken off and what is divided by, both in units of the third."""
    if name == "ToFloat":
        maximum = transform.get("max_value")
        maximum = 255.0 if maximum is None else maximum
        return [0.0] * channels, [1.0] * channels, _each(name, "max_value", maximum, channels, above=0)[0]
    if name != "Normalize":
        raise ValueError(f"{name} changes the values of an image, and not as this network's input is normalized here")
    if (kind := transform.get("normalization", "standard")) != "standard":
        raise ValueError(f"Normalize has normalization {kind!r}, which takes its numbers from each image")
    maximum = _each(name, "max_pixel_value", transform.get("max_pixel_value", 255.0), channels, above=0)[0]
    mean, std = (_each(name, key, transform.get(key), channels, above) for key, above in (("mean", None), ("std", 0)))
    return mean, std, maximum


def _each(name: str, argument: str, value: Any, channels: int, above: float | None = None) -> list[float]:
    """One number for all channels, or one for each."""
    above = -MAX_NUMBER if above is None else above
    numbers = value if isinstance(value, list) and len(value) == channels else [value] * channels
    for number in numbers:
        if type(number) not in (int, float) or not above < number < MAX_NUMBER:
            raise ValueError(f"{name} has {argument} {json.dumps(value):.60}")
    return [float(number) for number in numbers]


def _numbers(value: Any) -> Iterator[float]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif type(part) in (int, float):
            yield part


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes, more than {MAX_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {json.dumps(value):.60}")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected a JSON object in UTF-8 ({error})") from None
    return value
