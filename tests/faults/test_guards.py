"""Every guard is worth its lines: taken out of a copy of the code, some test turns red."""

import pytest
from guards import GUARDS, guards
from harness import ROOT


def test_every_guard_stands_in_the_source_once():
    moved = [guard.name for guard in GUARDS if (ROOT / "distill" / guard.file).read_text().count(guard.text) != 1]
    assert not moved
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


def test_a_guard_taken_out_is_noticed(tmp_path):
    figure = guards(["space is asked for"], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
def test_no_guard_is_idle(tmp_path):
    figure = guards([guard.name for guard in GUARDS], tmp_path)
    assert figure.ok, "\n".join(figure.failures)
