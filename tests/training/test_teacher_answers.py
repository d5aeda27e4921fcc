"""A run whose teacher is asked once: same bits after a stop, the answers of every step, refused where it cannot be."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, flags, start_script, tiny_config

from distill.batch import Outputs
from distill.cli import cache
from distill.config.networks import NetworkConfig
from distill.config.parse import load_config
from distill.config.schema import flatten
from distill.data import Dataset, Splits
from distill.errors import ConfigError, Stopped
from distill.losses import KD
from distill.models import build
from distill.models.asked import Asked
from distill.pipeline import distil, opened, run_stage
from distill.training.ensemble import Ensemble
from distill.training.objective import Objective
from distill.training.stage import STUDENT, TEACHER
from distill.training.teacher import Teacher
from distill.training.teacher_answers import ask, decide

QUICK = {"export__enabled": "false", "baseline__enabled": "false", "teacher__allow_near_chance": "true"}
WHOLE = {"data__crop_size": "[64, 96]", "data__augmentations": "[]"}  # crops that are the images


def weights(folder):
    return (folder / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_it_answers_as_the_network_does(tmp_path, dtype):
    config = tiny_config(tmp_path / "run", teacher__cache__dtype=dtype, **QUICK, **WHOLE)
    with opened(config) as run:
        network = run_stage(run, TEACHER)
        targets = ask(run, network)
        batch = next(run.train_batches(0, unlabeled=False, targets=targets))
    asked = Teacher(network)(batch)
    kept = targets.outputs(batch.teacher, (64, 96))
    assert kept.logits.shape == asked.logits.shape
    assert (kept.padded_size, kept.align_corners) == (asked.padded_size, asked.align_corners)
    t, s = (x.upsampled().log_softmax(1) for x in (asked, kept))
    assert float((t.exp() * (t - s)).sum(1).mean()) < {"int8": 1e-4, "float16": 1e-5}[dtype]


def test_a_stopped_run_ends_with_the_same_bits_and_asks_only_for_what_is_missing(tmp_path, capsys):
    distil(tiny_config(tmp_path / "whole", **QUICK))
    asked = iter([False] * 6 + [True])  # the teacher's steps, then between its answers

    def stop():
        return next(asked, False)

    with pytest.raises(Stopped, match="while the teacher was asked; rerun the same command"):
        distil(tiny_config(tmp_path / "stopped", **QUICK), stop)
    distil(tiny_config(tmp_path / "stopped", **QUICK))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    files = {p.name: p.read_bytes() for p in (tmp_path / "whole" / "teacher_cache").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "stopped" / "teacher_cache").iterdir()} == files
    shutil.rmtree(tmp_path / "stopped" / "student")
    capsys.readouterr()
    distil(tiny_config(tmp_path / "stopped", **QUICK))
    out = capsys.readouterr().out
    assert "asked once for 8 images" in out and "is asked once for each" not in out
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_damaged_file_is_named_and_asked_for_again(tmp_path, capsys):
    distil(tiny_config(tmp_path / "run", **QUICK))
    (path,) = (tmp_path / "run" / "teacher_cache").glob("*.safetensors")
    before, made = path.read_bytes(), weights(tmp_path / "run")
    path.write_bytes(before[:-3] + b"\x00\x01\x02")
    shutil.rmtree(tmp_path / "run" / "student")
    capsys.readouterr()
    distil(tiny_config(tmp_path / "run", **QUICK))
    assert f"{path}: is damaged; what it held is asked of the teacher again" in capsys.readouterr().out
    assert path.read_bytes() == before and weights(tmp_path / "run") == made


def test_two_processes_share_the_work_and_learn_the_same(tmp_path):
    settings = {**QUICK, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    one = start_script(tmp_path / "one", **settings, teacher__checkpoint="null")
    assert one.returncode == 0, one.stderr
    two = start_script(
        tmp_path / "two",
        launcher=("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
        **{**settings, "gradient_accumulation_steps": 1},
        teacher__checkpoint=tmp_path / "one",
        teacher__cache__dir=tmp_path / "cache",
    )
    assert two.returncode == 0, two.stderr
    assert "asked once for 8 images" in two.stdout, two.stdout
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert [p.read_bytes() for p in files] == [
        p.read_bytes() for p in (tmp_path / "one/teacher_cache").glob("*.safet*")
    ]


def test_another_teacher_in_a_shared_folder_is_refused(tmp_path):
    shared = {"teacher__cache__dir": tmp_path / "cache", **QUICK}
    distil(tiny_config(tmp_path / "a", **shared))
    with pytest.raises(ConfigError, match=r"cache holds the answers of another teacher \(teacher "):
        distil(tiny_config(tmp_path / "b", **shared, teacher__learning_rate=5e-4))
    distil(tiny_config(tmp_path / "c", **shared, student__learning_rate=5e-4))  # the same teacher, another student


def test_more_than_is_allowed_is_refused_before_the_teacher_is_asked(tmp_path, capsys):
    with pytest.raises(
        ConfigError, match=r"teacher\.cache\.max_gb: the answers for 8 images would make .* GB, more than"
    ):
        distil(tiny_config(tmp_path / "run", teacher__cache__max_gb=1e-6, **QUICK))
    assert not (tmp_path / "run" / "teacher_cache").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"teacher\.cache\.dir: .*file is not a folder"):
        distil(tiny_config(tmp_path / "run", teacher__cache__dir=tmp_path / "file", **QUICK))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ifvd__weight": 1}, "a loss needs its feature maps (decoder), which no cache holds"),
        ({"student__max_train_steps": 3}, "6 images are asked for, fewer than there are"),
        ({"teacher__cache__enabled": "false"}, "teacher.cache.enabled is false"),
    ],
)
def test_where_it_is_asked_at_every_step_the_run_says_why(tmp_path, settings, reason, capsys):
    with opened(tiny_config(tmp_path / "run", **settings)) as run:
        assert run.config.teacher.cache.enabled is False
    assert f"the teacher is asked at every step: {reason}" in capsys.readouterr().out


def test_what_cannot_be_is_refused_when_it_is_asked_for(tmp_path):
    config = tiny_config(tmp_path / "run", teacher__cache__enabled="true", hint__weight=1)
    with (
        pytest.raises(ConfigError, match=r"teacher\.cache\.enabled: a loss needs its feature maps .*; set it to false"),
        opened(config),
    ):
        pass


def own_data(augments):
    def read(index):
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        return image, np.full((32, 32), index % 2, np.uint8)

    def drawn(index):
        image, mask = read(index)
        return (255 - image if augments and torch.rand(()) < 0.9 else image), mask

    return Dataset([f"own {i}" for i in range(4)], read, [()] * 4, lambda index: None, drawn=drawn)


def test_data_that_augments_by_itself_is_asked_about_at_every_step(tmp_path):
    config = tiny_config(tmp_path / "run")
    for augments in (False, True):
        splits = Splits(own_data(augments), own_data(False), ["a", "b"], [(0, 0, 0), (1, 1, 1)])
        decided, why = decide(config, splits, Objective({"kd": KD()}, {"kd": 1.0}), 100)
        assert decided.teacher.cache.enabled is not augments
        assert ("gives other pixels each time" in why) is augments


def test_runs_from_before_the_cache_go_on_without_it(tmp_path):
    """Their states do not say how the teacher was asked: at every step."""
    settings = {**QUICK, "student__max_train_steps": 4}
    distil(tiny_config(tmp_path / "run", teacher__cache__enabled="false", **settings))
    record = tmp_path / "run" / "student" / "stage.json"
    text = record.read_text()
    record.write_text(re.sub(r'\n *"teacher\.cache\.[^\n]*', "", text))
    assert record.read_text() != text
    distil(tiny_config(tmp_path / "run", teacher__cache__enabled="false", **settings))
    with pytest.raises(ConfigError, match=r"teacher\.cache\.enabled False there, True here"):
        distil(tiny_config(tmp_path / "run", teacher__cache__enabled="true", **settings))


def test_every_setting_of_the_cache_is_known_by_its_dotted_name(tmp_path):
    names = {n for n in flatten(tiny_config(tmp_path)) if n.startswith("teacher.cache.")}
    assert names == {f"teacher.cache.{n}" for n in ("enabled", "dtype", "dir", "max_gb")}
    assert STUDENT.teacher == "teacher"


def test_many_machines_fill_one_folder(tmp_path, capsys):
    distil(tiny_config(tmp_path / "one", data__synthetic_train=70, student__max_train_steps=40, **QUICK))
    shared = {
        "teacher.checkpoint": tmp_path / "one",
        "teacher.cache.dir": tmp_path / "cache",
        "data.synthetic_train": 70,
        "teacher.allow_near_chance": "true",
    }
    arguments = flags(TINY | {"output_dir": str(tmp_path / "two")} | shared)
    for part in (2, 1, 3):
        assert cache([*arguments, "--shard", f"{part}/3"]) == 0
        assert len(list((tmp_path / "cache").glob("*.safetensors"))) == {2: 1, 1: 2, 3: 3}[part]
    assert not (tmp_path / "two").exists()
    files = {p.name: p.read_bytes() for p in (tmp_path / "one" / "teacher_cache").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()} == files
    capsys.readouterr()
    for wrong in ("0/3", "4/3", "x", ""):
        assert cache([*arguments, f"--shard={wrong}"]) == 2
        assert "is not of the form 3/16" in capsys.readouterr().err
    assert cache([*flags(TINY | {"output_dir": str(tmp_path / "two")}), "--shard=1/3"]) == 1
    assert "teacher.checkpoint: --shard needs a teacher that is there" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["fpn", "unet"])  # upsampled by corners, and not
def test_an_ensemble_is_the_mean_over_views(architecture):
    """Of a network that sees single pixels alone every view has the same to say, wherever the image is smooth."""
    torch.manual_seed(0)
    network = build(NetworkConfig(arch=architecture, encoder_name="tu-test_resnet"), ["a", "b", "c"]).eval()
    image = torch.randint(0, 256, (2, 3, 50, 70)).byte()
    alone = network(image)
    assert torch.allclose(Ensemble([network])(image).logits, alone.logits.log_softmax(1), atol=1e-5)
    both = Ensemble([network], flip=True)(image).upsampled().exp()
    mirrored = network(image.flip(3)).upsampled().softmax(1).flip(3)
    mean = (alone.upsampled().softmax(1) + mirrored) / 2
    assert (both - mean).abs().mean() < 0.02  # interpolated as probabilities, not as logits, and at the stride


def test_views_lie_where_the_image_does():
    """A network that gives each pixel's own values: mirrored and resized, they must be at their places."""

    class Identity(Asked):
        def forward(self, image, features=()):
            size = tuple(image.shape[2:])
            return Outputs(image.float() / 50, size, size, align_corners=False)

    network = Identity()
    network.model, network.classes, network.stride, network.mean, network.std = network, ["a", "b", "c"], 1, None, None
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = torch.stack([3 * y, 2 * x, 60 + y - x])[None]
    views = Ensemble([network], scales=[1.0, 0.5, 1.5], flip=True)(image).logits[..., 4:-4, 4:-4]
    assert torch.allclose(views, network(image).logits.log_softmax(1)[..., 4:-4, 4:-4], atol=1e-3)


