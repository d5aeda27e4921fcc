"""What a program can call: its own networks and data, and the manners of the library in somebody else's process."""

import copy
import json
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import distill
from distill.config.parse import dotted
from distill.data import own_splits
from distill.data.own import as_image, as_labels, seeded
from distill.deployment.media import read_image

CLASSES = ["dark", "bright"]
STEPS = {"max_train_steps": 4, "eval_steps": 4, "checkpointing_steps": 2, "logging_steps": 1, "num_threads": 1}
STEPS |= {"per_device_train_batch_size": 2, "num_sample_images": 1}


class Squares(torch.utils.data.Dataset):
    """Bright squares on dark ground; drawn with NumPy's global generator, as many augment."""

    def __init__(self, count, noisy=False):
        self.count, self.noisy = count, noisy

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        place = np.random.default_rng(index)
        image, mask = np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48), np.int64)
        y, x = place.integers(0, 16, 2)
        image[y : y + 16, x : x + 16] = 200
        mask[y : y + 16, x : x + 16] = 1
        return (image + np.random.randint(0, 50, image.shape, np.uint8), mask) if self.noisy else (image, mask)


class Net(nn.Module):
    """Logits at half the size, in one of the forms that libraries give them in."""

    def __init__(self, form="tensor", fixed=False):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.drop, self.last = nn.Dropout2d(0.2), nn.Conv2d(4, 2, 1)
        self.form, self.fixed = form, fixed

    def forward(self, x):
        x = self.norm(self.first(x))
        logits = self.last(self.drop(x.view(x.shape[0], 4, -1).view(x.shape)))  # of contiguous maps only
        if self.fixed:
            logits = logits.cpu().detach().numpy().tolist() and logits  # nothing that can be traced
        return {"tensor": logits, "tuple": (logits, x), "out": {"out": logits}, "logits": {"logits": logits}}[self.form]


def knows(x):
    """A teacher without weights."""
    return torch.stack([0.3 - x.mean(1), x.mean(1) - 0.3], 1)


def distilled(folder, **settings):
    wanted = {"student": Net(), "teacher": knows, "train": Squares(6, noisy=True), "val": Squares(2)}
    wanted |= {"classes": CLASSES, "output_dir": folder, "export__enabled": False} | STEPS
    return distill.distill(**wanted | settings)


