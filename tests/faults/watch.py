"""What a process and its children take of memory, and whether they ask the network, as the system counts it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PTRACER = 0x59616D61
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
UNWATCHED = "not watched: neither a namespace nor strace can be had here"


class Network:
    """Watches this process and its children from below Python, from now on.

    A network namespace without routes is best: the kernel counts what is asked of it, and nothing gets out. Else strace
    writes down the calls. Where neither can be had, `how` says so.

    Args:
        log: file for strace.
        namespace: try it first.
    """

    def __init__(self, log: Path, namespace: bool = True):
        self.log, self.tracer = log, None
        if namespace and _leave_network():
            self.how = "a namespace without routes"
        elif self._trace():
            self.how = "strace"
        else:
            self.how = UNWATCHED

    def asked(self) -> bool:
        """Whether anything was asked of a network, this machine's own included."""
        if self.tracer:
            self.tracer.terminate()
            self.tracer.wait()
            return "sa_family=AF_INET" in self.log.read_text(errors="replace")
        return self.how != UNWATCHED and _packets() > 0

    def _trace(self) -> bool:
        if not shutil.which("strace"):
            return False
        arguments = ["-f", "-qq", "-e", "trace=%network", "-o", str(self.log), "-p", str(os.getpid())]
        self.tracer = subprocess.Popen(["strace", *arguments], stderr=subprocess.DEVNULL)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, self.tracer.pid, 0, 0, 0)
        end = time.monotonic() + 10
        while self.tracer.poll() is None and time.monotonic() < end:
            if re.search(r"TracerPid:\s+[1-9]", Path("/proc/self/status").read_text()):
                return True
            time.sleep(0.05)
        self.tracer.kill()
        self.tracer.wait()
        self.tracer = None
        return False


def _leave_network() -> bool:
    """Moves this process into a namespace whose only interface is its own loopback."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    try:
        if libc.unshare(CLONE_NEWNET):  # without the right to do so, first into a namespace of users where it has it
            if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
                return False
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
        return _packets() == 0
    except (OSError, AttributeError):
        return False


def _packets() -> int:
    """Packets that were sent, or found no route, in the namespace of this process."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    counts = dict(zip(names, values, strict=True))
    counts |= dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return sum(int(counts.get(name, 0)) for name in ("OutRequests", "OutNoRoutes", "Ip6OutRequests", "Ip6OutNoRoutes"))


def peak_mb(pid: int | str = "self") -> float:
    """The most memory that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def children_peaks_mb(pid: int, peaks: dict[int, float]) -> None:
    """Adds to `peaks` what the children of a process, and theirs, have taken at most; strace is not counted."""
    with contextlib.suppress(OSError):  # it may end at any moment
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/comm").read_text().strip() != "strace" and (peak := peak_mb(child)):
                    peaks[child] = peak  # the last word: until it starts its program, a child has its parent's peak
                children_peaks_mb(child, peaks)
