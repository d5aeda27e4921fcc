"""Signals to real launchers: all processes stop at one step, that step is saved, and going on gives the same bits."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from conftest import ROOT, TINY, flags
from harness import Figure, descendants, digests, distil, run, until
from kills import SETTINGS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 120
LONG = SETTINGS | {"teacher__max_train_steps": STEPS, "checkpointing_steps": 1000, "eval_steps": 40}
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "-q")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone")
# What is started, on how many processes, who gets which signal, and the exit code of what was started.
SCENARIOS: dict[str, tuple[Sequence[str], int, str, signal.Signals, int]] = {
    "SIGTERM to the script": ((), 1, "launcher", signal.SIGTERM, 75),
    "Ctrl-C, script": ((), 1, "group", signal.SIGINT, 75),
    "SIGTERM to accelerate launch, one process": (ACCELERATE, 1, "launcher", signal.SIGTERM, -signal.SIGTERM),
    "Ctrl-C, accelerate launch, one process": (ACCELERATE, 1, "group", signal.SIGINT, -signal.SIGINT),
    "SIGTERM to torchrun, two processes": (TORCHRUN, 2, "launcher", signal.SIGTERM, 1),
    "SIGTERM to one of two processes": (TORCHRUN, 2, "one", signal.SIGTERM, 1),
    "Ctrl-C, torchrun, two processes": (TORCHRUN, 2, "group", signal.SIGINT, 1),
}


def signals(names: Sequence[str], folder: Path) -> Figure:
    """Stops a run in each way, goes on, and compares with a run that was left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    failures, codes = [], {}
    whole: dict[int, dict[str, str]] = {}
    for name in names:
        launcher, world, target, number, expected = SCENARIOS[name]
        if world not in whole:
            run(distil, (folder / f"whole-{world}", LONG), world, folder / f"whole-{world}.log")
            whole[world] = digests(folder / f"whole-{world}")
        place = folder / re.sub(r"\W+", "-", name)
        codes[name], fault = _stop(place, launcher, target, number)
        if codes[name] != expected:
            fault = f"exit code {codes[name]}, not {expected}"
        if not fault:
            run(distil, (place, LONG), world, place.with_suffix(".again.log"))
            if digests(place) != whole[world]:
                fault = "other bits after going on"
            elif (steps := _steps(place)) != list(range(1, STEPS + 1)):
                fault = f"TensorBoard shows the steps {steps}"
        if fault:
            failures.append(f"{name}: {fault}")
    return Figure(
        "signals to launchers and processes: steps lost 0, same bits after going on, each step once in TensorBoard",
        f"{len(names)} / {len(names)}",
        f"{len(names) - len(failures)} / {len(names)}",
        not failures,
        failures,
        {"exit_codes": codes},
    )


def _stop(folder: Path, launcher: Sequence[str], target: str, number: int) -> tuple[int, str]:
    """Starts a run, sends the signal in the middle of the teacher's training; exit code and what went wrong."""
    wanted = TINY | {"output_dir": str(folder)} | {k.replace("__", "."): v for k, v in LONG.items()}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "distill.py"), *flags(wanted)]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        until(lambda: any((folder / "tensorboard" / "teacher").glob("events*")), 120, process)
        time.sleep(0.5)
        trainers = descendants(process.pid) or [process.pid]
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if target == "launcher" else trainers[-1], number)
        code = process.wait(120)
        until(lambda: not any(Path(f"/proc/{pid}/fd").exists() and _alive(pid) for pid in trainers), 60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = re.findall(r"teacher: stopped at step (\d+) of", log.read_text())
    saved = sorted((folder / "training" / "teacher").glob("checkpoint-*"))
    if not said or len(set(said)) > 1:
        return code, f"it said {said}: {log.read_text()[-300:]}"
    if not saved or int(saved[-1].name.split("-")[1]) != int(said[0]):
        return code, f"stopped at {said[0]}, saved {[path.name for path in saved]}"
    return code, ""


def _steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard" / "teacher"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
