"""Teachers of other kinds: torchvision, weights alone, ONNX of any layout, exported programs, Python files."""

import pickle
import sys
from functools import partial

import foreign_teachers as tiny
import numpy as np
import pytest
import torch
import torchvision
from onnx import TensorProto

from distill.batch import SILENT, Outputs, Target
from distill.config.networks import TeacherConfig
from distill.deployment.any_onnx import AnyOnnx, AnyOnnxProcess
from distill.errors import ConfigError
from distill.losses.base import speaks
from distill.losses.chunked import fused
from distill.losses.pixel import KD
from distill.losses.settings import KDConfig
from distill.losses.supervised import CrossEntropy
from distill.models import Network, build
from distill.models.foreign import ForeignNetwork, Mapped, Opened, open_teacher
from distill.models.foreign.arrays import Arrays, Layout, Port
from distill.models.foreign.classes import ClassMap
from distill.models.foreign.contract import find_kind, log_probabilities
from distill.models.foreign.tiled import Windows

IMAGE = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MEAN, STD = tiny.MEAN, tiny.STD
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def opened(checkpoint=None, classes=tiny.NAMES, image=IMAGE, **settings) -> Opened:
    config = TeacherConfig(checkpoint=str(checkpoint) if checkpoint else None, mean=MEAN, std=STD, **settings)
    found = open_teacher(config, classes, image[:1], AnyOnnx, lambda path: path.name)
    assert found is not None
    return found


