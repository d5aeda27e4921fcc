"""Processes, devices, signals and the lock on the output folder: what has to be right before anything is computed."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)

from distill.config.schema import Config
from distill.errors import ConfigError
from distill.training.launcher import asked_processes, asked_threads, follow
from distill.training.rank_failures import launcher_store, name_failed_ranks

T = TypeVar("T")
BEAT_SECONDS = 1
DONE = "done"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
TWO_ON_CPU = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} scripts/distill.py"


@contextmanager
def started(config: Config) -> Iterator[Accelerator]:
    """`start`; at the end, what it set for the whole process is as before, unless others had set up Accelerate."""
    threads, ours = torch.get_num_threads(), not PartialState._shared_state
    try:
        accelerator = start(config)
        try:
            yield accelerator
        finally:
            accelerator.end_training()
    finally:
        torch.set_num_threads(threads)
        if ours and int(os.environ.get("WORLD_SIZE", 1)) == 1:  # several processes meet once
            AcceleratorState._reset_state(reset_partial_state=True)


def start(config: Config) -> Accelerator:
    """The Accelerator of a run, once it is sure that as many processes run as were asked for.

    Raises:
        ConfigError: fewer processes than asked for, a precision or strategy that cannot work here, or a number of
            micro-batches in the environment that is not that of the settings.
    """
    wanted, steps = os.environ.get(ACCUMULATION), config.gradient_accumulation_steps
    if wanted and wanted != str(steps):
        raise ConfigError(
            f"gradient_accumulation_steps: {steps}, but {ACCUMULATION} is {wanted} in the environment; "
            f"give the same number in both, or unset {ACCUMULATION}"
        )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # Without a GPU, Accelerate would start every process as "the only one" unless told that CPUs are meant.
    cpu = True if launched > 1 and not torch.accelerator.is_available() else None
    project = ProjectConfiguration(str(config.folder), str(config.folder / "tensorboard"))
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_seconds))
    try:
        with name_failed_ranks(config.timeout_seconds):
            accelerator = Accelerator(
                mixed_precision=config.mixed_precision,
                cpu=cpu,
                log_with="tensorboard",
                project_config=project,
                kwargs_handlers=[patience],
                # The loss of a micro-batch is its share of the step's already; Accelerate must not divide it again.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            )
    except ValueError as error:
        raise ConfigError(f"mixed_precision: {config.mixed_precision!r}: {error}") from error
    asked = config.num_processes or asked_processes() or launched
    if accelerator.num_processes < asked:
        command = TWO_ON_CPU if accelerator.device.type == "cpu" else "accelerate launch --num_processes {n} …"
        raise ConfigError(
            f"{asked} processes were asked for, {accelerator.num_processes} runs; use: {command.format(n=asked)}"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision: fp16 does nothing on a CPU; use bf16 or no")
    if config.sync_batchnorm and accelerator.device.type in ("cpu", "mps"):
        raise ConfigError(f"sync_batchnorm: needs GPUs, the device here is {accelerator.device.type}; leave it out")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(f"launched with {accelerator.distributed_type.value}; a small student needs plain DDP")
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(config.num_threads or asked_threads() or max(1, cores // local))
    return accelerator


def stop_on_signal() -> Callable[[], bool]:
    """Answers whether SIGTERM or Ctrl-C came; a second Ctrl-C ends the process at once."""
    asked: list[int] = []

    def handle(number: int, _: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    follow()  # a launcher of one process dies of SIGTERM without passing it on
    return lambda: bool(asked)


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Runs an action on the main process; what it raises is raised on all of them. Returns None elsewhere.

    It may take longer than an exchange between processes may (`timeout_seconds`), as long as the main process lives.

    Raises:
        ConnectionError: the main process does not answer.
    """
    if accelerator.num_processes == 1:
        return action()
    result: T | None = None
    failure: list[Exception | None] = [None]
    key = _key()
    if accelerator.is_main_process:
        with _beating(key):
            try:
                result = action()
            except Exception as error:  # whatever it is, the others must not wait for ever
                failure = [error]
    else:
        _wait_for(0, key, accelerator)
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
    return result


def from_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What an action on the main process gives, on every process: only the main one needs to have its files.

    Raises:
        ConnectionError: the main process does not answer.
    """
    result = [on_main(accelerator, action)]
    if accelerator.num_processes > 1:
        broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def on_all(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Runs an action on every process, for as long as each of them takes; if it fails on one, it fails on all.

    Raises:
        ConfigError: it failed on some of them; names the first, and its machine.
        ConnectionError: a process does not answer.
    """
    if accelerator.num_processes == 1:
        return action()
    own, key, failure = accelerator.process_index, _key(), None
    with _beating(f"{key}/{own}"):
        try:
            result = action()
        except (ConfigError, OSError) as error:
            failure = error
    for rank in range(accelerator.num_processes):
        if rank != own:
            _wait_for(rank, f"{key}/{rank}", accelerator)
    failures = gather_object([f"process {own} on {socket.gethostname()}: {failure}" if failure else ""])
    if failed := [text for text in failures if text]:
        raise ConfigError(failed[0]) from failure
    return result


_ACTIONS = itertools.count()  # every process counts the same ones


def _key() -> str:
    return f"action/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_ACTIONS)}"


@contextmanager
def _beating(key: str) -> Iterator[None]:
    """Shows the other processes that this one lives, and at last that it is done.

    A second process group with hours of patience would be shorter, but name a process that is stuck only after hours.
    """
    store, done = launcher_store(tries=5), threading.Event()

    def beat() -> None:
        for count in itertools.count():
            store.set(key, str(count))
            if done.wait(BEAT_SECONDS):
                break
        store.set(key, DONE)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _wait_for(rank: int, key: str, accelerator: Accelerator) -> None:
    """Returns when a process is done, however long that takes, unless nothing is heard of it for `timeout_seconds`."""
    store, last, heard = launcher_store(tries=5), b"", time.monotonic()
    seconds = accelerator.init_handler.timeout.total_seconds()
    while last != DONE.encode():
        beat = store.get(key) if store.check([key]) else b""
        if beat != last:
            last, heard = beat, time.monotonic()
        elif time.monotonic() - heard > seconds:
            raise ConnectionError(
                f"process {rank} does not answer (waited timeout_seconds {seconds:.0f} s); rerun the same command "
                f"to resume from the last checkpoint"
            )
        time.sleep(BEAT_SECONDS / 10)
