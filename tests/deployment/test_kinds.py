"""Every file, of every kind of head, for every kind of image: the mask of the file is that of the network."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill import models
from distill.batch import ImageKind
from distill.cli import predict
from distill.config.networks import NetworkConfig
from distill.config.schema import ExportConfig
from distill.data import Dataset
from distill.deployment import fp16
from distill.deployment.int8 import quantize_onnx
from distill.deployment.onnx_export import export_onnx
from distill.deployment.runtime import OnnxModel, open_model
from distill.evaluation.detailed import assess, plain, worst_strip

WHITE = {"uint8": 255, "uint16": 40_000, "float32": 3.0}
KINDS = [
    ("softmax", ImageKind(6, "uint16"), None, "logits"),
    ("sigmoid", ImageKind(4, "float32"), [2, 0], "none"),
    ("multilabel", ImageKind(3, "uint8"), None, "logits"),
]
REST = [
    (head, ImageKind(channels, dtype), None, "confidence")
    for head in ("softmax", "sigmoid", "multilabel")
    for channels in (1, 3, 6)
    for dtype in WHITE
]


def named(kind) -> str:
    head, image, bands, _ = kind
    return f"{head} {image} {bands or ''}"


def pictures(image: ImageKind, network: models.Network | None = None, count: int = 3) -> Dataset:
    """Smooth noise of a kind, labeled by a network if there is one."""
    random = np.random.default_rng(0)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        values = WHITE[image.dtype] * items[index]
        picture = values.astype(image.dtype) if image.dtype == "float32" else values.round().astype(image.dtype)
        if network is None:
            return picture, np.zeros(picture.shape[:2], np.uint8)
        with torch.no_grad():
            logits = network(torch.tensor(picture[None]).permute(0, 3, 1, 2)).upsampled()
        return picture, network.decide(logits)[0].byte().numpy()

    small = random.random((count, 8, 12, image.channels))
    items = small.repeat(8, axis=1).repeat(8, axis=2)
    names = [f"picture-{i}" for i in range(count)]
    return Dataset(names, read, [()] * count, lambda index: None, channels=image.channels, dtype=image.dtype)


@pytest.mark.parametrize("kind", KINDS + [pytest.param(kind, marks=pytest.mark.long) for kind in REST], ids=named)
def test_the_files_of_every_kind_do_what_the_network_does(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(fp16, "MAX_LOST", 0.02)  # of untrained networks on noise, where classes are close
    head, image, bands, output = kind
    classes = ["a", "b"] if head == "sigmoid" else ["a", "b", "c"]
    count, unit = len(bands or range(image.channels)), WHITE[image.dtype] / image.white
    torch.manual_seed(3)
    config = NetworkConfig(
        arch="unet",
        encoder_name="tu-test_resnet",
        options={"encoder_depth": 3, "decoder_channels": [16, 16, 16]},
        head=head,
        channels=bands,
        mean=[0.5 * unit] * count,
        std=[0.3 * unit] * count,
    )
    network = models.build(config, classes, None, image).eval()
    with torch.no_grad():  # both classes are seen
        found = network(torch.tensor(pictures(image).read(0)[0][None]).permute(0, 3, 1, 2)).upsampled()
        network.model.segmentation_head[0].bias -= found.mean((0, 2, 3))[
            -network.model.segmentation_head[0].out_channels :
        ]
    data, path = pictures(image, network), tmp_path / "model.onnx"
    shown = np.unique(np.stack([data.read(i)[1] for i in range(3)]))
    assert len(shown) == (2 if head == "multilabel" else len(classes))
    proof = export_onnx(network, path, data, ExportConfig(output=output), {"classes": classes}, ((33, 50),))
    assert proof.mean_iou > 0.999
    half = fp16.export_fp16(path, tmp_path / "half.onnx", data)
    small = quantize_onnx(path, tmp_path / "int8.onnx", data, data, ["minmax"], max_lost=0.2)
    assert half.argmax_agreement > 0.99 and small.argmax_agreement > 0.8
    for file in (path, tmp_path / "half.onnx", tmp_path / "int8.onnx"):
        model = OnnxModel(file)
        assert model.image == (image.channels, image.dtype)
        assert model.mask(data.read(0)[0]).shape == data.read(0)[1].shape
    opened = open_model(path)
    assert opened.image == (image.channels, image.dtype)
    assert np.array_equal(opened.mask(data.read(1)[0]), OnnxModel(path).mask(data.read(1)[0]))
    if output == "logits":
        assessed = assess(len(classes), plain(opened), data)
        assert assessed.scores.mean_iou > 0.999 and assessed.boundary.mean > 0.99
    picture, mask = data.read(0)
    assert worst_strip(picture, mask, mask, [(1, 2, 3)] * len(classes), None).dtype == np.uint8


def test_a_picture_of_any_kind_is_predicted_as_it_is_stored(tmp_path, capsys):
    image = ImageKind(5, "uint16")
    torch.manual_seed(0)
    config = NetworkConfig(encoder_name="tu-test_resnet", mean=[2e4] * 5, std=[1e4] * 5)
    network = models.build(config, ["a", "b"], None, image).eval()
    models.save(network, tmp_path / "network")
    picture, mask = pictures(image, network).read(0)
    np.save(tmp_path / "deep.npy", picture)
    np.save(tmp_path / "bright.npy", picture.astype(np.float32))
    np.save(tmp_path / "few.npy", picture[..., :3])
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "rgb.png")
    files = [str(tmp_path / name) for name in ("deep.npy", "bright.npy", "few.npy", "rgb.png")]
    assert predict([str(tmp_path / "network"), *files, "--output_dir", str(tmp_path / "out"), "--overlay", "0.5"]) == 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/deep.png")), mask)
    assert Image.open(tmp_path / "out/overlays/deep.jpg").size == (96, 64)
    said = capsys.readouterr().err
    assert "bright.npy: is float32; the network takes images of 5 channels of uint16" in said
    assert "few.npy: has 3 channels" in said and "rgb.png: has 3 channels" in said
    assert [p.name for p in (tmp_path / "out/masks").iterdir()] == ["deep.png"]
