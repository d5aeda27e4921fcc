"""Masks stay on their images, whatever moves them."""

import pytest
from alignment import ARGUMENTS, GEOMETRIC, LIMIT_PIXELS, REFUSED, alignment, offset

from distill.config.data import DataConfig
from distill.data import build_transform
from distill.errors import ConfigError


@pytest.mark.parametrize("name", GEOMETRIC)
def test_masks_lie_on_their_images_under_every_geometric_transform(name):
    assert offset(name, draws=8) < LIMIT_PIXELS


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_transforms_that_need_more_than_image_and_mask_are_refused(name):
    with pytest.raises(ConfigError, match=rf"data\.augmentations: {name} .*take another transform"):
        build_transform(DataConfig(augmentations=[{name: ARGUMENTS.get(name, {})}]))


@pytest.mark.faults
def test_the_largest_offset(tmp_path):
    assert alignment(60, tmp_path).ok
