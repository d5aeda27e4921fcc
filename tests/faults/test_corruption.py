"""A state on disk that is not what was written is never taken: the one before it is."""

import pytest
from corruption import corruptions


def test_no_corrupted_state_is_taken(tmp_path):
    figure = corruptions(48, tmp_path)
    assert figure.ok, figure.failures
    assert len(figure.details["files"]) == 6


@pytest.mark.faults
def test_of_four_hundred_corrupted_states_none_is_taken(tmp_path):
    assert corruptions(400, tmp_path).ok
