"""Prints the board: what was done to a training, how often, and what came of it.

    python scripts/board.py                      # every figure at full size, about an hour on two cores
    python scripts/board.py kills hostile        # some of them
    python scripts/board.py --quick              # all of them, small

Every figure is written to the JSON file as soon as it is there, and the table holds what the file holds, so the board
can be measured figure by figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    sys.path[0:1] = [str(root), str(root / "tests"), str(root / "tests" / "faults")]

import test_bad_files
import test_corruption
import test_exactness
import test_guards
import test_hostile
import test_kills
import test_signals
from harness import Figure

SPLITS = test_exactness.SPLITS_OF_FOUR
GUARDS = [guard.name for guard in test_guards.GUARDS]
# Name → what measures it, at full size and small.
FIGURES: dict[str, tuple[Callable[[Path], Figure], Callable[[Path], Figure]]] = {
    "kills": (lambda f: test_kills.kills(100, 1, f), lambda f: test_kills.kills(5, 1, f)),
    "kills-2": (lambda f: test_kills.kills(100, 2, f), lambda f: test_kills.kills(5, 2, f)),
    "kills-workers": (lambda f: test_kills.kills(50, 1, f, workers=2), lambda f: test_kills.kills(3, 1, f, workers=2)),
    "corruption": (lambda f: test_corruption.corruptions(480, f), lambda f: test_corruption.corruptions(48, f)),
    "workers": (
        lambda f: test_exactness.workers((0, 1, 2, 3), (1, 2), f),
        lambda f: test_exactness.workers((0, 2), (1,), f),
    ),
    "processes": (
        lambda f: test_exactness.processes(20, SPLITS, ("sgd", "adamw"), f),
        lambda f: test_exactness.processes(5, SPLITS[::3], ("adamw",), f),
    ),
    "scores": (
        lambda f: test_exactness.matrices(range(1, 41), (1, 2, 3), (1, 4), f),
        lambda f: test_exactness.matrices((1, 2, 3, 40), (1, 2, 3), (1, 4), f),
    ),
    "bad-files": (lambda f: test_bad_files.bad_files(list(test_bad_files.BAD), f),) * 2,
    "hostile": (lambda f: test_hostile.hostile(list(test_hostile.HOSTILE), f),) * 2,
    "signals": (
        lambda f: test_signals.signals(list(test_signals.SCENARIOS), f),
        lambda f: test_signals.signals(list(test_signals.SCENARIOS)[:2], f),
    ),
    "waits": (lambda f: test_signals.waits(list(test_signals.WAITS), f),) * 2,
    "guards": (lambda f: test_guards.guards(GUARDS, f), lambda f: test_guards.guards(GUARDS[:3], f)),
}


def table(board: dict[str, dict[str, Any]]) -> str:
    """The board as Markdown, in the order of the figures."""
    lines = ["| figure | must reach | reached | seconds | command |", "| --- | --- | --- | ---: | --- |"]
    for name in FIGURES:
        if line := board.get(name):
            reached = line["reached"] if line["ok"] else f"**{line['reached']}**"
            lines.append(f"| {line['name']} | {line['must']} | {reached} | {line['seconds']} | `{line['command']}` |")
    return "\n".join(lines)


def main() -> int:
    """Measures and prints; returns 1 if a figure does not reach what it must."""
    parser = argparse.ArgumentParser(description="Measure and print the board of faults.")
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help=f"one of {', '.join(FIGURES)}; all if none is given"
    )
    parser.add_argument("--quick", action="store_true", help="small")
    parser.add_argument("--json", type=Path, default=Path("board.json"), help="where the figures go, and are kept")
    args = parser.parse_args()
    if unknown := set(args.figures) - set(FIGURES):
        parser.error(f"{', '.join(sorted(unknown))}: the figures are {', '.join(FIGURES)}")
    board: dict[str, dict[str, Any]] = json.loads(args.json.read_text()) if args.json.exists() else {}
    measured = args.figures or list(FIGURES)
    for name in measured:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"board-{name}-") as folder:
            figure = FIGURES[name][args.quick](Path(folder))
        command = f"python scripts/board.py {name}{' --quick' if args.quick else ''}"
        board[name] = asdict(figure) | {"seconds": round(time.monotonic() - start), "command": command}
        args.json.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {figure.reached}", *figure.failures, sep="\n  ", file=sys.stderr, flush=True)
    print(table(board))
    return int(not all(board[name]["ok"] for name in measured))


if __name__ == "__main__":
    sys.exit(main())
