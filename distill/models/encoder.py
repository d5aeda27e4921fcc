"""Encoders: weights from a file, and without the stages that a smaller depth leaves unused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import ConfigError

HEADS = ("fc.", "classifier.", "head.", "last_linear.", "conv_head.", "bn2.", "norm_head.", "head_norm.")
SUFFIX = ".safetensors"


def cut(model: Any) -> None:
    """Removes the parts of an SMP network's encoder that none of its outputs depends on, by putting identities there.

    SMP's and timm's encoders build, save and often run all their stages, whatever depth was asked for.
    """
    encoder, training = model.encoder, model.training
    if not hasattr(encoder, "_in_channels"):  # vision transformers, which have no stages of several sizes
        return
    model.eval()  # so that the dry run leaves BatchNorm statistics alone
    maps = [feature for feature in encoder(torch.zeros(1, encoder._in_channels, 64, 64)) if feature.requires_grad]
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad([m.sum() for m in maps], parameters, allow_unused=True)
    model.train(training)
    used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    _replace_unused(encoder, used)


def _replace_unused(module: nn.Module, used: set[int]) -> None:
    """Identities in place of all children that have parameters, none of them used."""
    for name, child in module.named_children():
        own = [id(p) for p in child.parameters()]
        if own and not used.intersection(own):
            setattr(module, name, nn.Identity())
        else:
            _replace_unused(child, used)


def load_encoder_weights(model: Any, path: Path) -> None:
    """Fills the encoder of an SMP network from a file with timm's (or SMP's) names for its weights.

    What belongs to a classifier, or to stages that the encoder does not have, is left; all else must be there, with
    its shape, and nothing else. Filters of the three colors are repeated for images of other channels, as SMP does.

    Raises:
        ConfigError: no such file, or one of another network; names the first differences.
    """
    found = _read(path)
    encoder = getattr(model.encoder, "model", model.encoder)
    wanted = encoder.state_dict()
    channels = getattr(model.encoder, "_in_channels", 3)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # some files lack them
    place = {name: _stored_name(name, found) for name in wanted}
    first = next(iter(wanted))  # what looks at the image
    if channels != 3 and (stored := place[first]) and found[stored].shape[1:2] == (3,):
        found = {**found, stored: _for_channels(found[stored], channels)}
    missing = [name for name in wanted if place[name] is None and name not in counters]
    shapes = [
        f"{name} has the shape {list(found[stored].shape)}, here {list(wanted[name].shape)}"
        for name, stored in place.items()
        if stored is not None and found[stored].shape != wanted[name].shape
    ]
    extra = sorted(found.keys() - set(place.values()))
    removed = tuple(f"{name}." for name, child in encoder.named_modules() if isinstance(child, nn.Identity))
    extra = [name for name in extra if not name.startswith(HEADS + removed)]
    differences = [*(f"{name} is missing" for name in missing), *shapes, *(f"{name} is not known" for name in extra)]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ConfigError(
            f"encoder_weights: {path} holds the weights of another encoder ({', '.join(differences[:3])}{more}); "
            f"set the encoder_name that it was made for, or another file"
        )
    if any(p.is_meta for p in encoder.parameters()):  # only to be checked
        return
    encoder.load_state_dict({name: found[stored] for name, stored in place.items() if stored}, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"encoder_weights: {path} is not there; give a file of timm's weights") from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"encoder_weights: {path} is not a safetensors file ({error})") from None


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """Filters `[O, channels, …]` of those of R, G and B: their sum for gray, else repeated at the same strength."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(channels)]] * (3 / channels)


def _stored_name(name: str, found: Iterable[str]) -> str | None:
    """The name in the file: timm turns some dots into underscores where it returns feature maps."""
    first, _, rest = name.partition(".")
    return next((n for n in (name, f"{first.replace('_', '.')}.{rest}") if n in found), None)
