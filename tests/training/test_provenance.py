"""What a run's folder holds is compared with what is asked for, and no record says what did not happen."""

import json
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from distill import models
from distill.config.schema import Config, flatten
from distill.errors import ConfigError
from distill.models.smp_files import FILES
from distill.training.provenance import RECORD, as_made, compare_folder, network_files, settings_of_stage
from distill.training.stage import STAGES, STUDENT

DATA = {"data.train_files": "8 files, sha256 12", "data.val_files": "4 files, sha256 34"}


def finish(folder: Path, *names: str, files=DATA, **settings) -> None:
    """Records of stages that were finished with these settings."""
    for name in names:
        (folder / name).mkdir(parents=True)
        made = settings_of_stage(tiny_config(folder, **settings), STAGES[name], 1, files)
        (folder / name / RECORD).write_text(json.dumps({"settings": made}))


def compare(folder: Path, allowed: str, underway=(), files=DATA, **settings) -> list[str]:
    config = tiny_config(folder, allow_change=f"[{allowed}]", **settings)
    begun = {name: settings_of_stage(tiny_config(folder), STAGES[name], 1, files) for name in underway}
    return compare_folder(config, 1, files, begun)


def test_nothing_is_allowed_to_change_once_all_is_finished(tmp_path):
    finish(tmp_path, "teacher", "baseline", "student")
    assert compare(tmp_path, "seed") == []
    for settings in ({"seed": 5}, {"kd__weight": 9}, {"per_device_train_batch_size": 4}):
        name = "global_batch_size" if "per_device_train_batch_size" in settings else next(iter(settings))
        with pytest.raises(ConfigError, match="here, but all that it reaches is finished"):
            compare(tmp_path, name.replace("__", "."), **settings)


def test_what_is_still_trained_may_change_and_what_was_made_before_is_told(tmp_path):
    finish(tmp_path, "teacher", "baseline")
    told = ["teacher was made with seed 0", "baseline was made with seed 0"]
    assert compare(tmp_path, "seed", seed=5) == told
    assert compare(tmp_path, "seed", ["student"], seed=5) == told
    finish(tmp_path, "student", seed=5)
    assert compare(tmp_path, "seed", seed=5) == told, "the same command, once more"
    with pytest.raises(ConfigError, match="seed 0 there, 6 here, but all"):
        compare(tmp_path, "seed", seed=6)


def test_settings_of_a_finished_teacher_reach_nothing_else(tmp_path):
    finish(tmp_path, "teacher")
    with pytest.raises(ConfigError, match=r"teacher\.learning_rate 0\.001 there, 0\.5 here, but all"):
        compare(tmp_path, "teacher.learning_rate", teacher__learning_rate=0.5)
    assert compare(tmp_path / "other", "teacher.learning_rate", ["teacher"], teacher__learning_rate=0.5) == []


def test_a_stage_that_is_not_wanted_is_not_waited_for(tmp_path):
    finish(tmp_path, "teacher", "student")
    with pytest.raises(ConfigError, match="seed 0 there, 5 here, but all"):
        compare(tmp_path, "seed", ["baseline"], seed=5, baseline__enabled=False)
    assert len(compare(tmp_path, "seed", seed=5)) == 2
    assert len(compare(tmp_path, "seed", ["int8"], seed=5, baseline__enabled=False)) == 2


def test_other_data_may_be_scored_on_when_all_is_finished(tmp_path):
    finish(tmp_path, "teacher", "baseline", "student")
    files = DATA | {"data.val_files": "5 files, sha256 56"}
    with pytest.raises(ConfigError, match=r"data\.val_files '4 files, sha256 34' there, '5 files, sha256 56' here"):
        compare(tmp_path, "seed", files=files)
    told = compare(tmp_path, "data.val_files", files=files)
    assert told[0] == "teacher was made with data.val_files '4 files, sha256 34'"


def test_other_settings_of_a_state_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training/teacher: was made with other settings \(seed 0 there, 5 here\)"):
        compare(tmp_path, "kd.weight", ["teacher"], seed=5)


def test_records_without_fingerprints_are_not_compared(tmp_path):
    finish(tmp_path, "teacher", "baseline", "student", files={})
    assert compare(tmp_path, "") == []


def test_settings_as_they_were(tmp_path):
    made = tiny_config(tmp_path, seed=5, kd__weight=2.0, data__crop_size=[32, 32])
    settings = json.loads(json.dumps(settings_of_stage(made, STUDENT, 1)))
    assert as_made(tiny_config(tmp_path), settings) == made


def test_what_does_not_reach_a_stage_is_a_setting():
    for stage in STAGES.values():
        for prefix in stage.irrelevant:
            assert any(name.startswith(prefix) for name in flatten(Config())), f"{stage.name}: {prefix}"


def test_every_file_that_a_network_is_read_from_is_known_again(tmp_path):
    wanted = Config().student
    wanted.encoder_name = "tu-test_resnet"
    models.save(models.build(wanted, ["a", "b"]), tmp_path)
    (tmp_path / "albumentations_config_eval.json").write_text(
        '{"transform": {"__class_fullname__": "Compose", "transforms": []}}'
    )
    opened: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            opened.add(Path(arguments[0]).name)

    sys.addaudithook(watch)
    models.load(tmp_path, ["a", "b"], wanted.mean, wanted.std)
    assert opened - {"model.safetensors"} == set(network_files(tmp_path))
    assert len(network_files(tmp_path)) == 3
    assert network_files(tmp_path).keys() < set(FILES)
