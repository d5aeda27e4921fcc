"""What a training step costs against the size of its crops, the number of classes and of processes, as a picture.

    distill benchmark costs --output costs.json --plot costs.png

Each point is `distill benchmark step` in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distill.cli.steps import ONCE, PLAIN
from distill.errors import ConfigError

SHOWN = {  # contender → color and marker
    PLAIN: ("#999999", "x"),
    "asked at every step": ("#0072B2", "s"),
    ONCE: ("#009E73", "o"),
    "labels alone": ("#E69F00", "^"),
}
ROOM = 1.875  # scenes are larger than the crops, as CamVid's images are
DEFAULTS = {"size": ["96x128", "192x256", "288x384", "384x512"], "classes": [2, 10, 19, 50, 150], "processes": [1, 2]}


def costs(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Medians of all contenders at every point, in milliseconds, and the picture."""
    found: dict[str, Any] = {}
    for over in args.over:
        found[over] = []
        for value in getattr(args, over):
            median, shape = at(over, value, args.repeat, flags)
            found[over].append({over: value, "shape": shape, "milliseconds": median})
            told = ", ".join(f"{name} {ms:.1f} ms" for name, ms in median.items() if name in SHOWN)
            print(f"  {over} {value}: {told}", flush=True)
    whole = {"torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu", **found}
    if args.plot:
        plot(found, args.plot, f"torch {torch.__version__}, {whole['device']}, {os.cpu_count()} cores")
    return whole


def at(over: str, value: Any, repeat: int, flags: Sequence[str]) -> tuple[dict[str, float], list[int]]:
    """Milliseconds of a step of each contender at a point, and the shape of its logits `[N, C, H, W]`."""
    own = list(flags)
    if over == "size":
        height, width = map(int, value.split("x"))
        own += [f"--data.crop_size=[{height},{width}]"]
        own += [f"--data.synthetic_size=[{round(ROOM * height)},{round(ROOM * width)}]"]
    elif over == "classes":
        own += [f"--classes={value}"]
    with TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = ["benchmark", "step", "--repeat", str(repeat), "--output", str(output), *own]
        if over == "processes":  # they share a folder
            command += [f"--output_dir={folder}/run"]
        in_processes(command, value if over == "processes" else 1)
        found = json.loads(output.read_text())
    median = {name: 1e3 * statistics.median(seconds) for name, seconds in found["seconds"].items()}
    if over == "processes":  # plain PyTorch and the forward pass alone know of no other process
        median = {name: ms for name, ms in median.items() if name in SHOWN and name != PLAIN}
    return median, found["shape"]


def in_processes(command: Sequence[str], processes: int) -> None:
    """Runs `distill` with some arguments in so many processes.

    Raises:
        ConfigError: it failed; what was wrong it has said itself.
    """
    if processes > 1:
        code = f"from distill.training.launcher import launch; raise SystemExit(launch({list(command)!r}, {processes}))"
        start = [sys.executable, "-c", code]
    else:
        start = [sys.executable, "-m", "distill", *command]
    root = str(Path(__file__).resolve().parents[2])  # where this may not be installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    if subprocess.run(start, env=environment, stdout=subprocess.DEVNULL).returncode:
        raise ConfigError(f"benchmark costs: failed at {' '.join(command[2:])}; leave that point out")


def size(text: str) -> str:
    """A size of crops, if it is one that networks take in plain PyTorch."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) % 32 == 0 < int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 192x256, in multiples of 32")
    return text


def plot(found: dict[str, Any], path: Path, about: str) -> None:
    """A panel for each thing that was varied."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(found), 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (over, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        images = {name: [1e-3 * p["milliseconds"].get(name, float("nan")) for p in points] for name in SHOWN}
        for name, (color, marker) in SHOWN.items():
            if over == "processes":
                count = [p["processes"] for p in points]
                y = [p["shape"][0] * n / s for p, n, s in zip(points, count, images[name], strict=True)]
            else:
                count = [p["shape"][2] * p["shape"][3] / 1e3 if over == "size" else p["classes"] for p in points]
                y = [1e3 * s for s in images[name]]
            if not all(value != value for value in y):
                axes.plot(count, y, color=color, marker=marker, markersize=4, linewidth=1.2, label=name)
        labels = {"size": "thousand pixels of a crop", "classes": "classes", "processes": "processes"}
        axes.set(xlabel=labels[over], ylabel="images a second" if over == "processes" else "ms a step", ylim=(0, None))
        if over == "processes":
            axes.set_xticks([p["processes"] for p in points])
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    batch = next(iter(found.values()))[0]["shape"][0]
    figure.suptitle(f"A training step, {batch} images a process; {about}", fontsize=8)
    figure.savefig(path, dpi=90)


def add_command(commands: Any) -> None:
    """The sub-command; what it does not know are settings of the run."""
    text = "what a step costs against crop size, classes and processes: a table and a picture"
    command = commands.add_parser("costs", help=text, epilog="Settings of the run may follow: --config FILE, …")
    command.add_argument("--over", nargs="+", choices=DEFAULTS, default=list(DEFAULTS), help="what is varied")
    command.add_argument("--size", type=size, nargs="+", default=DEFAULTS["size"], help="of crops, such as 192x256")
    command.add_argument("--classes", type=int, nargs="+", default=DEFAULTS["classes"])
    command.add_argument("--processes", type=int, nargs="+", default=DEFAULTS["processes"])
    command.add_argument("--repeat", type=int, default=10, help="steps at each point")
    command.add_argument("--output", type=Path, help="JSON file for the numbers; printed only if not given")
    command.add_argument("--plot", type=Path, help="PNG of the numbers")
    measure: Callable[[argparse.Namespace, list[str]], dict[str, Any]] = costs
    command.set_defaults(measure=measure)
