"""Two machines without a common disk: two launchers on loopback, each in a folder of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import ROOT, TINY, flags
from harness import PATIENCE_SECONDS, Figure, digests, distil, draw_camvid, free_port, run, until
from kills import SETTINGS

EXPORT = SETTINGS | {"export__enabled": "true", "export__int8": "true", "export__int8_calibration_images": 2}
SLOW = SETTINGS | {"teacher__max_train_steps": 100, "checkpointing_steps": 10, "eval_steps": 50}


class Machines:
    """Two launchers of a process each, at work.

    Args:
        folder: holds a working folder for each machine, `0` and `1`; runs go to `run` in there.
        launcher: `torchrun` or `accelerate`.
        settings: of the run; names with `__` for dots.
    """

    def __init__(self, folder: Path, launcher: str, settings: dict[str, Any]):
        wanted = TINY | {"output_dir": "run"} | {k.replace("__", "."): v for k, v in settings.items()}
        port = free_port()
        self.logs, self.launchers = [folder / "log-0", folder / "log-1"], []
        for rank, log in enumerate(self.logs):
            (folder / str(rank)).mkdir(parents=True, exist_ok=True)
            command = [sys.executable, *_launcher(launcher, rank, port), str(ROOT / "scripts" / "distill.py")]
            with log.open("w") as output:
                machine = subprocess.Popen(
                    [*command, *flags(wanted)],
                    cwd=folder / str(rank),
                    stdout=output,
                    stderr=output,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
                )
            self.launchers.append(machine)

    def wait(self) -> list[int]:
        """Exit codes."""
        try:
            return [machine.wait(PATIENCE_SECONDS) for machine in self.launchers]
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to both launchers; what they started ends with them."""
        for machine in self.launchers:
            machine.send_signal(signal.SIGKILL)
        for machine in self.launchers:
            machine.wait()

    def printed(self, rank: int) -> str:
        """What was printed on a machine."""
        return self.logs[rank].read_text(errors="replace")


def _launcher(name: str, rank: int, port: int) -> Sequence[str]:
    if name == "torchrun":
        places = ("--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1", "--master_addr=127.0.0.1")
        return ("-m", "torch.distributed.run", *places, f"--master_port={port}")
    places = ("--num_machines=2", f"--machine_rank={rank}", "--num_processes=2", "--main_process_ip=127.0.0.1")
    launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu")
    return (*launch, *places, f"--main_process_port={port}")


def same_bits(folder: Path, launcher: str, settings: dict[str, Any], stop: bool) -> str:
    """A run of two machines, killed in the middle and started again if asked for; what is wrong with it."""
    run(distil, (folder / "whole", settings), 2, folder / "whole.log")
    machines = Machines(folder, launcher, settings)
    if stop:
        states = folder / "0/run/training/teacher"
        try:
            until(lambda: any(states.glob("checkpoint-*[1-5]0")), PATIENCE_SECONDS, *machines.launchers)
        finally:
            machines.kill()
        machines = Machines(folder, launcher, settings)
    if any(codes := machines.wait()):
        return f"exit codes {codes}: {machines.printed(0)[-3000:]} {machines.printed(1)[-3000:]}"
    if digests(folder / "0" / "run") != digests(folder / "whole"):
        return "other bits than on one machine"
    if stop and "resumes from step" not in machines.printed(0):
        return "it began again"
    # Of the teacher's answers every machine has those that it reads.
    if found := [p for p in (folder / "1").rglob("*") if p.is_file() and p.parent.name != "teacher_cache"]:
        return f"the second machine holds {found[0]}"
    return ""


def teacher_of_the_first(folder: Path, launcher: str) -> str:
    """A teacher's folder that only the first machine has."""
    run(distil, (folder / "0" / "old", SETTINGS), 1, folder / "old.log")
    return same_bits_of_student(folder, launcher)


def same_bits_of_student(folder: Path, launcher: str) -> str:
    """What is wrong with a run of two machines that learn from a teacher that the first one has."""
    settings = SETTINGS | {"teacher__checkpoint": "old"}
    machines = Machines(folder, launcher, settings)
    if any(codes := machines.wait()):
        return f"exit codes {codes}: {machines.printed(0)[-300:]}"
    whole = SETTINGS | {"teacher__checkpoint": str(folder / "0" / "old")}
    run(distil, (folder / "whole", whole), 2, folder / "whole.log")
    return "" if digests(folder / "0" / "run") == digests(folder / "whole") else "other bits than on one machine"


def data_of_the_first(folder: Path, launcher: str) -> str:
    """Data that only the first machine has: each says in one line which machine lacks it, before anything is done."""
    draw_camvid(folder / "0" / "data")
    settings = SETTINGS | {"data__format": "camvid", "data__root": "data"}
    machines = Machines(folder, launcher, settings)
    codes = machines.wait()
    said = [machines.printed(rank).count("distill: error: process 1 on ") for rank in (0, 1)]
    if not all(codes) or said != [1, 1] or (folder / "0" / "run" / "config.yaml").exists():
        return f"exit codes {codes}, told {said} times: {machines.printed(1)[-500:]}"
    return ""


# What is tried: a line of the board is all of them.
WAYS: dict[str, Callable[[Path], str]] = {
    "torchrun": lambda folder: same_bits(folder, "torchrun", SETTINGS, stop=False),
    "accelerate launch": lambda folder: same_bits(folder, "accelerate", SETTINGS, stop=False),
    "killed and started again": lambda folder: same_bits(folder, "torchrun", SLOW, stop=True),
    "with an 8-bit file": lambda folder: same_bits(folder, "accelerate", EXPORT, stop=False),
    "a teacher that only one has": lambda folder: teacher_of_the_first(folder, "torchrun"),
    "data that only one has": lambda folder: data_of_the_first(folder, "torchrun"),
}


def machines(names: Sequence[str], folder: Path) -> Figure:
    """Runs of two machines without a common disk, beside the same with two processes on one."""
    failures = []
    for name in names:
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        try:
            fault = WAYS[name](place)
        except (RuntimeError, TimeoutError) as error:
            fault = str(error)
        if fault:
            failures.append(f"{name}: {fault}")
    return Figure(
        "two machines without a common disk: same bits as two processes on one, what is missing is named",
        f"{len(names)} / {len(names)}",
        f"{len(names) - len(failures)} / {len(names)}",
        not failures,
        failures,
        {"ways": list(names)},
    )