def normalized(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (image / 255 - mean) / std


def convolved(x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("kc,nchw->nkhw", torch.from_numpy(WEIGHT), x)


# What the numbers of a map are


def test_one_channel_is_two_logits():
    z = torch.tensor([[[[-3.0, 0.0, 5.0]]]])
    logits = log_probabilities(z, "logits", 2)
    assert logits.tolist() == [[[[0.0, 0.0, 0.0]], [[-3.0, 0.0, 5.0]]]]
    assert torch.allclose(log_probabilities(z.sigmoid(), "sigmoid", 2), logits, atol=1e-4)


def test_scores_are_divided_by_their_sum_and_unclaimed_pixels_say_nothing():
    scores = torch.tensor([0.6, 0.9, 0.0]).view(1, 3, 1, 1)
    p = log_probabilities(scores, "scores", 3).exp().flatten()
    assert torch.allclose(p, torch.tensor([0.4, 0.6, 0.0]), atol=1e-5)
    for size in (0.33, 0.1, 1e-3, 1e-9):  # the sum is below one half
        nothing = log_probabilities(scores * size, "scores", 3)
        assert (nothing.amax() - nothing.amin()) < SILENT
        assert size < 1e-6 or nothing.argmax(1) == 1
    assert not speaks(nothing).any() and speaks(log_probabilities(scores * 0.34, "scores", 3)).all()


def test_kd_of_a_teacher_of_queries_is_its_closed_form_and_leaves_out_what_no_query_claims():
    scores = torch.tensor([[0.7, 0.2, 0.0], [0.2, 0.05, 0.1], [0.9, 0.0, 0.9]]).T.reshape(1, 3, 1, 3)
    student = torch.tensor([[1.0, 0.0, -1.0], [9.0, -9.0, 3.0], [0.5, 0.25, 0.0]]).T.reshape(1, 3, 1, 3)
    mask = torch.zeros(1, 1, 3, dtype=torch.uint8)
    p, s = (scores / scores.sum(1, keepdim=True)).clamp(min=1e-9), student.log_softmax(1)
    kl = (p * (p.log() - s)).sum(1).flatten()
    wanted = (kl[0] + kl[2]) / 3  # the one that is left out stays in the count
    teacher = Outputs.of(log_probabilities(scores, "scores", 3))
    for stride in ("full", "native"):
        term = KD(KDConfig(temperature=1, stride=stride))
        assert term(Outputs.of(student), teacher, Target.of(mask)).item() == pytest.approx(wanted.item(), rel=1e-4)
    both = fused((CrossEntropy(), KD(KDConfig(temperature=1))), (1, 1), Outputs.of(student), teacher, Target.of(mask))
    assert both.values[1].item() == pytest.approx(wanted.item(), rel=1e-4)
    student.requires_grad_()
    fused((CrossEntropy(), KD(KDConfig())), (0, 1), Outputs.of(student), teacher, Target.of(mask)).total.backward()
    assert student.grad.abs().sum(1).flatten().gt(1e-4).tolist() == [True, False, True]


def test_what_says_nothing_says_nothing_of_merged_classes():
    silent = log_probabilities(torch.tensor([0.1, 0.2, 0.1, 0.0]).view(1, 4, 1, 1), "scores", 4)
    mapped = Mapped.__new__(Mapped)
    torch.nn.Module.__init__(mapped)
    mapped.map = ClassMap(list("abcd"), ["x", "y", "z"], [[0, 2, 3], [1], []])
    merged = mapped._mapped(Outputs.of(silent)).logits
    assert not speaks(merged).any() and merged.argmax(1) == 1


def test_labels_are_smoothed_and_void_says_nothing():
    p = log_probabilities(torch.tensor([[[[1, 255]]]], dtype=torch.uint8), "labels", 5, 0.2).exp()
    assert torch.allclose(p[0, :, 0, 0], torch.tensor([0.05, 0.8, 0.05, 0.05, 0.05]))
    assert torch.allclose(p[0, :, 0, 1], torch.full((5,), 0.2))


@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (1, 1, 6, 6)])
def test_kinds_are_told_apart(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    assert find_kind(z) == "logits"
    assert find_kind(z.sigmoid()) == "sigmoid"
    assert find_kind(z.long()) == "labels"
    if shape[1] > 1:
        assert find_kind(z.softmax(1).half()) == "probabilities"


# Windows


def test_windows_of_a_network_that_sees_one_pixel_at_a_time_change_nothing():
    x = torch.randn(2, 3, 50, 70)
    windows = Windows(convolved, (32, 24), 1)
    assert torch.allclose(windows(windows.pad(x)).softmax(1), convolved(x).softmax(1), atol=1e-5)


def test_windows_begin_at_whole_cells():
    def pooled(x):
        return torch.nn.functional.avg_pool2d(convolved(x), 8)

    x = torch.randn(1, 3, 50, 70)
    windows = Windows(pooled, (32, 24), 8)
    padded = windows.pad(x)
    assert padded.shape[-2:] == (56, 72)
    assert torch.allclose(windows(padded).softmax(1), pooled(padded).softmax(1), atol=1e-5)


# torchvision


def network_of_torchvision(name: str, outputs: int = 4, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=outputs, **more
    ).eval()
    network.classifier[-1].weight.data *= 20
    return network


@torch.no_grad()
def test_weights_of_torchvision_give_its_logits_and_need_no_download(tmp_path, monkeypatch):
    network = network_of_torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True)
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    found = opened(tmp_path / "weights.pth", arch="torchvision/deeplabv3_mobilenet_v3_large")
    assert "torchvision deeplabv3_mobilenet_v3_large: 4 classes, logits at 1/16" in found.told[0]
    theirs, ours = network(normalized(IMAGE))["out"], found.network(IMAGE).upsampled()
    assert (ours.softmax(1) - theirs.softmax(1)).abs().max() < 1e-5
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.999


def test_what_torchvision_does_not_have_is_named(monkeypatch):
    with pytest.raises(ConfigError, match="'resnet50' is no segmentation network of torchvision: deeplabv3_"):
        opened("torchvision/resnet50")
    with pytest.raises(ConfigError, match="weights 'IMAGENET' are none of COCO_WITH_VOC_LABELS_V1"):
        opened("torchvision/lraspp_mobilenet_v3_large:IMAGENET")
    with pytest.raises(
        ConfigError, match=r"none of .*; for a file of weights, set teacher\.checkpoint to the file and"
    ):
        opened("torchvision/lraspp_mobilenet_v3_large:mine.pth")

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"could not be downloaded \(no network\); fetch it elsewhere, set "):
        opened("torchvision/lraspp_mobilenet_v3_large")


# Weights alone

SMP = {"arch": "fpn", "encoder_name": "tu-test_resnet"}


