"""Teachers of torchvision, by name: with its own weights, or built for a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distill.errors import ConfigError
from distill.models.foreign.network import Found
from distill.models.foreign.source import TORCHVISION, Source


class Head(nn.Module):
    """A segmentation network of torchvision at the stride of its head; torchvision's own forward pass upsamples it."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, K, h, w]`."""
        maps = self.network.backbone(x)
        logits: Tensor = self.network.classifier(maps.get("out", maps))
        return logits


def open_torchvision(source: Source) -> Found:
    """`torchvision/<name>` with its default weights, or `torchvision/<name>:<weights>`; downloads them, if need be.

    Raises:
        ConfigError: no such network or weights, or they could not be downloaded.
    """
    import torchvision

    name, _, wanted = source.name.removeprefix(TORCHVISION).partition(":")
    known(source.name, name)
    enum = torchvision.models.get_model_weights(name)
    if wanted and wanted not in enum.__members__:
        raise ConfigError(
            f"teacher.checkpoint: {source.name}: weights {wanted!r} are none of {', '.join(enum.__members__)}; for a "
            f"file of weights, set teacher.checkpoint to the file and teacher.arch to {TORCHVISION}{name}"
        )
    weights = enum[wanted] if wanted else enum.DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except Exception as error:  # of the network
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"teacher.checkpoint: {source.name}: {weights.url} could not be downloaded ({reason}); fetch it elsewhere, "
            f"set teacher.checkpoint to the file and teacher.arch to {TORCHVISION}{name}"
        ) from error
    classes = list(weights.meta["categories"])
    preset = weights.transforms()
    notes = [f"weights {weights.name}"]
    return found(name, network, len(classes), classes, list(preset.mean), list(preset.std), "its weights", notes)


def build_torchvision(arch: str, outputs: int, auxiliary: bool = False) -> Found:
    """A network without weights, and without a download of its backbone's.

    Args:
        arch: `torchvision/<name>`.
        outputs: its number of classes.
        auxiliary: with the auxiliary classifier.
    """
    import torchvision

    name = arch.removeprefix(TORCHVISION)
    known(arch, name)
    more = {"aux_loss": auxiliary} if not name.startswith("lraspp") else {}
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs, **more)
    return found(name, network, outputs, None, None, None, "teacher.mean, teacher.std", [])


def known(where: str, name: str) -> None:
    """Raises ConfigError unless torchvision has a segmentation network of that name."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in names:
        raise ConfigError(f"{where}: {name!r} is no segmentation network of torchvision: {', '.join(names)}")


def found(
    name: str,
    network: nn.Module,
    outputs: int,
    classes: list[str] | None,
    mean: list[float] | None,
    std: list[float] | None,
    said_by: str,
    notes: list[str],
) -> Found:
    """What is known of such a network."""
    # Its ResNets are dilated to a stride of 8; what is padded to more would only see more zeros.
    stride = 8 if "resnet" in name else 16
    return Found(Head(network), f"torchvision {name}", outputs, "logits", classes, mean, std, said_by, stride=stride,
                 notes=notes)  # fmt: skip


def count_outputs(state: Mapping[str, Tensor]) -> int:
    """Number of classes of the weights of such a network."""
    heads = [key for key in state if key.startswith("classifier.") and key.endswith(".weight")]
    return int(state[heads[-1]].shape[0]) if heads else 0
