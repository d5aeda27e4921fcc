import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from PIL import Image

from distill import models
from distill.config.data import DataConfig
from distill.config.networks import NetworkConfig
from distill.config.schema import ExportConfig
from distill.data import Dataset, open_splits
from distill.deployment import onnx_export

SMALL = ((33, 50),)
SLIM = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
CLASSES = [str(i) for i in range(10)]
DATA = DataConfig(synthetic_train=1, synthetic_val=3, synthetic_size=[64, 96])


@pytest.fixture(scope="module")
def scenes():
    return open_splits(DATA).val


def network(arch: str = "fpn", encoder: str = "tu-test_resnet") -> models.Network:
    """Random weights, and statistics that make BatchNorm do something; by default few channels, for large images."""
    torch.manual_seed(0)
    options = SLIM if (arch, encoder) == ("fpn", "tu-test_resnet") else {}
    built = models.build(NetworkConfig(arch=arch, encoder_name=encoder, options=options), CLASSES).eval()
    for name, buffer in built.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return built


@pytest.fixture(scope="session")
def export_folder(once):
    """Holds the file of `network()` and its proof, and the graph that torch's exporter gave."""

    def make(folder):
        def export(*arguments, **options):
            program = torch_export(*arguments, **options)
            onnx_ir.save(program.model, folder / "graph.onnx")
            return program

        torch_export = torch.onnx.export
        (folder / "published").mkdir()
        dataset = open_splits(DATA).val
        metadata = {"classes": CLASSES, "palette": [[1, 2, 3]]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.onnx, "export", export)
            path = folder / "published" / "model.onnx"
            proof = onnx_export.export_onnx(network(), path, dataset, ExportConfig(), metadata)
        (folder / "proof.json").write_text(json.dumps(proof.to_json()))

    return once("exported", make)


@pytest.fixture(scope="session")
def exported(export_folder):
    return export_folder / "published" / "model.onnx", onnx_export.OnnxFile.from_json(
        json.loads((export_folder / "proof.json").read_text())
    )


@pytest.fixture
def graph(export_folder, monkeypatch):
    """Torch's exporter gives, without its seconds of work, the graph of `network()`; whoever wants to changes it."""
    graph = onnx.load(export_folder / "graph.onnx")
    monkeypatch.setattr(
        torch.onnx, "export", lambda *_, **__: SimpleNamespace(model=onnx_ir.serde.deserialize_model(graph))
    )
    return graph


def change_head(graph, function) -> None:
    """Replaces the weights of the last layer in a graph; its bias is zero, and not there."""
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name.endswith("head.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(function(onnx.numpy_helper.to_array(tensor).copy()), tensor.name))


def test_one_file_that_is_proven(exported):
    path, proof = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert proof.argmax_agreement >= 0.9999
    assert proof.max_abs_diff <= 1e-3
    assert proof.mean_iou_diff <= 1e-4
    sizes = [[64, 96], [1, 1], [97, 130], [480, 360], [720, 960]]
    assert proof.shapes == [[count, *size] for size in sizes for count in (1, 3)]
    assert proof.bytes == path.stat().st_size


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
    proof = onnx_export.export_onnx(network("pspnet"), path, scenes, ExportConfig(), {})
    assert proof.shapes == [[1, 64, 96], [3, 64, 96]]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[1:] == [64, 96, 3]
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {"image": np.zeros((1, 96, 64, 3), np.uint8)})


@pytest.mark.parametrize(("fault", "output"), [("weights", "logits"), ("nan", "none")])
def test_a_file_that_differs_is_not_published(scenes, tmp_path, graph, fault, output):
    def spoil(values):
        values[3] += 0.5 if fault == "weights" else float("nan")
        return values

    change_head(graph, spoil)
    with pytest.raises(onnx_export.ExportError, match="differs" if fault == "weights" else "not finite"):
        onnx_export.export_onnx(network(), tmp_path / "model.onnx", scenes, ExportConfig(output=output), {}, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_student_of_large_numbers_is_published(scenes, tmp_path, graph):
    change_head(graph, lambda values: values * 1000)
    net = network()
    with torch.no_grad():
        for parameter in net.model.segmentation_head.parameters():
            parameter *= 1000
    proof = onnx_export.export_onnx(net, tmp_path / "model.onnx", scenes, ExportConfig(), {}, SMALL)
    assert proof.max_abs_diff > 1e-3
    assert proof.max_abs_diff < 1e-5 * proof.max_logit


def test_a_file_that_is_nearer_to_float64_than_the_network_is_published(scenes, tmp_path, graph, monkeypatch):
    def prove(net, *arguments):
        def coarse(_, __, outputs):  # as torch's GroupNorm of maps of one pixel
            return replace(outputs, logits=outputs.logits * (1 + 1e-3 * (outputs.logits.dtype == torch.float32)))

        net.register_forward_hook(coarse)
        return right(net, *arguments)

    right = onnx_export.prove
    monkeypatch.setattr(onnx_export, "prove", prove)
    proof = onnx_export.export_onnx(network(), tmp_path / "model.onnx", scenes, ExportConfig(), {}, SMALL)
    assert proof.max_abs_diff < 1e-5 * proof.max_logit


@pytest.mark.parametrize("factor", [1, 10, 1000])
def test_limits_follow_the_size_of_the_numbers(factor):
    fine = {"max_logit": 10 * factor, "argmax_agreement": 1.0}
    assert not onnx_export.Proof(**fine, max_abs_diff=2e-4 * factor, max_margin=4e-4 * factor).faults()
    for name in ("max_abs_diff", "max_margin", "max_confidence_diff"):
        (fault,) = onnx_export.Proof(**fine, **{name: 2e-3 * factor}).faults()
        assert fault.startswith(name)


def test_a_network_that_the_exporter_cannot_take_is_named(scenes, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise torch.onnx.OnnxExporterError("Failed\nin detail") from ValueError("no such size\nsource code")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(onnx_export.ExportError, match=r"cannot export fpn-tu-test_resnet \(no such size\)"):
        onnx_export.export_onnx(network(), tmp_path / "model.onnx", scenes, ExportConfig(), {}, SMALL)


@pytest.mark.parametrize("output", ["confidence", "none"])
def test_other_outputs(scenes, tmp_path, graph, output):
    path = tmp_path / "model.onnx"
    proof = onnx_export.export_onnx(network(), path, scenes, ExportConfig(output=output), {}, SMALL)
    assert 0 < proof.max_abs_diff <= 1e-3  # of logits that the file does not give
    session = onnxruntime.InferenceSession(path)
    image = scenes.read(0)[0][None]
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True))
    assert list(found) == (["mask"] if output == "none" else ["mask", "confidence"])
    with torch.no_grad():
        confidence, mask = network()(torch.from_numpy(image).permute(0, 3, 1, 2)).upsampled().softmax(1).max(1)
    assert (found["mask"] == mask.numpy()).all()
    if output == "confidence":
        assert found["confidence"].shape == (1, 64, 96)
        assert np.abs(found["confidence"] - confidence.numpy()).max() < 1e-5