def test_several_teachers_teach_through_the_cache_and_without(tmp_path, capsys):
    distil(tiny_config(tmp_path / "a", **QUICK))
    distil(tiny_config(tmp_path / "b", seed=1, **QUICK))
    several = {
        "teacher__checkpoint": tmp_path / "a",
        "teacher__more": f'["{tmp_path / "b"}"]',
        "teacher__weights": "[2, 1]",
        "teacher__tta__scales": "[0.75, 1]",
        "teacher__tta__flip": "true",
    }
    for name, kept in (("kept", "true"), ("asked", "false")):
        distil(tiny_config(tmp_path / name, teacher__cache__enabled=kept, **several, **QUICK))
        assert "2 network(s), 4 view(s) of each image, averaged: mIoU" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"weights \[0\.6.* there, \[0\.5, 0\.5\] here"):
        shared = {"teacher__cache__dir": tmp_path / "kept" / "teacher_cache"}
        distil(tiny_config(tmp_path / "c", **several | shared | {"teacher__weights": "[1, 1]"}, **QUICK))
    weights_of_b = tmp_path / "b" / "teacher" / "model.safetensors"
    shutil.copy(tmp_path / "a" / "teacher" / "model.safetensors", weights_of_b)
    with pytest.raises(ConfigError, match=r"asked/student: was made with other settings \(teacher\.more "):
        distil(tiny_config(tmp_path / "asked", teacher__cache__enabled="false", **several, **QUICK))
    with pytest.raises(ConfigError, match=r"teacher\.more: a loss needs feature maps \(decoder\)"):
        distil(tiny_config(tmp_path / "d", ifvd__weight=1, **several, **QUICK))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher.tta.scales": "[0.5]"}, r"teacher\.tta\.scales: \[0\.5\] must hold 1"),
        ({"teacher.weights": "[1, 2]"}, r"teacher\.weights: \[1\.0, 2\.0\] must hold 1 numbers"),
        ({"teacher.cache.max_gb": "0"}, r"teacher\.cache\.max_gb: 0\.0 must be above 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=settings)


def test_other_pixels_than_the_teacher_saw_are_refused(tmp_path):
    with opened(tiny_config(tmp_path / "run", **QUICK)) as run:
        run.splits.train = own_data(False)
        targets = ask(run, build(run.config.teacher, run.splits.classes).eval())
        assert next(run.train_batches(0, unlabeled=False, targets=targets)).teacher is not None
        run.splits.train = own_data(True)
        with pytest.raises(ConfigError, match=r"own \d: has other pixels than when the teacher was asked"):
            next(run.train_batches(0, unlabeled=False, targets=targets))
