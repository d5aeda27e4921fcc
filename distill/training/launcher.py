"""What started this process (`accelerate launch`, `torchrun`): whether it lives, and what it was asked for.

Linux tells it through `/proc`; elsewhere nothing is known. Imports nothing heavy, so that scripts can begin with it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1


def launched() -> bool:
    """Whether a launcher started this process: these variables are set by launchers and by nobody else."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_USE_FULLGRAPH" in os.environ


def follow() -> None:
    """Has this process end with its launcher, which may die without passing a signal on.

    The kernel then sends SIGTERM, which ends the process at once, or, where `launch.stop_on_signal` handles it, as soon
    as the state is saved.

    Raises:
        SystemExit: the launcher is gone already.
    """
    if sys.platform != "linux" or not launched():
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Asked only after that, so that no moment is left out. Who takes orphans in is no Python, as the launchers are.
    if _is_init(os.getppid()) and "python" not in _of_parent("cmdline"):
        sys.exit("distill: error: the launcher is gone")


def asked_processes() -> int | None:
    """The `--num_processes` given to `accelerate launch`, which may start one process whatever it says."""
    found = re.search(r"accelerate\S* launch .*--num_processes[ =](\d+)", _of_parent("cmdline"))
    return int(found[1]) if found else None


def asked_threads() -> int | None:
    """The `OMP_NUM_THREADS` that a person set, or `accelerate launch --num_cpu_threads_per_process`.

    Launchers set `OMP_NUM_THREADS` to 1 where nobody did, but after they were started: what they were started with is
    still to be seen.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if launched():
        pattern = r"(?:--num_cpu_threads_per_process[ =]|(?<!\S)OMP_NUM_THREADS=)(\d+)"
        found = re.search(pattern, f"{_of_parent('cmdline')} {_of_parent('environ')}")
        wanted = found[1] if found else ""
    first = wanted.split(",")[0].strip()  # the others are for loops within loops
    return int(first) if first.isdecimal() and int(first) else None


def _is_init(pid: int) -> bool:
    with suppress(OSError):
        return pid == 1 or Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
    return False


def _of_parent(name: str) -> str:
    """`cmdline` or `environ` of the parent, its words separated by spaces; empty where that is not told."""
    with suppress(OSError):
        return Path(f"/proc/{os.getppid()}/{name}").read_bytes().decode(errors="replace").replace("\0", " ")
    return ""
