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
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Figure  # first: it lets the others be found  # isort: skip

import alignment
import bad_files
import caches
import corruption
import exactness
import guards
import hostile
import kills
import machines
import mixing
import signals
import waits

SPLITS = exactness.SPLITS_OF_FOUR
GUARDS = [guard.name for guard in guards.GUARDS]
Measure = Callable[[Path], Figure]
# Name → what the table calls it, and what measures it, at full size and small.
FIGURES: dict[str, tuple[str, Measure, Measure]] = {
    "kills": (
        "kill -9 at random moments, during saves too: same bits in the end",
        lambda f: kills.kills(100, 1, f),
        lambda f: kills.kills(3, 1, f),
    ),
    "kills-2": (
        "the same with 2 processes",
        lambda f: kills.kills(100, 2, f),
        lambda f: kills.kills(3, 2, f),
    ),
    "kills-workers": (
        "the same with 2 workers",
        lambda f: kills.kills(50, 1, f, workers=2),
        lambda f: kills.kills(2, 1, f, workers=2),
    ),
    "kills-job": (
        "the same over a whole job: baseline, images without labels, ONNX, tuned for 8 bits",
        lambda f: kills.kills(100, 1, f, job=True),
        lambda f: kills.kills(3, 1, f, job=True),
    ),
    "kills-job-2": (
        "the same with 2 processes",
        lambda f: kills.kills(50, 2, f, job=True),
        lambda f: kills.kills(3, 2, f, job=True),
    ),
    "machines": (
        "two machines without a common disk: bits of two processes on one",
        lambda f: machines.machines(list(machines.WAYS), f),
        lambda f: machines.machines(list(machines.WAYS)[1::2], f),
    ),
    "corruption": (
        "checkpoints damaged and taken all the same",
        lambda f: corruption.corruptions(480, f),
        lambda f: corruption.corruptions(48, f),
    ),
    "mixing": (
        "data or teacher changed between stop and resume, and mixed",
        lambda f: mixing.mixings(list(mixing.WAYS), f),
        lambda f: mixing.mixings(list(mixing.WAYS)[::6], f),
    ),
    "caches": (
        "a teacher's cache another's, damaged, full, read-only, shared, killed at: one clear line, or repaired",
        lambda f: caches.caches(caches.NAMES, f),
        lambda f: caches.caches(caches.NAMES[1::5], f),
    ),
    "cache-files": (
        "files of a teacher's cache damaged and taken all the same",
        lambda f: caches.damages(480, f),
        lambda f: caches.damages(48, f),
    ),
    "workers": (
        "numbers of workers that change the bits",
        lambda f: exactness.workers((0, 1, 2, 3), (1, 2), f),
        lambda f: exactness.workers((0, 2), (1,), f),
    ),
    "processes": (
        "1, 2, 4 processes × accumulation, float64: difference of the weights",
        lambda f: exactness.processes(20, SPLITS, ("sgd", "adamw"), f),
        lambda f: exactness.processes(5, SPLITS[::3], ("adamw",), f),
    ),
    "scores": (
        "val sizes 1…40 × 1, 2, 3 processes × batch 1, 4: confusion matrix exact",
        lambda f: exactness.matrices(range(1, 41), (1, 2, 3), (1, 4), f),
        lambda f: exactness.matrices((1, 2, 3, 40), (1, 2, 3), (1, 4), f),
    ),
    "alignment": (
        "masks beside their images after any geometric transform, on average",
        lambda f: alignment.alignment(60, f),
        lambda f: alignment.alignment(6, f),
    ),
    "bad-files": (
        "bad files named with a fix, none trained on",
        lambda f: bad_files.bad_files(list(bad_files.BAD), f),
        lambda f: bad_files.bad_files(list(bad_files.BAD)[::6], f),
    ),
    "hostile": (
        "hostile files that ran code, asked the network, hung or ate memory",
        lambda f: hostile.hostile(list(hostile.HOSTILE), f),
        lambda f: hostile.hostile(list(hostile.HOSTILE)[::6], f),
    ),
    "signals": (
        "SIGTERM and Ctrl-C to scripts and launchers: no step lost, same bits",
        lambda f: signals.signals(list(signals.SCENARIOS), f),
        lambda f: signals.signals(list(signals.SCENARIOS)[:2], f),
    ),
    "waits": (
        "stuck or killed processes and workers named in time",
        lambda f: waits.waits(list(waits.WAITS), f),
        lambda f: waits.waits(list(waits.WAITS)[1::2], f),
    ),
    "guards": (
        "guards taken out and not missed by any test",
        lambda f: guards.guards(GUARDS, f),
        lambda f: guards.guards(GUARDS[:3], f),
    ),
}


def measure(name: str, quick: bool) -> dict[str, Any]:
    """A line of the board; one that crashes is a line, too."""
    start = time.monotonic()
    _, full, small = FIGURES[name]
    try:
        with tempfile.TemporaryDirectory(prefix=f"board-{name}-", ignore_cleanup_errors=True) as folder:
            figure = (small if quick else full)(Path(folder))
    except Exception as error:
        traceback.print_exc()
        figure = Figure(name, "to run through", "crashed", False, [f"{type(error).__name__}: {error}"])
    command = f"python scripts/board.py {name}{' --quick' * quick}"
    return asdict(figure) | {"seconds": round(time.monotonic() - start), "command": command}


def table(board: dict[str, dict[str, Any]]) -> str:
    """The board as Markdown, in the order of the figures."""
    lines = ["| `python scripts/board.py …` | what | must | reached | seconds |", "| --- | --- | --- | --- | ---: |"]
    for name, (title, _, _) in FIGURES.items():
        if line := board.get(name):
            reached = line["reached"] if line["ok"] else f"**{line['reached']}**"
            command = line["command"].removeprefix("python scripts/board.py ")
            lines.append(f"| `{command}` | {title} | {line['must']} | {reached} | {line['seconds']} |")
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
        board[name] = measure(name, args.quick)
        args.json.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {board[name]['reached']}", *board[name]["failures"], sep="\n  ", file=sys.stderr, flush=True)
    print(table(board))
    return int(not all(board[name]["ok"] for name in measured))
