"""A teacher's answers on disk that are another's, damaged, or half written: one clear line or repaired, never mixed."""

import pytest
from caches import NAMES, caches, damages

SAMPLE = ["another teacher", "the disk is full", "kill -9 while filling"]


def test_a_cache_is_refused_in_a_line_or_repaired_and_nothing_is_mixed(tmp_path):
    figure = caches(SAMPLE, tmp_path)
    assert figure.ok, "\n".join(figure.failures)


def test_no_damaged_file_of_a_cache_is_taken(tmp_path):
    figure = damages(96, tmp_path)
    assert figure.ok, "\n".join(figure.failures)
    assert len(figure.details["files"]) == 4
    assert figure.details["maps_read"] > 96 * 8  # and what the other files hold is


@pytest.mark.faults
def test_a_cache_in_every_way(tmp_path):
    figure = caches(NAMES, tmp_path)
    assert figure.ok, "\n".join(figure.failures)


@pytest.mark.faults
def test_of_two_thousand_damaged_files_none_is_taken(tmp_path):
    assert damages(2000, tmp_path).ok
