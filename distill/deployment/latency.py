"""How long teacher and student take for an image, and how large they are.

All contenders take turns in one run, so that a busy machine slows all of them alike; medians are compared.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import onnxruntime as ort
import torch

from distill.config.schema import ExportConfig
from distill.deployment.onnx_export import write_onnx
from distill.deployment.runtime import read_onnx
from distill.models.network import Network, count_flops, count_parameters
from distill.storage import OPTIONAL, Record

Step = Callable[[], object]
RATIOS = (
    ("teacher / student, onnxruntime", "teacher", "student"),
    ("student / student, 8 bits", "student", "student, 8 bits"),
    ("teacher / student, 8 bits", "teacher", "student, 8 bits"),
)


@dataclass
class Latency(Record):
    """How long one contender takes for an image.

    Attributes:
        name: the contender's.
        engine: `eager`, `compiled` or `onnxruntime`.
        threads: that it ran on.
        milliseconds: the median.
        fastest: likewise in milliseconds.
    """

    name: str
    engine: str
    threads: int
    milliseconds: float
    fastest: float


@dataclass
class Size(Record):
    """How large a network or a file is: parameters, FLOPs for one image (2 a multiply-add), bytes."""

    params: int | None = field(default=None, metadata=OPTIONAL)
    flops: int | None = field(default=None, metadata=OPTIONAL)
    bytes: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(kw_only=True)
class Benchmark(Record):
    """Teacher and student beside each other, and under which conditions.

    Attributes:
        rows: a contender and number of threads each.
        ratios: name → threads → how many times faster.
        sizes: by contender.
        size: `[H, W]` of the image.
        repeat: turns of each contender.
        clock: `CPU` or `wall`.
        cpu: what the processor calls itself.
        versions: of the libraries.
        made_from: the hashes of the files.
        sha256: of the student's ONNX file.
    """

    rows: list[Latency]
    ratios: dict[str, dict[str, float]]
    sizes: dict[str, Size]
    size: list[int]
    repeat: int
    clock: str
    cpu: str
    versions: dict[str, str]
    made_from: dict[str, Any] | None = field(default=None, metadata=OPTIONAL)
    sha256: str | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """See `Record.from_json`."""
        rows = [Latency.from_json(row) for row in values["rows"]]
        sizes = {name: Size.from_json(size) for name, size in values["sizes"].items()}
        return super().from_json({**values, "rows": rows, "sizes": sizes})


def benchmark(
    networks: Mapping[str, Network],
    files: Mapping[str, Path],
    image: np.ndarray,
    threads: Sequence[int],
    repeat: int = 20,
    compiled: bool = False,
    cpu_time: bool = False,
) -> Benchmark:
    """Teacher and student beside each other, in torch and in onnxruntime.

    Args:
        networks: `teacher` and `student`, on the CPU.
        files: ONNX files: `student` and, if there is one, `student, 8 bits`; the teacher's is made here.
        image: `[H, W, C]`, as stored.
        threads: numbers of threads to measure with.
        repeat: turns of each contender.
        compiled: also run the networks through `torch.compile`.
        cpu_time: measure the CPU time of this process instead, for a busy machine and one thread.
    """
    with TemporaryDirectory() as scratch:
        teacher, whole = Path(scratch) / "teacher.onnx", Path(scratch) / "whole.onnx"
        write_onnx(networks["teacher"].eval(), teacher, whole, image.shape[:2], ExportConfig(output="none"), {})
        files = {"teacher": teacher} | dict(files)
        clock = time.process_time if cpu_time else time.perf_counter
        rows = latencies(networks, files, image, threads, repeat, compiled, clock)
        found_sizes = sizes(networks, files, image.shape[:2])
    found = {(row.name, row.threads): row.milliseconds for row in rows if row.engine == "onnxruntime"}
    ratios = {
        name: {str(n): found[slow, n] / found[fast, n] for n in threads}
        for name, slow, fast in RATIOS
        if {slow, fast} <= set(files)
    }
    return Benchmark(
        rows=rows,
        ratios=ratios,
        sizes=found_sizes,
        size=list(image.shape[:2]),
        repeat=repeat,
        clock="CPU" if cpu_time else "wall",
        cpu=cpu_name(),
        versions={"torch": torch.__version__, "onnxruntime": ort.__version__},
    )


def latencies(
    networks: Mapping[str, Network],
    files: Mapping[str, Path],
    image: np.ndarray,
    threads: Sequence[int],
    repeat: int = 20,
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Milliseconds from a raw image to its mask, batch 1, on the CPU.

    Args:
        networks: to be run by torch, by name.
        files: to be run by onnxruntime, by name.
        image: `[H, W, C]`, as stored.
        threads: numbers of threads to measure with.
        repeat: turns of each contender.
        compiled: also run the networks through `torch.compile` (its first call takes a minute).
        clock: gives seconds.
    """
    before, rows = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            steps: dict[tuple[str, str], Step] = {}
            for name, network in networks.items():
                steps[name, "eager"] = _torch_step(network, image)
                if compiled:
                    steps[name, "compiled"] = _torch_step(torch.compile(network), image)
            for name, path in files.items():
                steps[name, "onnxruntime"] = _onnx_step(path, image, count)
            for (name, engine), times in _in_turns(steps, repeat, clock).items():
                rows.append(Latency(name, engine, count, 1e3 * statistics.median(times), 1e3 * min(times)))
    finally:
        torch.set_num_threads(before)
    return rows


def sizes(networks: Mapping[str, Network], files: Mapping[str, Path], size: Sequence[int]) -> dict[str, Size]:
    """Parameters, FLOPs for one image of `size` (2 a multiply-add) and bytes of the files, by name."""
    found = {name: Size(count_parameters(network), count_flops(network, size)) for name, network in networks.items()}
    for name, path in files.items():
        found.setdefault(name, Size()).bytes = path.stat().st_size
    return found


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _in_turns(
    steps: Mapping[tuple[str, str], Step], repeat: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every turn, after two turns to warm up."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(-2, repeat):
        for key, step in steps.items():
            start = clock()
            step()
            if turn >= 0:
                times[key].append(clock() - start)
    return times


def _torch_step(network: Any, image: np.ndarray) -> Step:
    batch = torch.tensor(image[None]).permute(0, 3, 1, 2)

    @torch.no_grad()
    def step() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's
            return network.decide(network(batch).upsampled())

    return step


def _onnx_step(path: Path, image: np.ndarray, threads: int) -> Step:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for the next image by spinning would take the core from whoever's turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(read_onnx(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image[None]}
    return lambda: session.run(["mask"], feed)
