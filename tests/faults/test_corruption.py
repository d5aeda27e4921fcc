"""A state on disk that is not what was written is never taken: the one before it is."""

import random
from pathlib import Path

import pytest
from harness import Figure
from test_checkpoint import damage
from test_train import run_of, tiny_config

from distill.training.checkpoint import Checkpoints
from distill.training.state import facts
from distill.training.trainer import train

KINDS = ("flip", "truncate", "zeros", "delete")


def corruptions(count: int, folder: Path, seed: int = 0) -> Figure:
    """Damages each file of a real training's last state in each way, in turn, at random places."""
    rng = random.Random(seed)
    run = run_of(tiny_config(folder, optimizer__ema_decay=0.8))
    train(run, "baseline", {})
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
        state = Checkpoints(states, {}, facts(run.accelerator), 2, notes.append).load()
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


def test_no_corrupted_state_is_taken(tmp_path):
    figure = corruptions(48, tmp_path)
    assert figure.ok, figure.failures
    assert len(figure.details["files"]) == 6


@pytest.mark.faults
def test_of_four_hundred_corrupted_states_none_is_taken(tmp_path):
    assert corruptions(400, tmp_path).ok
