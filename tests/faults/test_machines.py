"""Two machines without a common disk: two launchers on loopback, each in a folder of its own."""

import pytest
from machines import WAYS, machines


@pytest.mark.parametrize("name", ["torchrun", "data that only one has"])
def test_machines_need_no_common_disk(tmp_path, name):
    figure = machines([name], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
@pytest.mark.parametrize("name", WAYS)
def test_every_way_with_two_machines(tmp_path, name):
    figure = machines([name], tmp_path)
    assert figure.ok, figure.failures
