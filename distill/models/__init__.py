"""Networks by name: the only package that knows segmentation_models_pytorch and timm."""

from distill.models.network import (
    FIXED_SIZE,
    Network,
    build,
    count_flops,
    count_parameters,
    freeze_unused,
    load,
    save,
    streamlined,
)

__all__ = [
    "FIXED_SIZE",
    "Network",
    "build",
    "count_flops",
    "count_parameters",
    "freeze_unused",
    "load",
    "save",
    "streamlined",
]
