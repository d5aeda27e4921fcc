"""Weights alone, in a file: of an SMP network that the settings describe, or of one of torchvision."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.batch import ImageKind
from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models import network as named
from distill.models.foreign.network import Found
from distill.models.foreign.source import TORCHVISION, Source
from distill.models.foreign.torchvision_names import build_torchvision, count_outputs
from distill.models.network import Network

INSIDE = ("state_dict", "model_state_dict", "model", "ema_state_dict")  # of what frameworks save around the weights
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.")
SHOWN = 3


def read_weights(source: Source) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that frameworks put before all of them.

    Raises:
        ConfigError: a file that holds anything else, or a pickle that wants to run code.
    """
    path = source.path
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of what torch says is how to read it nevertheless.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ConfigError(
            f"teacher.checkpoint: {path} holds more than weights{what}, and reading it would run code; save the "
            f"state_dict alone, best as safetensors, or give the module by teacher.python mine.py:build"
        ) from None
    except Exception as error:  # torch's, safetensors', the system's
        if "TorchScript" in str(error):
            raise ConfigError(
                f"teacher.checkpoint: {path} is TorchScript, which is code; give it by teacher.python mine.py:build, a "
                f"function that returns torch.jit.load({str(path)!r})"
            ) from None
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"teacher.checkpoint: {path} cannot be read as weights ({reason})") from error
    for key in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise ConfigError(f"teacher.checkpoint: {path} holds no weights by name; expected a state_dict")
    return state


def fit(module: nn.Module, state: dict[str, Tensor], source: Source, arch: str) -> None:
    """Loads weights, all of them and no others, once the prefixes are off that they do not share with the module.

    Raises:
        ConfigError: they are of another network; names the first differences.
    """
    wanted = module.state_dict()
    while not state.keys() & wanted.keys():
        # Lightning saves losses and metrics beside the network, so not every name needs to have the prefix.
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    differences = [f"{key} is missing" for key in wanted if key not in state]
    differences += [f"{key} is too many" for key in state if key not in wanted]
    differences += [
        f"{key} is {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise ConfigError(
            f"teacher.checkpoint: {source.path} does not fit {arch}: {'; '.join(differences[:SHOWN])}{more}; set "
            f"teacher.arch, teacher.encoder_name and teacher.options to what was trained"
        )
    module.load_state_dict(state)


def open_smp_weights(source: Source, config: TeacherConfig, classes: list[str], image: ImageKind) -> Network:
    """The SMP network of the settings with these weights; it has feature maps.

    Args:
        source: the file.
        config: arch, encoder and options.
        classes: the names of its classes.
        image: the images.
    """
    state = read_weights(source)
    described = named.build(
        TeacherConfig(
            arch=config.arch,
            encoder_name=config.encoder_name,
            options=config.options,
            head=config.head,
            channels=config.channels,
            mean=config.mean,
            std=config.std,
        ),
        classes,
        image,
    )
    fit(described.model, state, source, f"{config.arch} on {config.encoder_name} with {len(classes)} classes")
    return described.eval()


def open_torchvision_weights(source: Source, arch: str) -> Found:
    """The network of torchvision with these weights."""
    state = read_weights(source)
    while (outputs := count_outputs(state)) == 0:
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None)
        if prefix is None:
            raise ConfigError(f"teacher.checkpoint: {source.path} holds no classifier.*, so it is not of {arch}")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    auxiliary = any(key.startswith("aux_classifier.") for key in state)
    opened = build_torchvision(arch, outputs, auxiliary)
    fit(opened.model.network, state, source, arch)  # type: ignore[arg-type]
    return opened


def is_torchvision(arch: str) -> bool:
    """Whether an architecture is one of torchvision's."""
    return arch.startswith(TORCHVISION)
