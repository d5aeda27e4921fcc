"""The script as a person runs it, at a tiny size."""

import json
import re
import shutil

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY, flags, start_script, tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill import pipeline, storage
from distill.batch import UNLABELED
from distill.cli import run_here as main
from distill.config.parse import parse
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.metrics import Scores
from distill.pipeline import distil
from distill.training import teacher
from distill.training.trainer import Trainer


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_output_folder_holds_what_was_promised(finished):
    folder, printed = finished, (finished.parent / "printed").read_text()
    for name in ("config.yaml", "report.md", "results.json", "student/model.onnx", "student/README.md"):
        assert (folder / name).is_file(), name
    for stage in ("teacher", "baseline", "student"):
        assert smp.from_pretrained(str(folder / stage)) is not None
        assert (folder / stage / "albumentations_config_eval.json").is_file()
        assert list((folder / "tensorboard" / stage).glob("events*"))
    assert not (folder / "training").exists()
    assert "| student" in printed
    assert len(list((folder / "samples").iterdir())) == 3


@pytest.mark.parametrize("amx", [True, False, None])
def test_a_processor_on_which_bf16_is_slow_is_named(tmp_path, capsys, monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if amx is None else {"amx_bf16": amx})
    try:
        with pipeline.opened(tiny_config(tmp_path, mixed_precision="bf16"), lambda: False):
            assert ("--mixed_precision no is faster" in capsys.readouterr().out) is (amx is False)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_results_have_their_keys(finished):
    results = json.loads((finished / "results.json").read_text())
    for stage in ("teacher", "baseline", "student"):
        assert {"mean_iou", "iou", "pixel_accuracy", "params", "flops"} <= results[stage].keys()
        assert 0 <= results[stage]["mean_iou"] <= 1
        assert list(results[stage]["iou"]) == results["classes"]
    assert {"agreement", "gap_closed"} <= results["student"].keys()
    assert {"max_abs_diff", "argmax_agreement", "mean_iou", "shapes"} <= results["onnx"].keys()
    # The file was made after everything else was done with the network, which must not have changed it.
    assert results["onnx"]["mean_iou"] == pytest.approx(results["student"]["mean_iou"], abs=1e-5)
    assert results["teacher"]["params"] > 4 * results["student"]["params"]


def test_tensorboard_overlays_the_same_tags(finished):
    folder = finished / "tensorboard"
    tags = {}
    for stage in ("teacher", "baseline", "student"):
        events = EventAccumulator(str(folder / stage), size_guidance={"images": 0})
        events.Reload()
        tags[stage] = set(events.Tags()["scalars"])
        assert [e.step for e in events.Scalars("val/mIoU")] == [3, 6]
        assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert {t for t in tags["teacher"] if t.startswith("val")} == {t for t in tags["student"] if t.startswith("val")}
    assert {"compare/gap_mIoU", "compare/agreement", "train/kd", "train/pull/kd"} <= tags["student"]
    assert not any("kd" in tag for tag in tags["baseline"])
    assert any(tag.startswith("samples/") for tag in events.Tags()["images"])


def test_the_resolved_settings_run_again_and_skip_what_is_there(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("model.*")}
    results = (copy / "results.json").read_text()
    distil(parse(["--config", str(copy / "config.yaml"), f"--output_dir={copy}"]))
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("model.*")} == before
    assert (copy / "results.json").read_text() == results


@pytest.mark.parametrize("family", ["pixels", "maps", "features", "labels"])
def test_a_run_of_every_family_of_terms(finished, tmp_path, family):
    wanted = TINY | {"output_dir": tmp_path / "run", "teacher.checkpoint": finished, "baseline.enabled": False}
    wanted["export.enabled"] = False
    config = parse(["--config", str(ROOT / "configs" / f"terms_{family}.yaml"), *flags(wanted)])
    terms = [name for name in TERMS if getattr(config, name).weight]
    distil(config)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "student"))
    events.Reload()
    for name in terms:
        assert all(np.isfinite(event.value) for event in events.Scalars(f"train/{name}")), name


