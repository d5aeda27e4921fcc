"""A process with limits on memory and time for what reads the files of others.

A small ONNX file or video may ask for any amount of memory, or never end. Such files are therefore read by a child
process that answers requests over its stdin and stdout, several at a time. An image of 480×360 takes 0.3 ms to the
child and its mask back, which no network notices. The limit on memory is the system's (RLIMIT_DATA, Linux only).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from distill.errors import ConfigError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

START_SECONDS = 120  # for the imports of the child, on a busy machine
LONGEST_HEADER = 1 << 20
THREADS, STACK_BYTES = 64, 2 << 20  # of the child: requests at once, and what each takes (by the system's count)
# Ctrl-C and SIGTERM, which Slurm and `timeout` send to all processes, are the parent's affair, which ends the child.
DEAF = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]; "
OUT_OF_MEMORY = re.compile(r"bad_?alloc|allocate|MemoryError|[Ii]nsufficient memory|[Oo]ut of memory")

Message = tuple[dict[str, Any], np.ndarray | None]


class SandboxError(ConfigError):
    """The child is gone: it was stopped for taking too long, or it crashed. Nothing can be asked of it any more."""


class Sandbox:
    """A child process that answers requests; safe to use from several threads.

    Args:
        code: Python that calls `serve` in the child.
        name: the file that is read, for messages.
        memory: bytes that the child may allocate beyond what its imports took.
        fix: what to do about a limit that is too low, for messages.
    """

    def __init__(self, code: str, name: str, memory: int, fix: str = ""):
        self.name, self.memory, self.fix = name, memory, fix
        self.lock, self.numbers = threading.Lock(), itertools.count()
        self.base = self.requested = self.most_requested = 0
        self.stopped = ""
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-c", f"{DEAF}import sys; sys.path[:] = {sys.path!r}; {code}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=1 << 16
        )
        ready: Future[Message] = Future()
        self.waiting: dict[int, Future[Message]] = {-1: ready}
        # The thread must not keep this object alive, whose end is the child's end.
        threading.Thread(target=_listen, args=(self.process, self.waiting), daemon=True).start()
        weakref.finalize(self, _close, self.process)
        self._answer(ready, START_SECONDS)
        self.base = _data_bytes(self.process.pid)

    def ask(self, seconds: float, memory: int = 0, array: np.ndarray | None = None, **request: Any) -> Message:
        """The child's answer.

        Args:
            seconds: that it may take; after that the child is killed.
            memory: further bytes that this request may need.
            array: goes to the child with the request.
            **request: anything that JSON can say.

        Raises:
            ConfigError: what the child says is wrong, in its words.
            SandboxError: the child is gone.
        """
        future: Future[Message] = Future()
        with self.lock:
            self.requested += memory + STACK_BYTES
            self.most_requested = max(self.most_requested, self.requested)
            _limit(self.process.pid, self.base + self.memory + self.most_requested if self.base else 0)
            number = next(self.numbers)
            self.waiting[number] = future
            try:
                _write(self.process.stdin, request | {"id": number}, array)
            except OSError:  # it ended; what is waited for says so
                self.waiting.pop(number, None)
                future.cancel()
        try:
            return self._answer(future, seconds)
        finally:
            with self.lock:
                self.requested -= memory + STACK_BYTES

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        _close(self.process)

    def _answer(self, future: Future[Message], seconds: float) -> Message:
        try:
            header, array = future.result(seconds)
        except TimeoutError:
            self.stopped = self.stopped or f"was stopped after {seconds:.0f} s without an answer{self.fix}"
            self.process.kill()
        except BaseException as problem:
            if not isinstance(problem, EOFError) and not future.cancelled():
                raise
        else:
            if "error" in header:
                raise ConfigError(header["error"] + self._allowed(header["error"]))
            return header, array
        code = self.process.wait()
        if not self.stopped:
            self.errors.seek(0)
            said = (self.errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:150]
            how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
            self.stopped = f"the process that read it crashed ({how}{said and ': '}{said}){self._allowed('bad_alloc')}"
        raise SandboxError(f"{self.name}: {self.stopped}")

    def _allowed(self, error: str) -> str:
        if not self.base or not OUT_OF_MEMORY.search(error):
            return ""
        limit = (self.memory + self.most_requested) / 1e6
        return f"; it may allocate {limit:,.0f} MB{self.fix}"


def serve(answer: Callable[[dict[str, Any], np.ndarray | None], Message]) -> None:
    """In the child: answers requests until the parent is gone, each in a thread of its own. Does not return."""
    answers, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # what libraries print must not come between

    def work(request: dict[str, Any], array: np.ndarray | None) -> None:
        try:
            header, result = answer(request, array)
            if result is not None and result.dtype.kind not in "uif":
                raise ConfigError(f"an array of {result.dtype}")
        except Exception as error:
            text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            header, result = {"error": " ".join(text.split())[:1000]}, None
        with lock:
            _write(answers, header | {"id": request["id"]}, result)

    code = 1
    try:
        _write(answers, {"id": -1}, None)
        threading.stack_size(STACK_BYTES)
        pool = ThreadPoolExecutor(THREADS)
        while message := _read(sys.stdin.buffer):
            pool.submit(work, *message)
        code = 0
    finally:
        os._exit(code)  # whatever still runs


def _listen(process: subprocess.Popen[bytes], waiting: dict[int, Future[Message]]) -> None:
    try:
        while process.stdout and (message := _read(process.stdout)):
            waiting.pop(message[0].pop("id")).set_result(message)
    finally:
        for number in list(waiting):
            waiting.pop(number).set_exception(EOFError())


def _close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        try:
            if stream:
                stream.close()
        except OSError:  # what was not yet written
            pass


def _write(stream: IO[bytes] | None, header: dict[str, Any], array: np.ndarray | None) -> None:
    assert stream
    if array is not None:
        array = np.ascontiguousarray(array)
        header = header | {"shape": array.shape, "dtype": array.dtype.str}
    text = json.dumps(header).encode()
    if len(text) > LONGEST_HEADER:
        text = json.dumps({"id": header["id"], "error": f"its answer has {len(text):,} bytes"}).encode()
        array = None
    stream.write(struct.pack("<I", len(text)) + text)
    if array is not None:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def _read(stream: IO[bytes]) -> Message | None:
    """A message, or None at the end of the stream."""
    start = stream.read(4)
    if len(start) < 4:
        return None
    text = stream.read(struct.unpack("<I", start)[0])
    try:
        header = json.loads(text)
    except ValueError:  # cut off
        return None
    if "shape" not in header:
        return header, None
    array = np.empty(header.pop("shape"), header.pop("dtype"))
    filled = stream.readinto(array.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
    return (header, array) if filled == array.nbytes else None


def _data_bytes(pid: int) -> int:
    """Bytes that a process has allocated; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmData:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def _limit(pid: int, size: int) -> None:
    """Limits what a process may allocate, where the system can."""
    if size and hasattr(resource, "prlimit"):
        try:
            hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
            soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
            resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
        except ProcessLookupError:  # it ended; what is waited for says so
            pass
