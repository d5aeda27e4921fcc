"""kill -9 at random moments, during saves too: started again, a run ends with the bits of an uninterrupted one."""

import signal
import time

import pytest
from harness import Launch, distil, draw_camvid, run
from kills import JOB, SETTINGS, kills, tuning_that_dies, whole_job
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import same_bits


def test_a_killed_tuning_leaves_nothing_beside_the_student(graphs, tmp_path):
    draw_camvid(tmp_path / "data", unlabeled=4)
    place, settings = tmp_path / "run", JOB | {"data__root": str(tmp_path / "data")}
    launch = Launch(tuning_that_dies, (place, settings, graphs), 1, tmp_path / "log")
    assert launch.wait() == [-signal.SIGKILL], launch.output()
    left = [path.name for path in (place / "student").iterdir() if path.is_dir() or path.name.startswith(".")]
    assert not left
    (place / "student" / ".model.onnx.file.tmp").write_text("of another moment")
    run(whole_job, (place, settings, graphs), 1, tmp_path / "again")
    assert not [*place.rglob("*.tmp"), *(place / "student").glob("*/")]
    modes = {str(path): path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()}
    assert set(modes.values()) == {place.stat().st_mode & 0o666}, modes


def test_a_kill_of_one_of_two_processes(tmp_path):
    figure = kills(1, 2, tmp_path)
    assert figure.ok, figure.failures


def test_the_last_weights_are_the_same_too(tmp_path):
    same_bits(tmp_path, {"optimizer__ema_decay": 0.8, "keep": "last"})  # the best may be older than what was forgotten


def test_no_step_shows_twice_in_tensorboard(tmp_path):
    settings = SETTINGS | {"teacher__max_train_steps": 150, "checkpointing_steps": 20, "eval_steps": 150}
    launch = Launch(distil, (tmp_path / "run", settings), 1, tmp_path / "log")
    while not any((tmp_path / "run" / "training" / "teacher").glob("checkpoint-*20")):
        assert launch.running, launch.output()
        time.sleep(0.02)  # not to take its processor from it
    time.sleep(1)  # steps that are done again, and long enough for a file of another second
    launch.kill()
    run(distil, (tmp_path / "run", settings), 1, tmp_path / "again")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "teacher"), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert len(steps) > 100
    assert steps == sorted(set(steps))


def test_kills_with_workers(tmp_path):
    figure = kills(2, 1, tmp_path, workers=2)
    assert figure.ok, figure.failures


def test_a_kill_of_a_whole_job(tmp_path):
    figure = kills(1, 1, tmp_path, seed=2, job=True)  # in a save, early enough not to come too late
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
def test_kills_of_a_whole_job(tmp_path, world):
    figure = kills(20, world, tmp_path, job=True)
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
def test_a_hundred_kills(tmp_path, world):
    figure = kills(100, world, tmp_path)
    assert figure.ok, figure.failures
