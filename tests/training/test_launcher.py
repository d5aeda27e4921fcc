"""What a process knows of its launcher, and that it ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, flags, tiny_config

from distill.training.distributed import start

pytestmark = pytest.mark.xdist_group("clock")  # watches the clock, and starts processes of its own

ACCELERATE = (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "-q")
PRINTS = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from distill.training.launcher import *; print(asked_threads())"
)
# A launcher as far as its children can tell: torchrun's variable, and a number of threads that nobody asked for.
LAUNCHER = """
import os, subprocess, sys
os.environ |= {"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
subprocess.run(sys.argv[1:], check=True)
"""


@pytest.mark.parametrize(
    ("launcher", "variables", "expected"),
    [
        ((), {}, "None"),
        ((), {"OMP_NUM_THREADS": "3"}, "3"),
        ((), {"OMP_NUM_THREADS": "3,2"}, "3"),
        ((), {"OMP_NUM_THREADS": "many"}, "None"),
        ((sys.executable, "-c", LAUNCHER), {}, "None"),
        ((sys.executable, "-c", LAUNCHER), {"OMP_NUM_THREADS": "3"}, "3"),
        ((*ACCELERATE, "--num_cpu_threads_per_process=5", "--no_python"), {}, "5"),
        ((*ACCELERATE, "--num_processes=1", "--no_python"), {}, "None"),
    ],
)
def test_the_threads_that_a_person_asked_for_are_known(launcher, variables, expected):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | variables
    command = [*launcher, sys.executable, "-c", PRINTS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split()[-1] == expected


@pytest.mark.parametrize(("num_threads", "expected"), [("null", 3), (2, 2)])
def test_threads_that_were_asked_for_are_used(tmp_path, monkeypatch, num_threads, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        start(tiny_config(tmp_path, num_threads=num_threads))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 2.0])
def test_a_process_does_not_outlive_a_launcher_that_is_killed_at_once(tmp_path, seconds):
    wanted = TINY | {"output_dir": str(tmp_path / "run"), "teacher.max_train_steps": 5000, "eval_steps": 5000}
    command = [*ACCELERATE, str(ROOT / "scripts" / "distill.py"), *flags(wanted)]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        found: list[int] = []
        # Asked once: the next moment it may be between two names.
        until(lambda: found.extend(trainers(launcher.pid)) or found, 60)
        child = found[0]
        time.sleep(seconds)
    finally:
        launcher.kill()
        launcher.wait()
    try:
        until(lambda: not Path(f"/proc/{child}").exists(), 30)
    finally:
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)


def trainers(launcher: int) -> list[int]:
    """Those children that run the script."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"distill.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {seconds} s"
        time.sleep(0.002)
