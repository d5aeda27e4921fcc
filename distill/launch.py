"""Processes, devices, signals and the lock on the output folder: what has to be right before anything is computed."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)
from torch.distributed import DistError, TCPStore

from distill.config import Config, ConfigError
from distill.launcher import asked_processes, asked_threads, follow

T = TypeVar("T")
ANSWER_SECONDS = 3
BEAT_SECONDS = 1
DONE = "done"
CLOSED_AFTER_TIMEOUT = "Application timeout caused pair closure"  # gloo, of what comes after an exchange that timed out
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
TWO_ON_CPU = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} scripts/distill.py"


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
        with lost_are_named(config.timeout_seconds):
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


@contextmanager
def lost_are_named(timeout_seconds: int) -> Iterator[None]:
    """Has a failed exchange between processes end with one line that says which of them is lost.

    On CPUs gloo raises when it has waited for `timeout_seconds`, or at once when a connection breaks. On GPUs nothing
    is raised: NCCL's watchdog (`TORCH_NCCL_ASYNC_ERROR_HANDLING`, on by default) prints the operation that waited for
    `timeout_seconds` and ends each process that waited; `TORCH_NCCL_DESYNC_DEBUG=1` has it look for the culprit. A
    launcher that sees a process die (`accelerate launch`, `torchrun`) names it and ends the others itself.

    Raises:
        ConnectionError: the processes that are gone, or that do not answer.
        ChildProcessError: a worker that reads data is gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if text.startswith("DataLoader worker"):  # raised wherever the main thread just is
            raise ChildProcessError(f"{text} See data.num_workers; the same command goes on") from error
        if not isinstance(error, DistError) and "/gloo/" not in text and CLOSED_AFTER_TIMEOUT not in text:
            raise
        lost, waited = lost_processes("timed out" in text.lower() or CLOSED_AFTER_TIMEOUT in text)
        many = len(lost) > 1
        names = f"process{'es' * many} {', '.join(map(str, lost))}"
        if not lost:
            reason = f"the processes lost their connection, though all of them answer ({text})"
        elif waited:
            reason = f"{names} {'do' if many else 'does'} not answer (waited timeout_seconds {timeout_seconds} s)"
        else:
            reason = f"{names} {'are' if many else 'is'} gone; what was printed there last says why"
        raise ConnectionError(f"{reason}; the same command goes on from the last checkpoint") from error


def lost_processes(waited: bool) -> tuple[list[int], bool]:
    """Ranks that do not tell the store within seconds that they noticed, too; and whether any of those waited in vain.

    The store is the launcher's, or else that of process 0: if it does not answer, process 0 does not.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = {other: f"noticed/{attempt}/{other}" for other in range(world)}
    lost = [other for other in keys if other != rank]
    start = time.monotonic()
    try:
        store = _store()
        store.set(keys[rank], str(waited))
        # One that is missing is the lost one; of several, some may still be at work on what the others had done.
        while lost and time.monotonic() - start < ANSWER_SECONDS * (1 if len(lost) == 1 else 5):
            time.sleep(0.1)
            lost = [other for other in lost if not store.check([keys[other]])]
        waited = any(store.get(key) == b"True" for other, key in keys.items() if other not in lost)
    except (KeyError, OSError, RuntimeError):
        lost = [0] if rank else lost
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        time.sleep(ANSWER_SECONDS)  # the others ask this process
    return lost, waited


def _store() -> TCPStore:
    """A line of its own to what the processes met at; raises OSError if nobody answers there."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((host, port), ANSWER_SECONDS).close()  # where this fails, torch would print a page
    found: list[TCPStore] = []

    def connect() -> None:
        found.append(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS)))

    thread = threading.Thread(target=connect, daemon=True)  # it waits for a stopped process without limit
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not found:
        raise TimeoutError
    return found[0]


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


def lock(folder: Path) -> IO[str]:
    """Keeps other runs out of a folder for as long as the returned file is open; a run that died holds nothing.

    Raises:
        ConfigError: another run is at work in it, or it holds a link, through which a run would write elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if links := [path for path in folder.iterdir() if path.is_symlink()]:
        raise ConfigError(f"{links[0]}: is a link; what is in the folder of a run is its own, so remove it")
    file = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644), "a+")
    held = weakref.ref(file)

    def let_go() -> None:
        """A worker that outlives this process must not keep its lock."""
        if copy := held():
            copy.close()

    os.register_at_fork(after_in_child=let_go)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise ConfigError(f"{folder}: another run is at work in it (process {file.read().strip()})") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


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
    """Shows the other processes that this one lives, and at last that it is done."""
    store, done = _store(), threading.Event()

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
    store, last, heard = _store(), b"", time.monotonic()
    seconds = accelerator.init_handler.timeout.total_seconds()
    while last != DONE.encode():
        beat = store.get(key) if store.check([key]) else b""
        if beat != last:
            last, heard = beat, time.monotonic()
        elif time.monotonic() - heard > seconds:
            raise ConnectionError(
                f"process {rank} does not answer (waited timeout_seconds {seconds:.0f} s); the same command goes on "
                f"from the last checkpoint"
            )
        time.sleep(BEAT_SECONDS / 10)
