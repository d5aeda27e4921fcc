"""Whole runs with teachers that this project did not make: asked once and at every step, resumed, told of."""

import json
import shutil

import foreign_teachers as tiny
import numpy as np
import pytest
import torch
from conftest import tiny_config

from distill import models
from distill.config.networks import TeacherConfig
from distill.data.synthetic.shapes import CLASSES
from distill.errors import ConfigError, Stopped
from distill.pipeline import distil, fill_cache

SCENES = list(CLASSES)
QUICK = {"export__enabled": "false", "baseline__enabled": "false", "teacher__allow_near_chance": "true"}
QUICK |= {"student__max_train_steps": 2, "eval_steps": 2, "teacher__cache__enabled": "true"}
WEIGHT = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


def weights(folder):
    return (folder / "student" / "model.safetensors").read_bytes()


def test_an_onnx_teacher_from_the_settings_to_the_card(tmp_path, capsys):
    path = tiny.onnx_file(tmp_path / "big.onnx", WEIGHT, size=(32, 48), metadata={"classes": json.dumps(SCENES)})
    settings = QUICK | {"teacher__checkpoint": path}
    results = distil(tiny_config(tmp_path / "run", **settings))
    out = capsys.readouterr().out
    assert "teacher  ONNX big.onnx: 10 classes, logits at full size, windows of 48×32, blended, mean/std from" in out
    assert "asked once for 8 images" in out
    assert results.teacher.module == "ONNX big.onnx" and results.teacher.params == 0
    folder = tmp_path / "run" / "teacher"
    assert sorted(p.name for p in folder.iterdir()) == ["foreign.json", "id2label.json", "stage.json"]
    assert json.loads((folder / "foreign.json").read_text())["known_by"].keys() == {"big.onnx"}
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "The teacher: ONNX big.onnx." in (tmp_path / "run" / "report.md").read_text()
    assert "from a `ONNX big.onnx`." in card and "0.00 M." not in card

    with pytest.raises(ConfigError, match="only a record of it is kept; name that teacher itself"):
        distil(tiny_config(tmp_path / "other", teacher__checkpoint=tmp_path / "run"))
    distil(tiny_config(tmp_path / "online", **settings | {"teacher__cache__enabled": "false"}))
    assert "the teacher is asked at every step" in capsys.readouterr().out
    distil(tiny_config(tmp_path / "run", **settings))
    assert "student  is already there" in capsys.readouterr().out
    tiny.onnx_file(path, WEIGHT + 1, size=(32, 48), metadata={"classes": json.dumps(SCENES)})
    with pytest.raises(ConfigError, match=r"run/teacher: was made with other settings \(teacher\.checkpoint "):
        distil(tiny_config(tmp_path / "run", **settings))


def test_a_run_with_a_foreign_teacher_is_resumed_to_the_bit(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Conv2d(3, 12, 1)\n"
    )
    names = ["Person", "rider", *(name for name in SCENES if name != "person"), "wall"]
    settings = QUICK | {
        "teacher__python": f"{tmp_path / 'mine.py'}:build",
        "teacher__class_names": json.dumps(names),
        "teacher__classes": '{"rider": "person"}',
        "student__max_train_steps": 6,
    }
    distil(tiny_config(tmp_path / "whole", **settings))
    for number, stop_at in enumerate((3, 12)):  # while the teacher is asked, and while the student learns
        asked = iter([False] * stop_at + [True])
        folder = tmp_path / f"stopped{number}"
        with pytest.raises(Stopped):
            distil(tiny_config(folder, **settings), lambda asked=asked: next(asked, False))
        distil(tiny_config(folder, **settings))
        assert weights(folder) == weights(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"teacher\.classes"):
        distil(tiny_config(tmp_path / "whole", **settings | {"teacher__classes": '{"rider": "tree"}'}))


def test_the_code_of_another_python_file_is_another_teacher(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Conv2d(3, 10, 1)\n")
    settings = QUICK | {"teacher__python": f"{path}:build"}
    distil(tiny_config(tmp_path / "run", **settings))
    path.write_text(path.read_text().replace("seed(0)", "seed(1)"))
    with pytest.raises(ConfigError, match=r"teacher\.files: mine\.py .* teacher\.files: weights "):
        distil(tiny_config(tmp_path / "run", **settings))


def test_weights_alone_are_kept_in_the_run_and_teach_features(tmp_path):
    torch.manual_seed(0)
    network = models.build(TeacherConfig(encoder_name="tu-test_resnet"), SCENES).eval()
    torch.save(network.model.state_dict(), tmp_path / "weights.pth")
    settings = QUICK | {
        "teacher__checkpoint": tmp_path / "weights.pth",
        "ifvd__weight": 1,
        "teacher__cache__enabled": "false",
    }
    results = distil(tiny_config(tmp_path / "run", **settings))
    assert results.teacher.module is None and results.teacher.params == models.count_parameters(network)
    kept = models.load(tmp_path / "run" / "teacher", SCENES, [0.0] * 3, [1.0] * 3)
    assert models.fingerprint(kept) == models.fingerprint(network)
    shutil.rmtree(tmp_path / "run" / "student")
    distil(tiny_config(tmp_path / "run", **settings))


def test_foreign_teachers_have_no_features_and_this_is_said_at_once(tmp_path):
    path = tiny.onnx_file(tmp_path / "big.onnx", WEIGHT)
    with pytest.raises(ConfigError, match=r"ifvd: .*decoder"):
        distil(tiny_config(tmp_path / "run", teacher__checkpoint=path, ifvd__weight=1, **QUICK))
    assert not (tmp_path / "run").exists()


def test_several_teachers_of_different_kinds_and_classes_are_averaged(tmp_path, capsys):
    first = tiny.onnx_file(tmp_path / "first.onnx", WEIGHT)
    swapped = [*SCENES[1:], SCENES[0]]
    second = tiny.onnx_file(tmp_path / "second.onnx", WEIGHT, metadata={"classes": json.dumps(swapped)})
    settings = QUICK | {"teacher__checkpoint": first, "teacher__more": f'["{second}"]', "teacher__tta__flip": "true"}
    distil(tiny_config(tmp_path / "run", **settings))
    out = capsys.readouterr().out
    assert "2 network(s), 2 view(s) of each image, averaged" in out and f"{SCENES[0]}" in out
    tiny.onnx_file(second, WEIGHT + 1, metadata={"classes": json.dumps(swapped)})
    with pytest.raises(ConfigError, match=r"teacher\.more"):
        distil(tiny_config(tmp_path / "run", **settings))


def test_a_cache_is_filled_by_a_foreign_teacher_and_belongs_to_it(tmp_path):
    path = tiny.onnx_file(tmp_path / "big.onnx", WEIGHT)
    settings = QUICK | {"teacher__checkpoint": path, "teacher__cache__dir": tmp_path / "answers"}
    fill_cache(tiny_config(tmp_path / "run", **settings), part=(0, 1))
    assert list((tmp_path / "answers").glob("*.safetensors"))
    tiny.onnx_file(path, WEIGHT + 1)
    with pytest.raises(ConfigError, match="holds the answers of another teacher"):
        fill_cache(tiny_config(tmp_path / "run", **settings), part=(0, 1))
