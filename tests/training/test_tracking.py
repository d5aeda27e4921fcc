"""Points of a run that was stopped and went on, each once, whatever the clock says."""

import time

import pytest
from conftest import tiny_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import run_of

from distill.training.tracking import Tracker


@pytest.mark.parametrize("hours", [[1, 0], [3, 2, 2, 0], [0, 0, 0, 0], [0, 1, 2]])
def test_a_clock_that_is_set_back_hides_nothing(tmp_path, monkeypatch, hours):
    clock = time.time
    for part, hour in enumerate(hours):
        monkeypatch.setattr(time, "time", lambda hour=hour: clock() + 3600 * hour)
        run = run_of(tiny_config(tmp_path))
        tracker = Tracker(run.accelerator, "student", first_step=2 * part + 1)
        for step in range(2 * part + 1, 2 * part + 4):  # the last one is done again
            tracker.scalars({"train/loss": part}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "student"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 2 * len(hours) + 2))
    last = [event.value for event in events.Scalars("train/loss")][-3:]
    assert last == [len(hours) - 1] * 3
