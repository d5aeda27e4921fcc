"""What a run's settings leave to the data: the images' mean and std, and what is done without labels."""

import json
from dataclasses import replace

import pytest
from conftest import tiny_config
from PIL import Image

from distill.data import channel_statistics, open_splits
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.pipeline import distil
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


DEEP = {"data__synthetic_channels": 4, "data__synthetic_depth": "uint16"}


def test_other_images_than_rgb_are_normalized_as_they_are_measured(tmp_path):
    config = tiny_config(tmp_path, **DEEP, teacher__channels=[2, 0])
    splits = open_splits(config.data)
    found, measured = settled(config, splits), channel_statistics(splits)
    assert found.student.mean == pytest.approx(measured.mean, rel=1e-4)
    assert found.student.std == pytest.approx(measured.std, rel=1e-4)
    assert found.teacher.mean == pytest.approx([measured.mean[2], measured.mean[0]], rel=1e-4)
    given = replace(config, student=replace(config.student, mean=[1.0] * 4, std=[2.0] * 4))
    assert settled(given, splits).student.mean == [1.0] * 4
    usual = tiny_config(tmp_path, teacher__channels=[1])
    found, measured = settled(usual, open_splits(usual.data)), channel_statistics(open_splits(usual.data))
    assert found.student == usual.student  # ImageNet's
    assert found.teacher.mean == pytest.approx([measured.mean[1] / 255], rel=1e-4)


QUICK = {"baseline__enabled": False, "export__enabled": False, "num_sample_images": 1}


def test_deep_images_are_learned_from_and_the_run_is_known_again(tmp_path, capsys):
    settings = QUICK | DEEP | {"teacher__channels": [0, 1, 2]}
    results = distil(tiny_config(tmp_path / "run", **settings))
    taken = {name: json.loads((tmp_path / "run" / name / "input.json").read_text()) for name in ("teacher", "student")}
    assert [one["bands"] for one in taken.values()] == [[0, 1, 2], None]
    assert {(one["channels"], one["dtype"]) for one in taken.values()} == {(4, "uint16")}
    assert distil(tiny_config(tmp_path / "run", **settings)).student.mean_iou == results.student.mean_iou
    assert "student  is already there" in capsys.readouterr().out


def test_a_folder_of_images_and_a_teacher_are_enough(tmp_path, capsys):
    distil(tiny_config(tmp_path / "taught", **QUICK))
    config = tiny_config(tmp_path)
    splits = open_splits(config.data)
    for name, dataset in (("train", splits.train), ("val", splits.val)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(len(dataset)):
            Image.fromarray(dataset.read(i)[0]).save(tmp_path / "data" / name / f"{i}.png")
    data = {"format": "folders", "root": str(tmp_path / "data"), "classes": splits.classes}
    data |= {"train_images": "train", "train_masks": "null", "val_images": "val", "val_masks": "null"}
    settings = QUICK | {f"data__{key}": value for key, value in data.items()}
    results = distil(tiny_config(tmp_path / "run", **settings, teacher__checkpoint=tmp_path / "taught"))
    assert results.student.classes_present == 0 and 0 < results.student.agreement <= 1
    said = capsys.readouterr().out
    assert "agreement with the teacher is measured, not mIoU" in said and "| student |    – |" in said
    assert "teacher  says on 3 images: " in said and " of the most possible" in said
    same = "import torch\ndef build():\n    return torch.nn.Conv2d(3, 10, 1).requires_grad_(False)\n"
    (tmp_path / "same.py").write_text(same.replace(".req", ".apply(lambda m: m.weight.data.zero_()).req"))
    settings |= {"teacher__python": f"{tmp_path / 'same.py'}:build"}
    with pytest.raises(ConfigError, match=r"same answer for every pixel of 3 images\. .*teacher\.output.*allow_near"):
        distil(tiny_config(tmp_path / "blind", **settings))
    assert not (tmp_path / "blind" / "student").exists()
