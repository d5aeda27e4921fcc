import json

import pytest
import segmentation_models_pytorch as smp
import torch
from timm.layers import Conv2dSame

from distill import models
from distill.config import ConfigError, NetworkConfig
from distill.data import save_preprocessing

CLASSES = ["a", "b", "c"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def network(arch: str = "fpn", encoder: str = "tu-test_resnet", **settings) -> models.Network:
    torch.manual_seed(0)
    return models.build(NetworkConfig(arch=arch, encoder_name=encoder, **settings), CLASSES).eval()


def images(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("arch", ["unet", "fpn", "linknet", "deeplabv3plus", "pspnet", "upernet", "pan"])
def test_forward_is_smps_on_the_normalised_and_padded_image(arch):
    encoder = "resnet18" if arch in ("deeplabv3plus", "pan", "upernet") else "tu-test_resnet"
    ours, image = network(arch, encoder), images(50, 70)
    outputs = ours(image)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    x = torch.zeros(2, 3, *outputs.padded_size)
    x[..., :50, :70] = (image / 255 - mean) / std
    expected = ours.model(x)[..., :50, :70]
    assert outputs.upsampled().shape == (2, 3, 50, 70)
    assert torch.allclose(outputs.upsampled(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (97, 130)])
def test_any_size_goes(size):
    assert network()(images(*size)).upsampled().shape == (2, 3, *size)


def test_features_are_named():
    outputs = network()(images(64, 64), ("encoder.3", "decoder"))
    assert list(outputs.features) == ["encoder.3", "decoder"]
    assert outputs.features["encoder.3"].shape[-2:] == (8, 8)
    with pytest.raises(ConfigError, match=r"encoder\.9.*encoder\.1"):
        network()(images(64, 64), ("encoder.9",))


def test_a_saved_network_loads_here_and_in_smp(tmp_path):
    ours, image = network(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]), images(64, 64)
    models.save(ours, tmp_path)
    save_preprocessing(tmp_path, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], ours.stride)
    again = models.load(tmp_path, CLASSES, *IMAGENET)
    assert not any(module.training for module in again.modules())
    assert torch.allclose(again(image).logits, ours(image).logits, atol=1e-5)
    theirs = smp.from_pretrained(str(tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), ours.model.state_dict().values(), strict=True)
    )


def test_a_folder_that_is_no_teacher_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        models.load(tmp_path, CLASSES, *IMAGENET)
    models.save(network(), tmp_path)
    with pytest.raises(ConfigError, match="was trained for the classes"):
        models.load(tmp_path, ["a", "c", "b"], *IMAGENET)
    (tmp_path / "id2label.json").unlink()
    with pytest.raises(ConfigError, match="predicts 3 classes, but the data has 4"):
        models.load(tmp_path, ["a", "b", "c", "d"], *IMAGENET)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_pyramid_channels": 64}))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        models.load(tmp_path, CLASSES, *IMAGENET)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "fpnn"}, "arch: 'fpnn' is not one of"),
        ({"encoder": "resnet19"}, "resnet19"),
        ({"encoder": "tu-no_such_network"}, "no_such_network"),
        ({"options": {"decoder_width": 3}}, "decoder_width"),
    ],
)
def test_wrong_names_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        network(**settings)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(smp, "create_model", offline)
    with pytest.raises(
        ConfigError, match=r"encoder_weights: 'imagenet'.*no route to host.*set encoder_weights to null"
    ):
        network(encoder_weights="imagenet")


def test_parameters_without_gradient_are_found_and_frozen():
    ours = network("pspnet", "resnet18")
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    unused = models.freeze_unused(ours, (64, 64))
    assert len(unused) == 30
    assert {n for n, p in ours.named_parameters() if not p.requires_grad} == set(unused)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
    assert models.freeze_unused(network(), (64, 64)) == []


def test_parameters_and_flops_of_a_known_network():
    ours = network("unet", "resnet18")
    assert models.count_parameters(ours) == 14_328_499
    # The first convolution alone: 2 · 64 · 3 · 7² multiply-adds a pixel of the half-size map.
    assert models.count_flops(ours, (64, 64)) > 2 * 64 * 3 * 49 * 32 * 32
    assert models.count_flops(ours, (64, 128)) == 2 * models.count_flops(ours, (64, 64))


@pytest.mark.parametrize("size", [(64, 96), (97, 130)])
def test_same_padding_is_constant_behind_the_stride(size):
    ours, image = network(encoder="tu-tf_mobilenetv3_small_minimal_100"), images(*size)
    lean = models.streamlined(ours)
    assert [any(isinstance(m, Conv2dSame) for m in n.modules()) for n in (ours, lean)] == [True, False]
    with torch.no_grad():
        torch.testing.assert_close(lean(image).upsampled(), ours(image).upsampled(), rtol=1e-4, atol=1e-4)
