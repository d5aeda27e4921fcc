"""What can be refused is refused before anything is trained, not hours later."""

import pytest
from conftest import tiny_config

from distill import models
from distill.errors import ConfigError
from distill.pipeline import distil


def nothing_is_trained(folder) -> bool:
    return not any((folder / name).exists() for name in ("training", "teacher", "baseline", "student"))


@pytest.mark.parametrize("setting", ["teacher__checkpoint", "teacher__more"])
def test_a_teacher_that_is_not_there(tmp_path, setting):
    value = f"[{tmp_path / 'nowhere'}]" if setting == "teacher__more" else tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=r"teacher\.checkpoint: .*nowhere is not there; expected a run, a folder"):
        distil(tiny_config(tmp_path / "run", **{setting: value}))
    assert nothing_is_trained(tmp_path / "run")


def test_a_further_teacher_of_other_classes(tmp_path):
    wanted = tiny_config(tmp_path / "run").teacher
    models.save(models.build(wanted, ["a", "b"]), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other: was trained for the classes \['a', 'b'\]"):
        distil(tiny_config(tmp_path / "run", teacher__more=f"[{tmp_path / 'other'}]"))
    assert nothing_is_trained(tmp_path / "run")


def test_a_students_encoder_that_cannot_be_downloaded(tmp_path, monkeypatch):
    build = models.build

    def offline(wanted, *more):
        if wanted.encoder_weights:
            raise ConfigError("encoder_weights: no route to host")
        return build(wanted, *more)

    monkeypatch.setattr(models, "build", offline)
    with pytest.raises(ConfigError, match="no route to host"):
        distil(tiny_config(tmp_path / "run", student__encoder_weights="imagenet"))
    assert nothing_is_trained(tmp_path / "run")


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_it_is_said_which_network_cannot_be_built(tmp_path, name):
    with pytest.raises(ConfigError, match=f"^{name}: arch: 'unett' is not one of"):
        distil(tiny_config(tmp_path / "run", **{f"{name}__arch": "unett"}))
