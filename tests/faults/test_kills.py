"""kill -9 at random moments, during saves too: started again, a run ends with the bits of an uninterrupted one."""

import random
import time
from pathlib import Path

import pytest
from harness import Figure, Launch, digests, distil, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import test_a_stopped_run_ends_with_the_same_bits as same_bits

# Everything that holds state: dropout, BatchNorm, a moving average, the best weights so far, a schedule with warm-up.
SETTINGS = {
    "baseline__enabled": "false",
    "export__enabled": "false",
    "optimizer__ema_decay": 0.8,
    "optimizer__warmup_steps": 3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 1,
    "num_sample_images": 1,
    "timeout_seconds": 60,
    "student__options": {
        "decoder_pyramid_channels": 16,
        "decoder_segmentation_channels": 32,
        "decoder_dropout": 0.5,
    },
}


def kills(count: int, world: int, folder: Path, seed: int = 0, workers: int = 0) -> Figure:
    """Kills runs at `count` random moments, each run up to three times, and compares what they end with.

    One kill in three is aimed at a save: it comes within a millisecond of a temporary folder's appearance. With
    several ranks either all of them are killed or one; the others then have to end by themselves.
    """
    rng = random.Random(seed * 100 + world)
    settings = SETTINGS | {"data__num_workers": workers}
    folder.mkdir(parents=True, exist_ok=True)
    run(print, ("warm",), 1, folder / "warm.log")  # else the imports count
    start = time.monotonic()
    run(distil, (folder / "whole", settings), world, folder / "whole.log")
    seconds, whole = time.monotonic() - start, digests(folder / "whole")
    done = trials = identical = saves = refused = 0
    failures = []
    while done < count:
        trials += 1
        name = f"{trials:03}"
        log = folder / f"{name}.log"
        for _ in range(min(rng.randint(1, 3), count - done)):
            launch = Launch(distil, (folder / name, settings), world, log)
            _wait_for_the_moment(launch, folder / name, rng, seconds)
            if not launch.running:
                break  # it was faster
            launch.kill(rng.choice([None, [rng.randrange(world)]]))
            saves += any((folder / name).rglob(".*.tmp"))
            done += 1
            try:
                launch.wait(90)
            except TimeoutError as error:
                failures.append(f"{name}: {error}")
        try:
            printed = run(distil, (folder / name, settings), world, log)
            refused += printed.count("refused")
            if digests(folder / name) == whole:
                identical += 1
            else:
                failures.append(f"{name}: other bits")
        except (RuntimeError, TimeoutError) as error:
            failures.append(f"{name}: {error}")
    return Figure(
        f"kill -9 at random moments, {world} process(es): resumed to identical bits",
        f"{count} / {count}",
        f"{done - len(failures)} / {done}",
        not failures and identical == trials,
        failures,
        {"runs": trials, "runs_identical": identical, "kills_during_a_save": saves, "states_refused": refused},
    )


def _wait_for_the_moment(launch: Launch, folder: Path, rng: random.Random, seconds: float) -> None:
    if rng.random() < 2 / 3:
        time.sleep(rng.uniform(0, seconds))
        return
    end = time.monotonic() + rng.uniform(0, seconds)
    while launch.running and time.monotonic() < end:
        time.sleep(0.005)  # not to take its processor from it
    stages = ("training/teacher", "training/student", ".")
    while launch.running:
        if any(any((folder / stage).glob(".*.tmp")) for stage in stages):
            time.sleep(rng.uniform(0, 0.001))
            return


@pytest.mark.parametrize("world", [1, 2])
def test_a_few_kills(tmp_path, world):
    figure = kills(3, world, tmp_path)
    assert figure.ok, figure.failures


def test_the_last_weights_are_the_same_too(tmp_path):
    same_bits(tmp_path, {"optimizer__ema_decay": 0.8, "keep": "last"})  # the best may be older than what was forgotten


def test_no_step_shows_twice_in_tensorboard(tmp_path):
    settings = SETTINGS | {"teacher__max_train_steps": 400, "checkpointing_steps": 50, "eval_steps": 500}
    launch = Launch(distil, (tmp_path / "run", settings), 1, tmp_path / "log")
    while not any((tmp_path / "run" / "training" / "teacher").glob("checkpoint-*50")):
        assert launch.running, launch.output()
        time.sleep(0.02)  # not to take its processor from it
    time.sleep(1)  # steps that are done again, and long enough for a file of another second
    launch.kill()
    run(distil, (tmp_path / "run", settings), 1, tmp_path / "again")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "teacher"), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert len(steps) > 300
    assert steps == sorted(set(steps))


def test_kills_with_workers(tmp_path):
    figure = kills(2, 1, tmp_path, workers=2)
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
def test_a_hundred_kills(tmp_path, world):
    figure = kills(100, world, tmp_path)
    assert figure.ok, figure.failures
