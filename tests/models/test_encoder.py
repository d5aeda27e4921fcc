"""Encoders: weights from a file, and nothing of the stages that are not used."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file

from distill import models
from distill.config.networks import NetworkConfig
from distill.config.schema import Config
from distill.errors import ConfigError
from distill.models.network import build, load
from distill.training.provenance import settings_of_stage
from distill.training.stage import STUDENT

CLASSES = ["a", "b", "c"]


def weights_of(folder, name, **changes):
    """A file as timm publishes it, classifier and all."""
    torch.manual_seed(5)
    state = timm.create_model(name, pretrained=False).state_dict()
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in (state | changes).items() if v is not None}, path)
    return path


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("tf_efficientnet_lite0", {}),
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("tf_efficientnet_lite0", {"encoder_depth": 4}),
    ],
)
def test_an_encoder_has_the_weights_of_its_file(tmp_path, encoder, options):
    path = weights_of(tmp_path, encoder)
    arch = "deeplabv3plus" if options else "fpn"
    wanted = NetworkConfig(arch=arch, encoder_name=f"tu-{encoder}", encoder_weights=str(path), options=options)
    network = build(wanted, CLASSES)
    published = load_file(path)
    for name, value in network.model.encoder.model.state_dict().items():
        first, _, rest = name.partition(".")
        stored = name if name in published else f"{first.replace('_', '.')}.{rest}"
        assert torch.equal(value, published[stored]), name


def test_a_file_of_another_encoder_is_refused_with_its_first_differences(tmp_path):
    resnet = weights_of(tmp_path, "resnet18")
    cases = {
        "tu-resnet34": r"holds the weights of another encoder \(layer1\.2\.conv1\.weight is missing, .* more\)",
        "tu-tf_efficientnet_lite0": r"another encoder \(conv_stem\.weight is missing",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            build(NetworkConfig(encoder_name=name, encoder_weights=str(resnet)), CLASSES)
    wide = weights_of(tmp_path, "resnet18", **{"conv1.weight": torch.zeros(64, 4, 7, 7), "more.weight": torch.zeros(1)})
    with pytest.raises(
        ConfigError, match=r"conv1\.weight has the shape \[64, 4, 7, 7\], here \[64, 3, 7, 7\], more\.weight"
    ):
        build(NetworkConfig(encoder_name="tu-resnet18", encoder_weights=str(wide)), CLASSES)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"encoder_weights: .*nothing\.safetensors is not there"):
        build(NetworkConfig(encoder_weights=str(tmp_path / "nothing.safetensors")), CLASSES)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ConfigError, match=r"text\.safetensors is not a safetensors file"):
        build(NetworkConfig(encoder_weights=str(tmp_path / "text.safetensors")), CLASSES)


def test_a_stage_is_known_by_what_the_file_holds_not_by_its_name(tmp_path):
    path = weights_of(tmp_path, "resnet18")
    config = Config(student=NetworkConfig(encoder_name="tu-resnet18", encoder_weights=str(path)))
    first = settings_of_stage(config, STUDENT, 1)["student.encoder_weights"]
    moved = path.rename(tmp_path / "renamed.safetensors")
    config.student.encoder_weights = str(moved)
    assert settings_of_stage(config, STUDENT, 1)["student.encoder_weights"] == first
    weights_of(tmp_path, "resnet18", **{"conv1.weight": torch.ones(64, 3, 7, 7)}).rename(moved)
    assert settings_of_stage(config, STUDENT, 1)["student.encoder_weights"] != first


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "tu-mobilenetv3_small_050", "resnet18", "mit_b0"])
def test_stages_behind_the_depth_are_gone_and_the_output_stays(tmp_path, encoder):
    options = {"encoder_depth": 3, "decoder_channels": [32, 16, 16]}
    torch.manual_seed(1)
    network = build(NetworkConfig(arch="unet", encoder_name=encoder, options=options), CLASSES).eval()
    torch.manual_seed(1)
    whole = smp.create_model("unet", encoder, encoder_weights=None, classes=3, **options).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.allclose(network.model(image), whole(image), atol=1e-5)  # in another memory format
    assert models.count_parameters(network.model.encoder) < 0.5 * models.count_parameters(whole.encoder)
    assert not models.freeze_unused(network, (64, 64))
    models.save(network, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4.2 * models.count_parameters(network) + 100_000
    again = load(tmp_path, CLASSES, network.mean.flatten() / 255, network.std.flatten() / 255)
    assert torch.equal(again.model(image), network.model(image))
    assert models.count_parameters(again) == models.count_parameters(network)


def test_networks_saved_with_unused_stages_are_read_as_they_are(tmp_path):
    options = {"encoder_depth": 3, "decoder_channels": [32, 16, 16]}
    whole = smp.create_model("unet", "resnet18", encoder_weights=None, classes=3, **options)
    whole.save_pretrained(str(tmp_path))
    read = load(tmp_path, CLASSES, [0.5] * 3, [0.5] * 3)
    assert models.count_parameters(read) == models.count_parameters(whole)