def smp_network(classes=tiny.NAMES) -> Network:
    torch.manual_seed(0)
    return build(TeacherConfig(**SMP, mean=MEAN, std=STD), classes).eval()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod.", "model.net."])
def test_weights_of_smp_are_found_behind_any_prefix(tmp_path, prefix):
    network = smp_network()
    state = {prefix + name: value for name, value in network.model.state_dict().items()}
    if prefix == "model.":  # as Lightning writes them, with the weights of a loss beside
        state = {"state_dict": state | {"loss.weight": torch.ones(4)}, "epoch": 3}
    torch.save(state, tmp_path / "weights.ckpt")
    found = opened(tmp_path / "weights.ckpt", **SMP)
    assert torch.equal(found.network(IMAGE).logits, network(IMAGE).logits)
    assert not isinstance(found.inner, ForeignNetwork) and found.known_by == {"weights.ckpt": "weights.ckpt"}
    assert "decoder" in found.network.channels


def test_weights_of_another_network_name_the_first_differences(tmp_path):
    torch.save(smp_network(["a", "b", "c"]).model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"does not fit fpn.*with 4 classes: segmentation_head\.0\.weight is \[3, "):
        opened(tmp_path / "weights.pth", **SMP)
    with pytest.raises(ConfigError, match=r"does not fit unet.*is missing; .* more; set teacher\.arch"):
        opened(tmp_path / "weights.pth", arch="unet", encoder_name="tu-test_resnet")


class Evil:
    def __reduce__(self):
        return (sys.exit, (3,))


def test_a_pickle_that_wants_to_run_code_is_not_read(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"weights \(sys\.exit\), and reading it would run code; save the state_dict"):
        opened(tmp_path / "weights.pth", **SMP)
    torch.save(smp_network(["a", "b"]).model, tmp_path / "whole.pth")
    with pytest.raises(ConfigError, match=r"holds more than weights \([\w.]+\), and reading it would run code") as told:
        opened(tmp_path / "whole.pth", **SMP)
    assert "\x1b" not in str(told.value) and "can still be loaded" not in str(told.value)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"plain\.pt"):
        opened(tmp_path / "plain.pt", **SMP)


def test_torchscript_is_named_with_the_way_to_give_it(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 4, 1)), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt is TorchScript, which is code; give it by teacher\.python"):
        opened(tmp_path / "model.pt", **SMP)


# ONNX


def file_of(path, **more):
    return tiny.onnx_file(path / "teacher.onnx", WEIGHT, **more)


@pytest.mark.parametrize("size", [None, (32, 48)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "UINT8"])
def test_onnx_of_any_layout_type_and_size(tmp_path, dtype, last, size):
    path = file_of(tmp_path, dtype=getattr(TensorProto, dtype), last=last, size=size, batch=1 if size else None)
    found = opened(path)
    told = f"{'NHWC' if last else 'NCHW'} {dtype.lower().replace('float', 'float32').replace('float3216', 'float16')}"
    assert told in found.told[0] and ("48×32 only" if size else "any size") in found.told[0]
    image = IMAGE if dtype == "FLOAT" else IMAGE // 8  # so that half precision has digits, and softmax no 1
    expected = convolved(image.float() if dtype == "UINT8" else normalized(image)).softmax(1)
    ours = found.network(image).upsampled().softmax(1)
    assert torch.allclose(ours, expected, atol={"FLOAT": 1e-5, "FLOAT16": 5e-3, "UINT8": 1e-4}[dtype])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid", "ArgMax"])
def test_onnx_outputs_of_any_kind(tmp_path, ending, last):
    network = opened(file_of(tmp_path, ending=ending, last=last)).network
    z = convolved(normalized(IMAGE))
    expected = {
        "Softmax": z.softmax(1),
        "Sigmoid": z.sigmoid() / z.sigmoid().sum(1, keepdim=True),
        "ArgMax": torch.nn.functional.one_hot(z.argmax(1), 4).permute(0, 3, 1, 2) * (0.9 - 0.1 / 3) + 0.1 / 3,
    }[ending]
    assert torch.allclose(network(IMAGE).upsampled().softmax(1), expected, atol=2e-5)


