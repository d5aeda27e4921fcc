"""A state on disk that is not what was written is never taken: the one before it is."""

import random
from pathlib import Path

from conftest import tiny_config
from harness import Figure
from states import damage
from trainings import run_of

from distill.training.checkpoint import Checkpoints
from distill.training.stage import BASELINE
from distill.training.state import environment
from distill.training.trainer import Trainer

KINDS = ("flip", "truncate", "zeros", "delete")


def corruptions(count: int, folder: Path, seed: int = 0) -> Figure:
    """Damages each file of a real training's last state in each way, in turn, at random places."""
    rng = random.Random(seed)
    run = run_of(tiny_config(folder, optimizer__ema_decay=0.8))
    Trainer(run, BASELINE, {}).train()
    states = folder / "training" / "baseline"
    newest = states / "checkpoint-0000006"
    files = sorted(newest.iterdir())
    failures: list[str] = []
    for trial in range(count):
        path, kind = files[trial % len(files)], KINDS[trial // len(files) % len(KINDS)]
        whole, notes = path.read_bytes(), []
        while path.exists() and path.read_bytes() == whole:  # zeros over zeros do not count
            path.write_bytes(whole)
            damage(path, kind, rng)
        state = Checkpoints(states, {}, environment(run.accelerator), 2, notes.append).load()
        if state is None or state.step != 4 or not any(newest.name in note for note in notes):
            failures.append(f"{path.name}, {kind}: accepted")
        path.write_bytes(whole)
    return Figure(
        "checkpoints corrupted (bit flip, truncation, zeros, deletion; each file) and accepted",
        f"0 / {count}",
        f"{len(failures)} / {count}",
        not failures,
        failures,
        {"files": [path.name for path in files]},
    )
