"""How long teacher and student take for an image, and how large they are.

All contenders take turns in one run, so that a busy machine slows all of them alike; medians are compared.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from distill.deployed import read_onnx
from distill.models import Network, count_flops, count_parameters

Step = Callable[[], object]


def latencies(
    networks: Mapping[str, Network],
    files: Mapping[str, Path],
    image: np.ndarray,
    threads: Sequence[int],
    repeat: int = 20,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Milliseconds from a raw image to its mask, batch 1, on the CPU.

    Args:
        networks: to be run by torch, by name.
        files: to be run by onnxruntime, by name.
        image: uint8 `[H, W, 3]`.
        threads: numbers of threads to measure with.
        repeat: turns of each contender.
        compiled: also run the networks through `torch.compile` (its first call takes a minute).

    Returns:
        A dict a contender and number of threads: `name`, `engine` (`eager`, `compiled`, `onnxruntime`), `threads`,
        `milliseconds` (median), `fastest`.
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
            for (name, engine), times in _in_turns(steps, repeat).items():
                milliseconds = {"milliseconds": 1e3 * statistics.median(times), "fastest": 1e3 * min(times)}
                rows.append({"name": name, "engine": engine, "threads": count} | milliseconds)
    finally:
        torch.set_num_threads(before)
    return rows


def sizes(networks: Mapping[str, Network], files: Mapping[str, Path], size: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Parameters, FLOPs for one image of `size` (2 a multiply-add) and bytes of the files, by name."""
    found: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        found[name] = {"params": count_parameters(network), "flops": count_flops(network, size)}
    for name, path in files.items():
        found.setdefault(name, {})["bytes"] = path.stat().st_size
    return found


def _in_turns(steps: Mapping[tuple[str, str], Step], repeat: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every turn, after two turns to warm up."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(-2, repeat):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 0:
                times[key].append(time.perf_counter() - start)
    return times


def _torch_step(network: Any, image: np.ndarray) -> Step:
    batch = torch.tensor(image[None]).permute(0, 3, 1, 2)

    @torch.no_grad()
    def step() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's
            return network(batch).upsampled().max(1).indices

    return step


def _onnx_step(path: Path, image: np.ndarray, threads: int) -> Step:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for the next image by spinning would take the core from whoever's turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(read_onnx(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image[None]}
    return lambda: session.run(["mask"], feed)
