"""Signals to real launchers: all processes stop at one step, that step is saved, and going on gives the same bits.

And waiting has a limit: a process or worker that is stuck ends the run, with its name.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, TINY, flags, tiny_config
from harness import Figure, Launch, digests, distil, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_kills import SETTINGS

from distill.training.distributed import on_main, start
from distill.training.rank_failures import lost_are_named

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
        _until(lambda: any((folder / "tensorboard" / "teacher").glob("events*")), 120, process)
        time.sleep(0.5)
        trainers = _descendants(process.pid) or [process.pid]
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if target == "launcher" else trainers[-1], number)
        code = process.wait(120)
        _until(lambda: not any(Path(f"/proc/{pid}/fd").exists() and _alive(pid) for pid in trainers), 60)
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


def _descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool], seconds: float, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or (process and process.poll() is not None):
            raise TimeoutError(f"waited in vain for {seconds} s")
        time.sleep(0.02)


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
        _until(lambda place=place: any((place / "tensorboard" / "teacher").glob("events*")), 120)
        time.sleep(0.5)
        pid = launch.ranks[hit].pid
        others = [rank for i, rank in enumerate(launch.ranks) if worker or i != hit]
        os.kill(_descendants(pid)[0] if worker else pid, number)
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


def test_the_launcher_of_one_process_passes_nothing_on_and_the_run_still_stops(tmp_path):
    figure = signals(["SIGTERM to accelerate launch, one process"], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.parametrize("name", ["one stuck process of three", "a killed process with the store", "a stuck worker"])
def test_waiting_has_a_limit(tmp_path, name):
    figure = waits([name], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_signal(tmp_path, name):
    figure = signals([name], tmp_path)
    assert figure.ok, figure.failures


def long_action(folder: Path, seconds: float) -> None:
    """What each process runs: a long action on the main process."""
    accelerator = start(tiny_config(folder, timeout_seconds=3))
    try:
        on_main(accelerator, lambda: (folder / "begun").touch() or time.sleep(seconds))
    except ConnectionError as error:
        sys.exit(f"error: {error}")


def test_an_action_on_the_main_process_may_take_longer_than_an_exchange(tmp_path):
    assert "error" not in run(long_action, (tmp_path, 8), 2, tmp_path / "log")


def test_a_main_process_that_is_stuck_in_an_action_is_named(tmp_path):
    launch = Launch(long_action, (tmp_path, 60), 2, tmp_path / "log")
    _until(lambda: (tmp_path / "begun").exists(), 60)
    os.kill(launch.ranks[0].pid, signal.SIGSTOP)
    launch.ranks[1].join(30)
    code, output = launch.ranks[1].exitcode, launch.output()
    launch.kill()
    assert code == 1
    assert "error: process 0 does not answer (waited timeout_seconds 3 s)" in output


def test_an_error_of_its_own_is_not_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match=r"^shape$"), lost_are_named(1):
        raise RuntimeError("shape")


@pytest.mark.faults
@pytest.mark.parametrize("name", WAITS)
def test_every_wait_has_a_limit(tmp_path, name):
    figure = waits([name], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.parametrize(
    "said",
    [
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation",
        "Application timeout caused pair closure",  # what the next exchange says after that
    ],
)
def test_every_timeout_of_gloo_is_one(said, monkeypatch):
    monkeypatch.setattr("distill.training.rank_failures.lost_processes", lambda waited: ([1], waited))
    with pytest.raises(ConnectionError, match=r"^process 1 does not answer .*timeout_seconds 6 s"), lost_are_named(6):
        raise RuntimeError(said)
