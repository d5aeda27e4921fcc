"""What a training step takes of memory, with and without a teacher: each in a process of its own.

A process keeps its highest mark, and what an allocator got it may hold: only fresh processes can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distill.cli.steps import ONCE, PLAIN, Step, plain_step, run_of, targets_of, trainer_step
from distill.errors import ConfigError
from distill.training.context import Run
from distill.training.teacher import CachedTeacher, Teacher

ALONE, ONLINE = "labels alone", "asked at every step"


def _step(run: Run, name: str) -> Step:
    """The step of a contender, with the networks that it needs and no others."""
    torch.manual_seed(run.config.seed)  # the same teacher in every process
    device, targets, teacher = run.accelerator.device, None, None
    if name in (ONLINE, ONCE):
        network, targets = targets_of(run)
        teacher = CachedTeacher(network, targets) if name == ONCE else Teacher(network, run.precision)
    batch = next(run.train_batches(0, unlabeled=False, targets=targets if name == ONCE else None)).to(device)
    if name == PLAIN:
        return plain_step(run.config, run.splits.classes, batch)
    return trainer_step(run, batch, teacher)


CONTENDERS = (ALONE, ONCE, ONLINE, PLAIN)


def status(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status: `VmRSS` now, `VmHWM` at most.

    Raises:
        ConfigError: the system does not say.
    """
    path = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.is_file() else None
    if not found:
        raise ConfigError(f"{path}: names no {name}; without a GPU, measure memory on Linux")
    return 1024 * int(found[1])


def measured(name: str, repeat: int, flags: list[str]) -> dict[str, Any]:
    """Bytes that a contender took at most in this process beyond those that it began with; all is imported by then."""
    resident = status("VmRSS") if not torch.cuda.is_available() else 0
    with run_of(flags) as run:
        device, step = run.accelerator.device, _step(run, name)
        for _ in range(repeat):
            step()
        most = torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM") - resident
        crop = run.config.data.crop_size
        shape = [run.config.per_device_train_batch_size, len(run.splits.classes), *crop]
    return {"bytes": most, "start": resident, "shape": shape, "device": device.type}


def memory(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """The most that each contender took, and its ratio to the student's own supervised step."""
    if args.only:
        return measured(args.only, args.repeat, flags)
    with TemporaryDirectory() as folder:
        flags = [*flags, f"--teacher.cache.dir={folder}/answers"]
        in_a_process(ONCE, 1, flags, Path(folder))  # fills the folder, so that none of those compared has to
        found = {name: in_a_process(name, args.repeat, flags, Path(folder)) for name in CONTENDERS}
    first = found[ALONE]
    print(f"torch {torch.__version__}, {first['device']}; {'×'.join(map(str, first['shape']))}")
    for name, line in found.items():
        print(f"  {name:30} {line['bytes'] / 1e6:8.0f} MB  {line['bytes'] / first['bytes']:5.2f} × labels alone")
    return {
        "shape": first["shape"],
        "torch": torch.__version__,
        "device": first["device"],
        "threads": torch.get_num_threads(),
        "bytes": {name: line["bytes"] for name, line in found.items()},
        "bytes_at_start": {name: line["start"] for name, line in found.items()},
    }


def in_a_process(name: str, repeat: int, flags: list[str], folder: Path) -> dict[str, Any]:
    """What `measured` finds in a fresh process.

    Raises:
        SystemExit: it failed; what was wrong it has said itself.
        ConfigError: it was killed.
    """
    output = folder / "found.json"
    own = ["--only", name, "--repeat", str(repeat), "--output", str(output)]
    root = str(Path(__file__).resolve().parents[2])  # where this may not be installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-m", "distill", "benchmark", "memory", *own, *flags]
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    if code < 0:
        raise ConfigError(f"benchmark memory: {name!r} was killed by signal {-code}; set a smaller batch or crop")
    if code:
        raise SystemExit(code)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def add_command(commands: Any) -> None:
    """The sub-command; what it does not know are settings of the run."""
    text = "what a training step takes of memory with and without a teacher, and in plain PyTorch"
    command = commands.add_parser(
        "memory", help=text, epilog="Settings of the run may follow: --config FILE, --data.root …"
    )
    command.add_argument("--repeat", type=int, default=3, help="steps of each")
    command.add_argument("--output", type=Path, help="JSON file for the numbers; printed only if not given")
    command.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)  # in the processes that it starts
    measure: Callable[[argparse.Namespace, list[str]], dict[str, Any]] = memory
    command.set_defaults(measure=measure)
