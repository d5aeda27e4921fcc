"""What images a network takes: their channels and type, which of these it looks at, and how they are normalized."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from distill.batch import ImageKind
from distill.errors import ConfigError
from distill.models.smp_files import INPUT, MAX_NUMBER, read_normalization, read_object

Normalization = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Input:
    """What a network takes.

    Attributes:
        channels: of the images.
        dtype: of the images: `uint8`, `uint16` or `float32`.
        bands: which of their channels, counted from 0; None for all.
        mean: of each; of images of 8 bits in 0 to 1, else in the images' own units.
        std: standard deviation likewise.
    """

    channels: int
    dtype: str
    bands: list[int] | None
    mean: list[float]
    std: list[float]


def read_input(folder: Path) -> Input | None:
    """What the network of a folder takes, from `input.json`; None if there is none: RGB of 8 bits, or SMP's own folder.

    Raises:
        ConfigError: a file that does not say it.
    """
    path = folder / INPUT
    if not path.is_file():
        return None
    values = read_object(path)
    bands = values.get("bands")
    taken = values.get("channels") if bands is None else len(bands) if isinstance(bands, list) else None
    good = values.keys() == {f.name for f in fields(Input)} and values["dtype"] in ("uint8", "uint16", "float32")
    good = good and type(values["channels"]) is int and 0 < values["channels"] <= MAX_NUMBER
    good = good and all(type(band) is int and 0 <= band < values["channels"] for band in bands or [])
    for name in ("mean", "std"):
        numbers = values.get(name)
        good = good and isinstance(numbers, list) and len(numbers) == taken
        good = good and all(type(n) in (int, float) and math.isfinite(n) for n in numbers or [])
    if not good or not all(n > 0 for n in values["std"]):
        raise ConfigError(
            f"{path}: holds {json.dumps(values):.200}; expected what this project writes; restore the file"
        )
    return Input(**values)


def check_bands(bands: Sequence[int] | None, image: ImageKind) -> int:
    """How many channels a network takes of images.

    Raises:
        ConfigError: one that they do not have.
    """
    for band in bands or ():
        if not 0 <= band < image.channels:
            raise ConfigError(f"channels: {band} is not one of the images' channels, 0 to {image.channels - 1}")
    return len(bands) if bands else image.channels


def input_of(
    folder: Path, channels: int, image: ImageKind | None, bands: Sequence[int] | None, usual: Normalization
) -> tuple[ImageKind, Sequence[int] | None, Normalization]:
    """The images of a network in a folder, which of their channels it takes, and how they are normalized.

    Args:
        folder: the folder.
        channels: how many the network takes.
        image: the images that it must take.
        bands: which of their channels it takes, if the folder does not say.
        usual: mean and std, if the folder does not say.

    Raises:
        ConfigError: other images than these.
    """
    known = read_input(folder)
    if known:
        bands, usual, made_for = known.bands, (known.mean, known.std), ImageKind(known.channels, known.dtype)
        if image and image != made_for:
            raise ConfigError(f"{folder / INPUT}: it takes images of {made_for}, but the data has {image}")
        image = made_for
    image = image or ImageKind(max(bands) + 1 if bands else channels)
    if (found := check_bands(bands, image)) != channels:
        fix = f"name the {channels} that it takes, as in channels {list(range(channels))}"
        if found < channels:
            fix = "take another network" if bands is None else fix
        raise ConfigError(f"{folder}: takes images of {channels} channel{'s' * (channels > 1)}, not of {found}; {fix}")
    if not known and (normalization := read_normalization(folder, channels)):
        usual = tuple([n * 255 / image.white for n in numbers] for numbers in normalization)  # type: ignore[assignment]
    return image, bands, usual
