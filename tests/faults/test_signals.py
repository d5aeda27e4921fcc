"""Signals to real launchers: all processes stop at one step, that step is saved, and going on gives the same bits.

And waiting has a limit: a process or worker that is stuck ends the run, with its name.
"""

import os
import signal

import pytest
from harness import Launch, run, until
from signals import SCENARIOS, signals
from waits import WAITS, long_action, waits

from distill.training.rank_failures import name_failed_ranks

pytestmark = pytest.mark.xdist_group("clock")  # watches the clock, and starts processes of its own


def test_the_launcher_of_one_process_passes_nothing_on_and_the_run_still_stops(tmp_path):
    figure = signals(["SIGTERM to accelerate launch, one process"], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.parametrize("name", ["one stuck process of three", "a killed process with the store", "a stuck worker"])
def test_waiting_has_a_limit(tmp_path, name):
    figure = waits([name], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_signal(tmp_path, name):
    figure = signals([name], tmp_path)
    assert figure.ok, figure.failures


def test_an_action_on_the_main_process_may_take_longer_than_an_exchange(tmp_path):
    assert "error" not in run(long_action, (tmp_path, 5), 2, tmp_path / "log")


def test_a_main_process_that_is_stuck_in_an_action_is_named(tmp_path):
    launch = Launch(long_action, (tmp_path, 60), 2, tmp_path / "log")
    until(lambda: (tmp_path / "begun").exists(), 60)
    os.kill(launch.ranks[0].pid, signal.SIGSTOP)
    launch.ranks[1].join(30)
    code, output = launch.ranks[1].exitcode, launch.output()
    launch.kill()
    assert code == 1
    assert "error: process 0 does not answer (waited timeout_seconds 2 s)" in output


def test_an_error_of_its_own_is_not_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match=r"^shape$"), name_failed_ranks(1):
        raise RuntimeError("shape")


@pytest.mark.faults
@pytest.mark.parametrize("name", WAITS)
def test_every_wait_has_a_limit(tmp_path, name):
    figure = waits([name], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.parametrize(
    "said",
    [
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation",
        "Application timeout caused pair closure",  # what the next exchange says after that
    ],
)
def test_every_timeout_of_gloo_is_one(said, monkeypatch):
    monkeypatch.setattr("distill.training.rank_failures.failed_ranks", lambda waited: ([1], waited))
    with (
        pytest.raises(ConnectionError, match=r"^process 1 does not answer .*timeout_seconds 6 s"),
        name_failed_ranks(6),
    ):
        raise RuntimeError(said)