def test_one_channel_of_an_onnx_file_is_a_sigmoids(tmp_path):
    path = tiny.onnx_file(tmp_path / "text.onnx", WEIGHT[:1], ending="Sigmoid")
    network = opened(path, classes=["paper", "text"]).network
    z = torch.einsum("kc,nchw->nkhw", torch.from_numpy(WEIGHT[:1]), normalized(IMAGE))
    assert torch.allclose(network(IMAGE).logits.softmax(1)[:, 1:], z.sigmoid(), atol=1e-5)


def test_a_file_takes_as_many_channels_as_there_are():
    of = partial(Layout.of, name="teacher.checkpoint: x.onnx")
    assert of(Port("x", "float32", (1, None, None, 6)), channels=6).last
    assert not of(Port("x", "float32", (1, 6, None, None)), channels=6).last
    with pytest.raises(
        ConfigError, match=r"takes 3 channels; it gets 6 here: name those that it takes in teacher\.chan"
    ):
        of(Port("x", "float32", (1, 3, None, None)), channels=6)
    with pytest.raises(ConfigError, match=r"takes 4 channels; it gets 3 here"):
        of(Port("x", "float32", (1, 4, None, None)))
    with pytest.raises(ConfigError, match=r"takes 3 channels; it gets 1 here: leave data\.in_channels out"):
        of(Port("x", "float32", (1, 3, None, None)), channels=1)


def test_a_file_for_two_images_answers_for_any_number(tmp_path):
    network = opened(file_of(tmp_path, size=(96, 128), batch=2)).network
    three = torch.cat([IMAGE, IMAGE[:1].flip(3)])
    assert torch.allclose(network(three).logits.softmax(1), convolved(normalized(three)).softmax(1), atol=1e-5)


def test_names_in_an_onnx_file_are_read(tmp_path):
    path = file_of(tmp_path, metadata={"names": "{0: 'road', 1: 'car', 2: 'background', 3: 'tree top'}"})
    found = opened(path)
    assert isinstance(found.network, Mapped)
    expected = convolved(normalized(IMAGE)).softmax(1)[:, [2, 1, 3, 0]]
    assert torch.allclose(found.network(IMAGE).upsampled().softmax(1), expected, atol=1e-5)


def test_a_kind_that_turns_out_wrong_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"which are no probabilities; set teacher\.output \(logits\?\)"):
        opened(file_of(tmp_path), output="probabilities")


def test_a_process_runs_the_file_and_says_what_is_wrong_with_it(tmp_path):
    process = AnyOnnxProcess(file_of(tmp_path))
    array = normalized(IMAGE).numpy()
    assert np.allclose(process.run("answer", array), convolved(normalized(IMAGE)).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match=r"teacher\.onnx: failed on an input of \[2, 2, 4, 4\]"):
        process.run("answer", np.zeros((2, 2, 4, 4), np.float32))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ConfigError, match=r"text\.onnx: is not an ONNX file"):
        AnyOnnxProcess(tmp_path / "text.onnx")


def test_other_channels_than_rgb_are_refused(tmp_path):
    path = tiny.onnx_file(tmp_path / "grey.onnx", WEIGHT[:, :1])
    with pytest.raises(ConfigError, match=r"takes 1 channels; it gets 3 here: .* teacher\.channels, such as \[0\]"):
        opened(path)


def test_bgr_swaps_the_channels(tmp_path):
    path = file_of(tmp_path)
    expected = convolved(normalized(IMAGE).flip(1)).softmax(1)
    assert torch.allclose(opened(path, bgr=True).network(IMAGE).upsampled().softmax(1), expected, atol=1e-5)


def test_another_number_of_classes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has 4 classes without names, and the data has 3; name its outputs"):
        opened(file_of(tmp_path), classes=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"has 4 classes, but teacher\.class_names names 3"):
        opened(file_of(tmp_path), class_names=["a", "b", "c"])


# Exported programs


