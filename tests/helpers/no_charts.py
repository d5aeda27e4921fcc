"""Reports without the seconds that their charts take to draw, for runs whose subject they are not."""

from collections.abc import Callable
from typing import Any

import numpy as np

from distill.reporting import charts

SVG = ("class_dots", "lines", "against", "reliability")


def no_charts(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """From now on charts are empty; pages, tables and tags are there.

    Args:
        put: sets attributes: that of a `MonkeyPatch`, unless it is for the whole life of this process.
    """
    for name in SVG:
        put(charts, name, lambda *_, **__: "<svg/>")
    put(charts, "confusion", lambda *_, **__: np.zeros((4, 4, 3), np.uint8))
