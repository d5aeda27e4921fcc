"""Seconds that outlive a kill."""

import time
from pathlib import Path

from distill.training.times import AskingTimes, Stopwatch


def test_seconds_go_on_from_the_step_that_is_resumed_and_count_what_is_done_again_once(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def steps(watch: Stopwatch, first: int, last: int, seconds: float) -> None:
        for step in range(first, last + 1):
            watch.start()
            clock[0] += seconds
            watch.stop()
            clock[0] += 50  # validation
            watch.save(step)

    watch = Stopwatch(tmp_path / "times" / "a.json")
    steps(watch, 1, 4, 2.0)
    again = Stopwatch(tmp_path / "times" / "a.json")
    again.resume(3)
    assert again.seconds == 6.0
    steps(again, 4, 5, 1.0)
    assert Stopwatch(tmp_path / "times" / "a.json").known == {"1": 2.0, "2": 4.0, "3": 6.0, "4": 7.0, "5": 8.0}


def test_what_is_not_known_stays_unknown(tmp_path):
    watch = Stopwatch(tmp_path / "a.json")
    watch.resume(3)
    watch.start()
    watch.stop()
    watch.save(4)
    assert watch.seconds is None
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "a.json").write_text("{")
    assert Stopwatch(tmp_path / "a.json").known == {}
    memory = Stopwatch()
    memory.start()
    memory.stop()
    memory.save(1)
    assert memory.seconds > 0


def test_answers_are_timed_by_the_folder_that_they_go_to(tmp_path):
    first, second = AskingTimes(tmp_path), AskingTimes(tmp_path)
    first.add(Path("a"), 10, 5.0)
    first.add(Path("a"), 10, 5.0)
    second.add(Path("a"), 20, 2.0)
    second.add(Path("b"), 1, 9.0)
    assert first.per_image(Path("a")) == 12 / 40
    assert first.per_image(Path("b")) == 9
    assert first.per_image(Path("c")) is None