def test_images_without_labels_reach_the_student_alone(tmp_path, camvid):
    settings = {"data__format": "camvid", "data__root": camvid, "export__enabled": False}
    shutil.copytree(camvid / "train", camvid / "more")
    config = tiny_config(tmp_path / "run", data__unlabeled="more", teacher__allow_near_chance="true", **settings)
    seen: dict[str, list[float]] = {}
    train_step = Trainer.train_step

    def watched(trainer, step, micro_batches):
        seen.setdefault(trainer.stage.name, []).extend((m.mask == UNLABELED).any().item() for m in micro_batches)
        return train_step(trainer, step, micro_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        distil(config)
    assert {stage: any(shares) for stage, shares in seen.items()} == {
        "teacher": False,
        "baseline": False,
        "student": True,
    }


def test_other_settings_are_refused_and_nothing_is_overwritten(copy, capsys):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != ".lock"}
    assert main(tiny_config(copy, name="tiny", student__learning_rate=0.5)) == 1
    message = capsys.readouterr().err.strip()
    assert re.search(r"student\.learning_rate 0\.003 there, 0\.5 here", message)
    assert len(message.splitlines()) == 1
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_weights_that_were_changed_are_refused(copy):
    path = copy / "teacher" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError, match=r"teacher/model\.safetensors: is not the file that was written"):
        distil(tiny_config(copy, name="tiny"))


def test_a_teacher_from_another_run_is_used_and_scored(finished, tmp_path):
    folder = tmp_path / "second"
    config = tiny_config(folder, teacher__checkpoint=str(finished), baseline__enabled="false", export__enabled="false")
    results = distil(config)
    first = json.loads((finished / "results.json").read_text())
    del first["teacher"]["clipped_share"]  # of a training, which this run had none of
    assert results.teacher.to_json() == first["teacher"]
    assert results.student.gap_closed is None
    assert results.baseline is None
    events = EventAccumulator(str(folder / "tensorboard" / "teacher"))
    events.Reload()
    assert [e.step for e in events.Scalars("val/mIoU")] == [0, 3, 6]


def test_a_teacher_with_other_classes_is_refused(finished, camvid, tmp_path, capsys):
    config = tiny_config(
        tmp_path / "run", teacher__checkpoint=str(finished), data__format="camvid", data__root=str(camvid)
    )
    assert main(config) == 1
    assert "was trained for the classes" in capsys.readouterr().err


def test_a_teacher_near_chance_is_refused(finished, tmp_path, capsys, monkeypatch):

    monkeypatch.setattr(teacher, "NEAR_CHANCE", 100)
    assert main(tiny_config(tmp_path / "run", teacher__checkpoint=str(finished))) == 1
    message = capsys.readouterr().err
    assert "near chance" in message
    assert "class order" in message
    assert "teacher.allow_near_chance true" in message
    assert not (tmp_path / "run" / "student").exists()
    # The switch lets it through, and so does a teacher that has not seen every image once: it is a trial.
    for settings in (
        {"teacher__checkpoint": str(finished), "teacher__allow_near_chance": "true"},
        {"teacher__max_train_steps": 3},
    ):
        config = tiny_config(tmp_path / "ok", baseline__enabled="false", export__enabled="false", **settings)
        assert main(config) == 0
        said = capsys.readouterr().out
        assert "warning: teacher (" in said
        assert "model.onnx" not in said, "nothing was exported"
        shutil.rmtree(tmp_path / "ok")


@pytest.mark.parametrize(
    ("matrix", "good"),
    [
        ([[986_000, 4_000], [4_000, 6_000]], True),  # 1 % foreground, precision and recall 0.6
        ([[4_000, 986_000], [6_000, 4_000]], False),  # the same, its classes swapped
        ([[990_000, 0], [10_000, 0]], False),
        ([[891_000, 99_000], [9_000, 1_000]], False),
        ([[500, 300, 200], [300, 500, 200], [200, 200, 600]], True),
        ([[0, 900, 100], [100, 0, 900], [900, 100, 0]], False),
        ([[1_000, 0], [0, 0]], True),  # one class in the validation masks: nobody can tell
    ],
)
def test_good_teachers_of_thin_things_pass_and_useless_ones_do_not(matrix, good):
    scores = Scores(torch.tensor(matrix))
    if good:
        teacher.check_teacher(scores, "x")
    else:
        with pytest.raises(ConfigError, match="near chance"):
            teacher.check_teacher(scores, "x")


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    assert main(tiny_config(folder)) == 1
    assert "holds files that are not a run's" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.yaml.tmp"], []])
