"""What a run's settings leave to the data, where it has no labels."""

from dataclasses import replace

import pytest
from conftest import tiny_config

from distill.data import open_splits
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.training.from_data import settled


def without(splits, *names):
    return replace(splits, **{name: replace(getattr(splits, name), labeled=False) for name in names})


def test_without_labels_the_student_learns_from_the_teacher_alone(tmp_path):
    config = tiny_config(tmp_path, teacher__checkpoint="somewhere", lovasz__weight=0.5)
    splits = open_splits(config.data)
    assert settled(config, splits) == config
    found = settled(config, without(splits, "train", "val"))
    assert not found.baseline.enabled and found.keep == "last"
    weights = {name: getattr(found, name).weight for name in TERMS}
    assert {name for name, weight in weights.items() if weight} == {"kd"}
    scored = settled(config, without(splits, "train"))
    assert scored.keep == "best" and not scored.cross_entropy.weight


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"teacher\.checkpoint: images without labels train no teacher; name one that there is"),
        ({"dkd__weight": 1, "teacher__checkpoint": "x"}, r"dkd\.weight: this loss needs labels, .*; set 0"),
        ({"export__int8": True, "teacher__checkpoint": "x"}, r"export\.int8: INT8 files are admitted by their mIoU"),
    ],
)
def test_what_needs_labels_is_refused_without(tmp_path, settings, words):
    config = tiny_config(tmp_path, **settings)
    with pytest.raises(ConfigError, match=words):
        settled(config, without(open_splits(config.data), "train", "val"))
