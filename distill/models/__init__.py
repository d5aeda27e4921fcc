"""Networks by name: the only package that knows segmentation_models_pytorch."""

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
    "ImageKind",
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