class Layer(torch.nn.Module):
    def __init__(self, wrap=lambda x: x):
        super().__init__()
        self.weight, self.wrap = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy())), wrap

    def forward(self, x):
        return self.wrap(torch.nn.functional.conv2d(x, self.weight[:, :, None, None]))


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_program(tmp_path, dynamic):
    height, width = (torch.export.Dim(name, min=8, max=4096) for name in ("height", "width"))
    shapes = ({2: height, 3: width},) if dynamic else None
    wrapped = Layer(lambda x: {"out": x})
    torch.export.save(
        torch.export.export(wrapped, (torch.zeros(1, 3, 32, 48),), dynamic_shapes=shapes), tmp_path / "teacher.pt2"
    )
    with pytest.raises(ConfigError, match=r"can run any code when it is read; set teacher\.trusted true"):
        opened(tmp_path / "teacher.pt2")
    found = opened(tmp_path / "teacher.pt2", trusted=True)
    found.network.train()  # which exported programs refuse
    found.network.eval()
    assert ("any size" if dynamic else "windows of 48×32") in found.told[0]
    expected = convolved(normalized(IMAGE)).softmax(1)
    assert torch.allclose(found.network(IMAGE).upsampled().softmax(1), expected, atol=1e-5)


# Python files

FILE = """
from types import SimpleNamespace
import torch
class Teacher(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1)
    def forward(self, x):
        y = self.layer(x)
        return {wrapped}
def build():
    torch.manual_seed(0)
    return Teacher()
def number():
    return 3
def broken():
    raise RuntimeError("no such thing")
"""


@pytest.mark.parametrize("wrapped", ["y", "(y, 1)", "{'out': y}", "{'logits': y}", "SimpleNamespace(logits=y)"])
def test_a_python_file_gives_its_output_in_whatever_it_wraps_it(tmp_path, wrapped):
    (tmp_path / "mine.py").write_text(FILE.replace("{wrapped}", wrapped))
    found = opened(python=f"{tmp_path / 'mine.py'}:build")
    assert f"the code in {tmp_path / 'mine.py'} is run" in found.told[0]
    assert sorted(found.known_by) == ["mine.py", "weights"]
    layer = found.inner.model.module.layer
    assert torch.allclose(found.network(IMAGE).logits, layer(normalized(IMAGE)), atol=1e-5)


def test_a_python_file_that_gives_no_teacher(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace("{wrapped}", "'words'"))
    for function, message in {
        "number": "gives int; expected a torch.nn.Module",
        "broken": "RuntimeError: no such thing",
        "nothing": "the file has no function nothing",
        "build": r"Teacher gives str; expected a map \[N, K, h, w\]",
    }.items():
        with pytest.raises(ConfigError, match=message):
            opened(python=f"{path}:{function}")
    with pytest.raises(ConfigError, match=r"expected path\.py:function"):
        opened(python=str(path))


# What is nothing of all this


def test_what_is_not_there_or_not_known_is_said(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"ends with '\.txt'; expected a run"):
        opened(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="is not there"):
        opened(tmp_path / "gone.onnx")

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"as an id on the Hub it was not fetched \(no network\); with no network"):
        opened("nvidia/segformer-b0")


def test_detectors_classifiers_and_one_channel_are_told(tmp_path):
    def answering(shape: list[int]):
        class Boxes(torch.nn.Module):
            def forward(self, x):
                return torch.linspace(-3, 9, int(np.prod(shape))).view(shape) + 0 * x.mean()

        return Boxes

    sys.modules["_answers"] = made = type(sys)("_answers")
    for number, (shape, words) in enumerate(
        [
            ([1, 84, 8400], r"output of \[1, 1, 84, 8400\] for an image of 96×128, which is no map.*a detector\?"),
            ([1, 300, 6], "which is no map of it; is it a detector"),
            (
                [1, 1, 24, 32],
                r"2 classes without names \(background and foreground, in one channel\), and the data has 4",
            ),
        ]
    ):
        made.build = answering(shape)
        path = tmp_path / f"mine{number}.py"
        path.write_text("from _answers import build")
        with pytest.raises(ConfigError, match=words):
            opened(None, python=f"{path}:build")
    del sys.modules["_answers"]
    layout = Layout(False, torch.float32, None, None)
    with pytest.raises(ConfigError, match=r"shape \[1, 2\], as a classifier does; expected a map \[images, classes"):
        Arrays(lambda x: torch.zeros(1, 2), layout).channels_first(torch.zeros(1, 2))
