"""Names the processes that are gone or stuck when an exchange between processes fails."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, TCPStore

ANSWER_SECONDS = 3


CLOSED_AFTER_TIMEOUT = "Application timeout caused pair closure"  # gloo, of what comes after an exchange that timed out


@contextmanager
def name_failed_ranks(timeout_seconds: int) -> Iterator[None]:
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
            raise ChildProcessError(f"{text} See data.num_workers; rerun the same command to resume") from error
        if not isinstance(error, DistError) and "/gloo/" not in text and CLOSED_AFTER_TIMEOUT not in text:
            raise
        lost, waited = failed_ranks("timed out" in text.lower() or CLOSED_AFTER_TIMEOUT in text)
        many = len(lost) > 1
        names = f"process{'es' * many} {', '.join(map(str, lost))}"
        if not lost:
            reason = f"the processes lost their connection, though all of them answer ({text})"
        elif waited:
            reason = f"{names} {'do' if many else 'does'} not answer (waited timeout_seconds {timeout_seconds} s)"
        else:
            reason = f"{names} {'are' if many else 'is'} gone; what was printed there last says why"
        raise ConnectionError(f"{reason}; rerun the same command to resume from the last checkpoint") from error


def failed_ranks(waited: bool) -> tuple[list[int], bool]:
    """Ranks that do not tell the store within seconds that they noticed, too; and whether any of those waited in vain.

    The store is the launcher's, or else that of process 0: if it does not answer, process 0 does not.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = {other: f"noticed/{attempt}/{other}" for other in range(world)}
    lost = [other for other in keys if other != rank]
    start = time.monotonic()
    try:
        store = launcher_store()
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


def launcher_store(tries: int = 1) -> TCPStore:
    """A line of its own to what the processes met at.

    Args:
        tries: how often `ANSWER_SECONDS` are waited: a machine that is busy may be slow, and not stuck.

    Raises:
        OSError: nobody answers there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((host, port), ANSWER_SECONDS).close()  # where this fails, torch would print a page
    found: list[TCPStore] = []

    def connect() -> None:
        found.append(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS * tries)))

    thread = threading.Thread(target=connect, daemon=True)  # it waits for a stopped process without limit
    thread.start()
    thread.join(ANSWER_SECONDS * tries)
    if not found:
        raise TimeoutError(f"the store at {host}:{port} did not answer in {ANSWER_SECONDS * tries} s")
    return found[0]
