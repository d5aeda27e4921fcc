"""What a launch is forked from: all is imported, nothing computed, and the collector need not look at it again."""

import gc

import board  # noqa: F401  # every figure

import distill.pipeline  # noqa: F401  # which distill.cli imports when it is needed

gc.freeze()
