"""Networks by name, and teachers of any kind: the only package that knows SMP, timm, torchvision and transformers."""

from distill.models.foreign import ForeignNetwork, Mapped
from distill.models.network import (
    FIXED_SIZE,
    RGB,
    ImageKind,
    Network,
    count_flops,
    count_parameters,
    freeze_unused,
    save,
)
from distill.models.own import OwnNetwork, build, fingerprint, load
from distill.models.streamline import streamlined

__all__ = [
    "FIXED_SIZE",
    "RGB",
    "ForeignNetwork",
    "ImageKind",
    "Mapped",
    "Network",
    "OwnNetwork",
    "build",
    "count_flops",
    "count_parameters",
    "fingerprint",
    "freeze_unused",
    "load",
    "save",
    "streamlined",
]
