"""Waiting has a limit: a process or worker that is stuck or dead ends the run, with its name."""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from conftest import tiny_config
from harness import Figure, Launch, descendants, distil, until
from signals import LONG

from distill.training.distributed import on_main, start

# Number of processes, which of them is hit and with what (or its worker), who has the store, and what has to be said.
WAITS: dict[str, tuple[int, int, bool, signal.Signals, bool, str]] = {
    "a stuck process": (2, 1, False, signal.SIGSTOP, True, r"error: process 1 does not answer .*timeout_seconds"),
    "a killed process": (2, 1, False, signal.SIGKILL, True, r"error: process 1 is gone"),
    "a stuck process with the store": (2, 0, False, signal.SIGSTOP, False, r"error: process 0 does not answer"),
    "a killed process with the store": (2, 0, False, signal.SIGKILL, False, r"error: process 0 is gone"),
    "one stuck process of three": (3, 1, False, signal.SIGSTOP, False, r"error: process 1 does not answer"),
    "one killed process of three": (3, 1, False, signal.SIGKILL, True, r"error: process 1 is gone"),
    "a stuck worker": (1, 0, True, signal.SIGSTOP, True, r"scene-0-\d+.*timeout_seconds"),
    "a killed worker": (1, 0, True, signal.SIGKILL, True, r"worker .*killed|exited unexpectedly"),
}


def waits(names: Sequence[str], folder: Path, timeout: int = 6, grace: int = 30) -> Figure:
    """Stops or kills a process or worker; the others have to end within the set time, and each names it."""
    folder.mkdir(parents=True, exist_ok=True)
    failures, seconds = [], {}
    for name in names:
        world, hit, worker, number, agent, words = WAITS[name]
        place = folder / name.replace(" ", "-")
        settings = LONG | {"timeout_seconds": timeout, "data__num_workers": int(worker)}
        settings |= {"teacher__max_train_steps": 2000}
        launch = Launch(distil, (place, settings), world, place.with_suffix(".log"), agent=agent)
        until(lambda place=place: any((place / "tensorboard" / "teacher").glob("events*")), 120)
        time.sleep(0.5)
        pid = launch.ranks[hit].pid
        others = [rank for i, rank in enumerate(launch.ranks) if worker or i != hit]
        os.kill(descendants(pid)[0] if worker else pid, number)
        start = time.monotonic()
        for rank in others:
            rank.join(max(0.0, start + timeout + grace - time.monotonic()))
        seconds[name] = round(time.monotonic() - start, 1)
        codes, output = [rank.exitcode for rank in others], launch.output()
        launch.kill()
        if not all(codes):
            failures.append(f"{name}: exit codes {codes} after {seconds[name]} s")
        elif len(re.findall(words, output)) != len(others) or "Traceback" in output:
            failures.append(f"{name}: is not named once by each: {output[-300:]}")
    return Figure(
        f"stuck or dead processes and workers: the run ends within {timeout} + {grace} s and names them",
        f"{len(names)} / {len(names)}",
        f"{len(names) - len(failures)} / {len(names)}",
        not failures,
        failures,
        {"seconds": seconds},
    )


def long_action(folder: Path, seconds: float) -> None:
    """What each process runs: a long action on the main process."""
    accelerator = start(tiny_config(folder, timeout_seconds=2))
    try:
        on_main(accelerator, lambda: (folder / "begun").touch() or time.sleep(seconds))
    except ConnectionError as error:
        sys.exit(f"error: {error}")
