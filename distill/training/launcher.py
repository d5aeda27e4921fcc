"""What started this process (`accelerate launch`, `torchrun`): whether it lives, and what it was asked for.

Linux tells it through `/proc`; elsewhere nothing is known. Imports nothing heavy, so that scripts can begin with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distill.errors import ConfigError, say

PR_SET_PDEATHSIG = 1
EXIT_STOPPED = 75  # asked to stop, and saved: rerun the same command to resume
LAST_LINES = "DISTILL_LAST_LINES"  # folder of what processes say at their end


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


def launch(arguments: Sequence[str], processes: int) -> int:
    """Has Accelerate start `python -m distill` with the arguments in several processes of this machine.

    What they all would say at their end, one of them says here: that which ended first.

    Returns:
        The exit code of that process.

    Raises:
        ConfigError: there are fewer GPUs than that, or none but a GPU of another kind.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        count = torch.cuda.device_count()
        raise ConfigError(f"num_processes: {processes} were asked for, but there are {count} GPUs; set {count}")
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # with --cpu, it would start one
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path[1:]:  # started as a script, or in this folder: it is not installed
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ["--multi_gpu", "--num_machines=1", f"--num_processes={processes}", "--main_process_port=0", "--module"]
    args = launch_command_parser().parse_args([*options, "distill", *arguments])
    logging.disable(logging.CRITICAL)  # the launcher's: what matters is said by the processes
    with tempfile.TemporaryDirectory() as folder:
        os.environ[LAST_LINES] = folder
        first, code = 0, 0
        try:
            launch_command(args)
        except ChildFailedError as error:
            first, failure = error.get_first_failure()
            code = failure.exitcode
        except SignalException as error:
            code = EXIT_STOPPED if list(Path(folder).iterdir()) else 128 + error.sigval
        said = Path(folder) / str(first)
        if said.is_file():
            say(said.read_text(encoding="utf-8"), sys.stderr)
        elif code:
            how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
            say(f"distill: error: process {first} ended ({how}); rerun the same command to resume", sys.stderr)
    return code if code >= 0 else 128 - code


def last_line(text: str) -> None:
    """The line that a process ends with, on stderr, or left to the `launch` that started it."""
    folder = os.environ.get(LAST_LINES)
    if folder and Path(folder).is_dir():
        (Path(folder) / os.environ.get("RANK", "0")).write_text(text, encoding="utf-8")
    else:
        say(text, sys.stderr)


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