def test_nothing_of_the_sources_is_in_the_file(exported):
    content = exported[0].read_bytes()
    assert b"Deployed" not in content
    assert b".py" not in content


def test_images_of_several_sizes_and_an_architecture_for_one(tmp_path, monkeypatch):
    images = [np.zeros((64, 96, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)]
    several = Dataset(["a", "b"], lambda i: (images[i], images[i][..., 0]), [()] * 2, lambda i: None)
    monkeypatch.setattr(onnx_export, "write_onnx", lambda *_: pytest.fail("exported first"))
    with pytest.raises(onnx_export.ExportError, match=r"PSPNet is exported for one size.*data.image_size"):
        onnx_export.export_onnx(network("pspnet"), tmp_path / "model.onnx", several, ExportConfig(), {})


@pytest.mark.parametrize(("align_corners", "scale"), [(True, None), (False, None), (True, 2.0), (False, 4.0)])
def test_bilinear_upsampling_is_that_of_torch(tmp_path, align_corners, scale):
    class Upsample(torch.nn.Module):
        def forward(self, x, like):
            size = like.shape[-2:] if scale is None else None
            return torch.nn.functional.interpolate(x, size, scale, mode="bilinear", align_corners=align_corners)

    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free}, {2: free, 3: free})
    program = torch.onnx.export(
        Upsample(),
        (torch.zeros(2, 3, 5, 7), torch.zeros(1, 1, 20, 30)),
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
        custom_translation_table=onnx_export.TRANSLATIONS,
    )
    program.save(tmp_path / "up.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "up.onnx")
    names = [i.name for i in session.get_inputs()]
    for (h, w), (height, width) in (((5, 7), (20, 30)), ((1, 1), (4, 4)), ((3, 1), (9, 2)), ((6, 4), (6, 11))):
        torch.manual_seed(0)
        tensors = torch.randn(2, 3, h, w), torch.zeros(1, 1, height, width)
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=False)}
        (found,) = session.run(None, feed)
        assert np.abs(found - Upsample()(*tensors).numpy()).max() < 1e-5


def test_the_cheaper_order_gives_the_same_logits():
    net, image = network(), torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    with torch.no_grad():
        difference = net(image).logits - models.streamlined(net)(image).logits
    assert difference.abs().max() < 1e-4
    assert "_FpnLogits" not in str(net)
    other = network("unet")
    with torch.no_grad():
        torch.testing.assert_close(models.streamlined(other)(image).logits, other(image).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["segformer"])
def test_other_architectures(scenes, tmp_path, arch):
    proof = onnx_export.export_onnx(network(arch), tmp_path / "model.onnx", scenes, ExportConfig(), {}, SMALL)
    assert proof.shapes == [[count, *size] for size in ([64, 96], *map(list, SMALL)) for count in (1, 3)]


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["resnet18", "tu-mobilenetv3_small_050"])
@pytest.mark.parametrize("arch", ["unet", "fpn", "deeplabv3plus", "segformer", "linknet", "pan", *models.FIXED_SIZE])
def test_architectures_sizes_and_batches(scenes, tmp_path, arch, encoder):
    proof = onnx_export.export_onnx(network(arch, encoder), tmp_path / "model.onnx", scenes, ExportConfig(), {})
    sizes = [[64, 96], *([] if arch in models.FIXED_SIZE else map(list, onnx_export.OTHER_SIZES))]
    assert proof.shapes == [[count, *size] for size in sizes for count in (1, 3)]
