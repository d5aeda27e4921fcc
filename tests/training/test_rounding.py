"""Quantization-aware training: what it computes, that it leaves no trace, and that a run uses it where 8 bits fail."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from known_graphs import quick_exports
from torch import nn

from distill.config.networks import NetworkConfig
from distill.deployment.runtime import OnnxModel
from distill.errors import ExportError
from distill.models.network import build
from distill.pipeline import distil
from distill.reporting import artifacts
from distill.training.qat import FakeQuantWeight, RoundedInput, insert_fake_quant, remove_fake_quant


def test_weights_have_a_scale_a_channel_and_at_most_255_values():
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([0.01, 1, 100, 0]).view(4, 1, 1, 1)
    rounded = FakeQuantWeight(0)(weight)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((rounded - weight).abs() <= step / 2 + 1e-6 * step).all()
    levels = rounded[:3] / step[:3]
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert rounded[3].eq(0).all()


def test_folding_a_scale_a_channel_into_the_weights_changes_nothing():
    weight, scale = torch.randn(5, 7, 3, 3), torch.rand(5, 1, 1, 1) + 0.5
    assert torch.allclose(FakeQuantWeight(0)(weight * scale), FakeQuantWeight(0)(weight) * scale, atol=1e-5)


def test_inputs_hold_zero_and_the_gradient_passes_where_nothing_is_clipped():
    layer = RoundedInput()
    x = torch.linspace(-1, 3, 401)
    layer(x)
    assert (layer.low, layer.high) == (-1, 3)
    layer.eval()
    x = torch.tensor([-5.0, -1.0, 0.0, 0.5, 3.0, 9.0], requires_grad=True)
    y = layer(x)
    assert y[2] == 0
    assert ((y[1:5] - x[1:5]).abs() <= 2 / 255 + 1e-6).all()
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_settled_is_the_same_network_again():
    network = build(NetworkConfig(arch="fpn", encoder_name="tu-test_resnet"), ["a", "b"]).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    names, before = sorted(network.state_dict()), network(image).logits
    insert_fake_quant(network)
    network.train()
    network(image)
    network.eval()
    rounded = network(image).logits
    assert 0 < (rounded - before).abs().max() < before.abs().max()
    remove_fake_quant(network)
    assert sorted(network.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert not any(isinstance(module, RoundedInput) for module in network.modules())


def test_layers_with_few_terms_have_rounded_weights_only():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 5))
    insert_fake_quant(network)
    assert [hasattr(layer, "rounded_input") for layer in network] == [False, True]


SETTINGS = {
    "baseline__enabled": "false",
    "student__max_train_steps": 3,
    "export__int8": "true",
    "export__int8_calibration_images": 3,
    "export__int8_finetune_steps": 3,
}


def test_a_student_whose_8_bits_lose_too_much_is_tuned(graphs, tmp_path, monkeypatch):
    quick_exports(graphs, monkeypatch.setattr)
    folder, refused, real = tmp_path / "run", [], artifacts.quantize_onnx

    def after_one_refusal(path, *arguments, **options):
        if not refused:
            refused.append(path)
            raise ExportError(f"{path}: 8 bits lose over 0.50 points of mIoU")
        return real(path, *arguments[:4], 8, 0.9, *arguments[6:], **options)

    monkeypatch.setattr(artifacts, "quantize_onnx", after_one_refusal)
    found = distil(tiny_config(folder, **SETTINGS))
    assert found.files.int8.finetuned is True
    record = json.loads((folder / "int8" / "stage.json").read_text())
    assert record["steps"] == 3
    assert record["settings"]["student.learning_rate"] == pytest.approx(3e-4)
    small = OnnxModel(folder / "student" / "model.int8.onnx")
    about = small.session.get_modelmeta().custom_metadata_map
    assert json.loads(about["weights_sha256"]) == record["sha256"] != found.files.onnx.made_from["weights_sha256"]
    assert "tuned to be rounded" in (folder / "report.md").read_text()
    assert sorted(p.name for p in (folder / "student").glob("*.onnx")) == ["model.int8.onnx", "model.onnx"]

    before = small.path.stat().st_mtime_ns
    monkeypatch.setattr(artifacts, "quantize_onnx", None)
    assert distil(tiny_config(folder, **SETTINGS)) == found
    assert small.path.stat().st_mtime_ns == before


def test_the_better_of_both_files_stays(graphs, tmp_path, monkeypatch):
    quick_exports(graphs, monkeypatch.setattr)
    folder, tries, real = tmp_path / "run", [], artifacts.quantize_onnx

    def worse_each_time(path, *arguments, **options):
        found = real(path, *arguments[:4], 8, 0.9, *arguments[6:], **options)
        tries.append(path)
        return replace(found, float_layers=["conv"], mean_iou=1 / len(tries))

    monkeypatch.setattr(artifacts, "quantize_onnx", worse_each_time)
    found = distil(tiny_config(folder, **SETTINGS))
    assert len(tries) == 2
    assert (found.files.int8.mean_iou, found.files.int8.finetuned) == (1, False)
    assert "tuned to be rounded" not in (folder / "report.md").read_text()
