"""`distill results`: the table of finished runs and comparisons, from their files alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import ConfigError, cell, say
from distill.reporting.results import NetworkResults, Results
from distill.sweep.comparison import JSON
from distill.sweep.records import VALIDATION, read_json
from distill.sweep.tables import main_table

HEAD = """\
| mIoU | teacher | student, labels alone | student, distilled | gap closed | parameters | GFLOPs |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main(argv: Sequence[str] | None = None, prog: str = "distill results") -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Show what finished runs and comparisons reached, as Markdown.", allow_abbrev=False
    )
    help_text = "folder of a run or of a comparison, or its results.json or comparison.json under any name"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=help_text)
    try:
        say(tables(parser.parse_args(argv).paths))
    except (ConfigError, OSError) as error:
        say(f"distill: error: {error}", sys.stderr)
        return 1
    return 0


def tables(paths: Sequence[Path]) -> str:
    """One table of all runs, and one for each set of images of a comparison, in the order they are named.

    Raises:
        ConfigError: a file that is neither, named.
    """
    rows, parts = [], []
    for path in paths:
        file = next((path / name for name in ("results.json", JSON) if (path / name).is_file()), path)
        found, name = read_json(file), path.name if file != path else path.stem
        try:
            if "sets" in found:
                parts += [comparison(name, found, part) for part in found["sets"]]
            else:
                rows.append(row(name, Results.from_json(found)))
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(f"{file}: holds no results of a run or a comparison; give the folder of one") from None
    return "\n\n".join(([HEAD + "\n" + "\n".join(rows)] if rows else []) + parts)


def row(name: str, results: Results) -> str:
    """A run as a row of the table of runs."""
    student, baseline = results.student, results.baseline
    gap = "" if student.gap_closed is None else f"{round(100 * student.gap_closed)} %"

    def score(network: NetworkResults | None) -> str:
        return "" if network is None else f"{100 * network.mean_iou:.1f}"

    cells = [
        cell(name),
        score(results.teacher),
        score(baseline),
        f"**{score(student)}**",
        gap,
        f"{results.teacher.params / 1e6:.1f} M → {student.params / 1e6:.2f} M",
        f"{results.teacher.flops / 1e9:.1f} → {student.flops / 1e9:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def comparison(name: str, found: Mapping[str, Any], part: str) -> str:
    """The trials of a comparison on a set of images."""
    where = "validation images" if part == VALIDATION else part
    return f"{cell(name)}, {cell(where)}:\n\n{main_table(found, part)}"