def test_importing_loads_no_torch_and_gives_every_name():
    code = (
        "import sys, time; t = time.process_time(); import distill; t = time.process_time() - t\n"
        "assert 'torch' not in sys.modules and t < 0.3, t\n"
        "for name in distill.__all__: assert getattr(distill, name) is not None\n"
        "assert callable(distill.distill) and callable(distill.evaluate) and distill.losses.TERMS\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_settings_come_from_a_file_and_a_mapping(tmp_path):
    path = ROOT / "configs" / "camvid_cpu.yaml"
    over = {"kd": {"temperature": np.float32(2)}, "student.options": {"a": [1]}, "data": {"root": tmp_path}}
    config = distill.load_config(path, over)
    assert (config.kd.temperature, config.student.options, config.data.root) == (2.0, {"a": [1]}, str(tmp_path))
    assert distill.load_config().data == distill.Config().data
    assert dotted({"student": {"options": {"a": 1}}}) == {"student.options": {"a": 1}}
    near = r"kd\.temprature.*did you mean 'kd\.temperature'"
    for wrong, words in (({"kd": {"temprature": 2}}, near), ({"seed": [1]}, "seed")):
        with pytest.raises(distill.ConfigError, match=words):
            distill.load_config(None, wrong)
    with pytest.raises(distill.ConfigError, match="is given twice"):
        distill.load_config(None, {"kd.weight": 1, "kd": {"weight": 2}})
    with pytest.raises(distill.ConfigError, match="nowhere"):
        distill.load_config("nowhere.yaml")


def test_a_run_leaves_the_process_as_it_was(tmp_path):
    wanted = {**TINY, "output_dir": tmp_path / "run", "export.enabled": False, "baseline.enabled": False}
    wanted |= {"teacher.max_train_steps": 1, "student.max_train_steps": 1, "num_threads": 1}

    def settings():
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return torch.get_num_threads(), cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS, handlers

    AcceleratorState._reset_state(reset_partial_state=True)  # other tests leave theirs
    torch.set_num_threads(2)
    before = settings()
    first = distill.run(distill.load_config(None, wanted))
    after = settings()
    torch.set_num_threads(1)
    assert after == before
    # Accelerate would refuse another precision in the same process, and give the first for good.
    half = wanted | {"mixed_precision": "bf16", "output_dir": tmp_path / "half"}
    assert distill.run(distill.load_config(None, half)).networks.keys() == first.networks.keys()
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    read_image(tmp_path / "image.png")
    assert settings()[1:] == before[1:]


def test_own_networks_go_on_to_the_bit(tmp_path, monkeypatch):
    torch.manual_seed(0)
    student = Net("out")
    before = copy.deepcopy(student).state_dict()
    results = distilled(tmp_path / "whole", student=student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert list(results.networks) == ["teacher", "baseline", "student"] and (tmp_path / "whole" / "report.md").is_file()
    answers = iter([False] * 5 + [True] * 9)  # in the middle of the student's training
    with pytest.raises(distill.Stopped):
        distilled(tmp_path / "parts", student=student, stop=lambda: next(answers))
    # Started again with other first weights, as a script without a seed has them.
    distilled(tmp_path / "parts", student=Net("out"), data__num_workers=1)
    for name in ("baseline", "student"):
        weights = [load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "parts")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    monkeypatch.setattr("distill.pipeline.Trainer", None)
    assert distilled(tmp_path / "whole", student=student) == results  # nothing is trained again


def test_own_networks_are_exported_scored_and_loaded(tmp_path):
    networks = {"student": Net("tuple"), "teacher": Net("logits"), "teacher__allow_near_chance": True}
    results = distilled(tmp_path, export__enabled=True, **networks)
    assert results.files.onnx.argmax_agreement == 1 and [1, 97, 130] in results.files.onnx.shapes
    image, mask = Squares(1)[0]
    file, module = distill.load(tmp_path), distill.load(str(tmp_path), module=Net("tuple"))
    assert file.classes == module.classes == CLASSES
    assert (file.mask(image) == module.mask(image)).all() and file.mask(image).shape == mask.shape
    scores = distill.evaluate(module, Squares(2))
    assert scores["mean_iou"] == pytest.approx(results.student.mean_iou)
    assert "Net" in (tmp_path / "student" / "README.md").read_text()
    Image.fromarray(image).save(tmp_path / "image.png")
    assert distill.predict(module, tmp_path / "image.png", tmp_path / "out").done == 1
    (tmp_path / "student" / "model.onnx").unlink()
    with pytest.raises(distill.ConfigError, match="holds the weights of 'Net'"):
        distill.load(tmp_path)


def test_a_student_that_cannot_be_exported_keeps_its_report(tmp_path):
    results = distilled(tmp_path, student=Net(fixed=True), export__enabled=True, baseline__enabled=False)
    assert results.files.errors and "cannot" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "student" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student": knows}, "student: function is not a torch.nn.Module"),
        ({"teacher": 3}, "teacher: int is no module"),
        (
            {"classes": ["a", "b", "c"], "data__check": "off"},
            "teacher: knows: gives a tensor .*one channel for each of the classes",
        ),
        ({"student": nn.Linear(3, 2)}, "student: Linear: fails on two images of 32×48"),
        ({"hint": {"weight": 1.0}}, "hint: .*no layer 'encoder.5'"),
        ({"student__arch": "unet"}, "student.arch: 'unet' cannot be set"),
        ({"data__root": "/x"}, "data.root: '/x' cannot be set"),
        ({"train": []}, "train: list holds nothing"),
        ({"train": Squares}, "train: type is not a data set"),
        ({"kd__temprature": 2}, "did you mean 'kd.temperature'"),
        ({"student__options": {"strides": 3}}, "options: 'strides' is not one of stride, align_corners"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, settings, words):
    with pytest.raises(distill.ConfigError, match=words) as caught:
        distilled(tmp_path / "run", **settings)
    assert len(str(caught.value).splitlines()) == 1


def test_another_teacher_and_other_data_are_refused(tmp_path):
    teacher, more = Net(), {"teacher__allow_near_chance": True, "baseline__enabled": False}
    distilled(tmp_path, teacher=teacher, **more)
    bias = teacher.last.bias.detach().clone()
    with torch.no_grad():
        teacher.last.bias += 1
    with pytest.raises(distill.ConfigError, match=r"teacher\.checkpoint"):
        distilled(tmp_path, teacher=teacher, **more)
    with torch.no_grad():
        teacher.last.bias.copy_(bias)
    with pytest.raises(distill.ConfigError, match=r"data\.train_files '6 items' there, '5 items' here"):
        distilled(tmp_path, teacher=teacher, train=Squares(5), **more)


def test_images_and_masks_of_every_kind():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for one in (image, image.transpose(2, 0, 1), tensor, tensor / 255, Image.fromarray(image), image / 255.0):
        assert (as_image(one) == image).all()
    assert (as_image(image[..., 0]) == image[..., :1]).all()
    for wrong, words in (
        (tensor / 255 - 0.5, "before any normalization"),
        (image.astype(np.int32), "int32"),
        ("a", "str"),
    ):
        with pytest.raises(ValueError, match=words):
            as_image(wrong)
    mask = np.array([[0, 1], [-100, 1]])
    for one in (mask, torch.from_numpy(mask)[None], mask[..., None]):
        assert as_labels(one, 2, -100).tolist() == [[0, 1], [255, 1]]
    assert as_labels(Image.fromarray(np.uint8([[0, 255]])), 2, 255).tolist() == [[0, 255]]
    for wrong, words in (
        (mask, r"label -100 \(1 pixels\)"),
        (mask * 1.0, "float64"),
        (np.zeros((2, 2, 2), int), "2, 2, 2"),
    ):
        with pytest.raises(ValueError, match=words):
            as_labels(wrong, 2, 255)


def test_data_that_augments_is_the_same_at_the_same_place():
    config = distill.load_config(None, {"data.format": "own", "data.classes": CLASSES}).data
    dataset = own_splits(Squares(2, noisy=True), Squares(2), config).train
    state = torch.get_rng_state()
    draws = []
    for key in ((0, 1), (0, 1), (1, 1)):
        with seeded(*key):
            draws.append(dataset.drawn(0)[0])
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_example_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"## Your networks, in Python.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.strip().splitlines()) <= 20
    path = f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    seen = "\njson.dump(results.to_json(), open('seen.json', 'w'))\n"
    command = [sys.executable, "-c", path + code + seen]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "seen.json").read_text())
    assert results["student"]["mean_iou"] > 0.9 and (tmp_path / "run" / "student" / "model.onnx").is_file()
