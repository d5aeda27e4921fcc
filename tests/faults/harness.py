"""What the figures share: a line of the board, and processes forked from one that has imported everything.

A launch costs its work and not its imports, so that a hundred of them are affordable. Its ranks see what `torchrun`
would give them; there is no agent beside them, and who wants one killed has to end the others.
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "helpers", ROOT / "tests" / "faults"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402

torch.set_num_threads(1)  # before anything is computed: a pool of threads does not survive a fork

from conftest import tiny_config  # noqa: E402
from PIL import Image  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch.distributed import TCPStore  # noqa: E402

from distill import cli  # noqa: E402
from distill.batch import VOID  # noqa: E402
from distill.data import open_splits  # noqa: E402

SPEED = "train/images_per_second"
CAMVID_VOID = 11
PATIENCE_SECONDS = 600  # for a launch that should end by itself
_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(["warm"])


@dataclass
class Figure:
    """A line of the board.

    Attributes:
        name: what was measured.
        must: what it must reach.
        reached: what it reached.
        ok: whether that is enough.
        failures: a line each.
        details: further numbers.
    """

    name: str
    must: str
    reached: str
    ok: bool
    failures: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Launch:
    """The ranks of one launch, running.

    Args:
        function: what every rank runs, importable by name; what it returns is its exit code.
        arguments: of the function.
        world: number of ranks.
        log: where stdout and stderr of all of them go.
        environment: variables besides those of the launcher.
        agent: keep the store at which the ranks meet, as torchrun does; else rank 0 has it.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        arguments: Sequence[Any],
        world: int,
        log: Path,
        environment: dict[str, str] | None = None,
        agent: bool = True,
    ):
        _start_warm()
        self.log = log
        common: dict[str, Any] = dict(environment or {})
        if world > 1:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            common |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "TORCHELASTIC_USE_AGENT_STORE": agent}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port if agent else free_port()}
        self.ranks = []
        atexit.register(self.kill)  # else what a figure that crashed left would be waited for
        for rank in range(world):
            own = common | ({"RANK": rank, "LOCAL_RANK": rank} if world > 1 else {})
            process = _warm.Process(target=_rank, args=(own, log, function, arguments))
            process.start()
            self.ranks.append(process)

    @property
    def running(self) -> bool:
        """Whether some rank is."""
        return any(rank.is_alive() for rank in self.ranks)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> list[int]:
        """Exit codes; ranks that are still there after that time are killed, and the message says so."""
        end = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, end - time.monotonic()))
        if stuck := [i for i, rank in enumerate(self.ranks) if rank.is_alive()]:
            self.kill()
            raise TimeoutError(f"rank {stuck} still ran after {seconds:.0f} s: {self.output()[-500:]}")
        return [int(rank.exitcode or 0) for rank in self.ranks]

    def kill(self, which: Sequence[int] | None = None) -> None:
        """SIGKILL to some ranks, or to all."""
        for i, rank in enumerate(self.ranks):
            if which is None or i in which:
                rank.kill()
        for i, rank in enumerate(self.ranks):
            if which is None or i in which:
                rank.join()

    def output(self) -> str:
        """What all ranks printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(
    function: Callable[..., int | None],
    arguments: Sequence[Any],
    world: int,
    log: Path,
    environment: dict[str, str] | None = None,
) -> str:
    """Launches, waits, and returns what was printed; a rank that fails is an error."""
    launch = Launch(function, arguments, world, log, environment)
    codes = launch.wait()
    if any(codes):
        raise RuntimeError(f"exit codes {codes}: {launch.output()[-2000:]}")
    return launch.output()


def distil(folder: Path, settings: dict[str, Any]) -> int:
    """A whole run in this process, as the script does it; exit code."""
    return cli.run_here(tiny_config(folder, **settings))


def draw_camvid(root: Path, unlabeled: int = 0) -> None:
    """Drawn scenes as files in CamVid's layout; the first images in other colors, without masks, in `more`."""
    splits = open_splits(tiny_config(root).data)
    for name, dataset in (("train", splits.train), ("val", splits.val)):
        for part in (name, f"{name}annot"):
            (root / part).mkdir(parents=True)
        for i in range(len(dataset)):
            image, mask = dataset.read(i)
            Image.fromarray(image).save(root / name / f"{name}_{i}.png")
            mask[mask == VOID] = CAMVID_VOID
            Image.fromarray(mask).save(root / f"{name}annot" / f"{name}_{i}.png")
    (root / "more").mkdir()
    for i in range(unlabeled):
        Image.fromarray(255 - splits.train.read(i)[0]).save(root / "more" / f"{i}.png")


def digests(folder: Path) -> dict[str, str]:
    """Hashes of what a run ends with."""
    names = ("teacher/model.safetensors", "student/model.safetensors", "results.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def everything(folder: Path) -> dict[str, Any]:
    """All that a run leaves, file by file, byte for byte.

    Two kinds of files hold what differs by right: `.lock` the number of a process, TensorBoard's files times. Of these
    every point, picture and text counts, but for speeds.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and any(path.glob("events.out.tfevents.*")):
            events = EventAccumulator(str(path), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0))
            events.Reload()
            tags = events.Tags()
            found |= {f"{name}: {tag}": [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
            pictures = {tag: events.Images(tag) for tag in tags["images"]}
            found |= {f"{name}: {tag}": [(e.step, e.encoded_image_string) for e in pictures[tag]] for tag in pictures}
            texts = {tag: events.Tensors(tag) for tag in tags["tensors"]}
            # Of texts it hides none that were written again: here, as for points, the last of a step counts.
            found |= {f"{name}: {tag}": {e.step: e.tensor_proto.string_val for e in texts[tag]} for tag in texts}
            found[f"{name}: {SPEED}"] = [step for step, _ in found[f"{name}: {SPEED}"]]
        elif path.is_file() and name != ".lock" and not path.name.startswith("events.out.tfevents."):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def until(condition: Callable[[], bool], seconds: float, *processes: subprocess.Popen) -> None:
    """Waits for it; an error if it takes too long or one of the processes has ended before."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            raise TimeoutError(f"waited in vain for {seconds} s")
        time.sleep(0.02)  # not to take their processor from them


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(environment: dict[str, Any], log: Path, function: Callable, arguments: Sequence[Any]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for workers, as in any other process
    os.environ.update({key: str(value) for key, value in environment.items()})
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.exit(function(*arguments))


def _start_warm() -> None:
    from multiprocessing.forkserver import ensure_running

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # else it could not import this module
    os.environ["OMP_NUM_THREADS"] = "1"
    ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
