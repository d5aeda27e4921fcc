import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from distill import export, models
from distill.config import DataConfig, ExportConfig, NetworkConfig
from distill.data import open_splits

CLASSES = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def scenes():
    return open_splits(DataConfig(synthetic_train=1, synthetic_val=3, synthetic_size=[64, 96])).val


def network(arch: str = "fpn", encoder: str = "tu-test_resnet") -> models.Network:
    """Random weights, and statistics that make BatchNorm do something."""
    torch.manual_seed(0)
    built = models.build(NetworkConfig(arch=arch, encoder_name=encoder), CLASSES).eval()
    for name, buffer in built.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return built


@pytest.fixture(scope="module")
def exported(scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    proof = export.export_onnx(network(), path, scenes, ExportConfig(), {"classes": CLASSES, "palette": [[1, 2, 3]]})
    return path, proof


def test_one_file_that_is_proven(exported):
    path, proof = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert proof["argmax_agreement"] >= 0.9999
    assert proof["max_abs_diff"] <= 1e-3
    assert proof["mean_iou_diff"] <= 1e-4
    assert proof["shapes"] == [[1, 64, 96], [3, 97, 130], [3, 224, 160]]
    assert proof["bytes"] == path.stat().st_size


def test_mask_comes_first_and_metadata_is_inside(exported):
    session = onnxruntime.InferenceSession(exported[0])
    assert [o.name for o in session.get_outputs()] == ["mask", "logits"]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["palette"]) == [[1, 2, 3]]
    assert not any(t.external_data for t in onnx.load(exported[0]).graph.initializer)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 64, 96), (2, 97, 130), (1, 180, 60)])
def test_the_file_does_what_the_network_does_at_any_size(exported, scenes, shape):
    session = onnxruntime.InferenceSession(exported[0])
    count, height, width = shape
    image = np.stack([np.asarray(Image.fromarray(scenes.read(i)[0]).resize((width, height))) for i in range(count)])
    mask, logits = session.run(None, {"image": image})
    assert mask.dtype == np.uint8
    assert mask.shape == shape
    with torch.no_grad():
        expected = network()(torch.from_numpy(image).permute(0, 3, 1, 2)).upsampled()
    assert np.abs(logits - expected.numpy()).max() < 1e-3
    assert (mask == expected.argmax(1).numpy()).mean() > 0.9999


def test_a_float_image_is_refused(exported):
    session = onnxruntime.InferenceSession(exported[0])
    with pytest.raises(Exception, match="uint8"):
        session.run(None, {"image": np.zeros((1, 8, 8, 3), np.float32)})


def test_an_architecture_that_bakes_in_its_size_takes_no_other(scenes, tmp_path):
    path = tmp_path / "model.onnx"
    proof = export.export_onnx(network("pspnet"), path, scenes, ExportConfig(), {})
    assert proof["shapes"] == [[1, 64, 96]]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[1:] == [64, 96, 3]
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {"image": np.zeros((1, 96, 64, 3), np.uint8)})


@pytest.mark.parametrize("fault", ["weights", "nan"])
def test_a_file_that_differs_is_not_published(scenes, tmp_path, monkeypatch, fault):
    write = export.write_onnx

    def write_another(net, *arguments):
        other = network()
        with torch.no_grad():
            bias = other.model.segmentation_head[0].bias
            bias[3] += 0.5 if fault == "weights" else float("nan")
        write(other, *arguments)

    monkeypatch.setattr(export, "write_onnx", write_another)
    with pytest.raises(export.ExportError, match="differs" if fault == "weights" else "not finite"):
        export.export_onnx(network(), tmp_path / "model.onnx", scenes, ExportConfig(), {})
    assert not (tmp_path / "model.onnx").exists()