def test_a_run_cut_off_before_it_had_settings_starts(tmp_path, capsys, left):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("12")
    assert main(tiny_config(folder, teacher__learning_rate=1e15)) == 1
    assert "not finite at step 2" in capsys.readouterr().err, "it began to train"
    assert (folder / "config.yaml").is_file()


def test_settings_that_find_no_space_leave_the_old_ones_and_the_next_start_works(tmp_path, capsys, monkeypatch):
    settings = {"teacher__learning_rate": 1e15}

    def full(path):
        raise OSError(28, "No space left on device")

    for old in (None, "name: old\n"):
        folder = tmp_path / f"{bool(old)}"
        folder.mkdir()
        if old:
            (folder / "config.yaml").write_text(old)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "sync", full)
            assert main(tiny_config(folder, **settings)) == 1
        message = capsys.readouterr().err.strip()
        assert re.search(r"config\.yaml: could not be written \(No space left on device\); it needs", message)
        assert len(message.splitlines()) == 1
        assert (folder / "config.yaml").read_text() == old if old else not (folder / "config.yaml").exists()
        assert main(tiny_config(folder, **settings)) == 1
        assert "not finite at step 2" in capsys.readouterr().err


def test_two_runs_in_one_folder_the_second_is_refused(tmp_path, capsys):
    from distill.storage import lock

    folder = tmp_path / "run"
    held = lock(folder)
    (folder / "config.yaml").write_text("")
    assert main(tiny_config(folder)) == 1
    assert "another run is at work" in capsys.readouterr().err
    held.close()
    lock(folder).close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data__format": "camvid", "data__root": "/nowhere"}, "data.root: /nowhere is not a folder"),
        ({"student__arch": "fpnn"}, "arch: 'fpnn' is not one of"),
        ({"hint__weight": 1, "hint__layers": ["encoder.7"]}, "no layer 'encoder.7'"),
        ({"data__augmentations": [{"Nonsense": {}}]}, "Nonsense"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"cross_entropy__class_weights": [1, 2]}, "cross_entropy.class_weights: 2 numbers for 10 classes"),
        ({"num_processes": 2}, "2 processes were asked for, 1 runs; use: ACCELERATE_USE_CPU=true accelerate launch"),
    ],
)
def test_bad_settings_stop_before_anything_is_trained(tmp_path, capsys, settings, words):
    assert main(tiny_config(tmp_path / "run", **settings)) == 1
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run" / "teacher").exists()


def test_an_architecture_for_one_size_is_refused_before_anything_is_trained(camvid, tmp_path, capsys):
    with Image.open(camvid / "val" / "val_1.jpg") as image, Image.open(camvid / "valannot" / "val_1.png") as mask:
        image.resize((56, 48)).save(camvid / "val" / "val_1.jpg")
        mask.resize((56, 48), Image.Resampling.NEAREST).save(camvid / "valannot" / "val_1.png")
    settings = {"data__format": "camvid", "data__root": camvid, "student__arch": "pspnet", "student__options": {}}
    assert main(tiny_config(tmp_path / "run", **settings)) == 1
    message = capsys.readouterr().err.strip()
    assert "pspnet is exported for one size; the validation images have [40, 56] and [48, 56]" in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run" / "teacher").exists()


def test_two_processes_are_two(tmp_path):
    folder = tmp_path / "two"
    only = {"baseline__enabled": "false"}
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    run = start_script(folder, launcher=launcher, per_device_train_batch_size=1, export__enabled="false", **only)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("2 process(es) on cpu") == 1
    assert json.loads((folder / "results.json").read_text())["student"]["mean_iou"] >= 0


def test_a_launch_that_starts_fewer_processes_stops_with_the_right_command(tmp_path):
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    run = start_script(tmp_path / "run", launcher=launcher)
    assert run.returncode != 0
    assert (
        "2 processes were asked for, 1 runs; use: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in run.stderr
    )
