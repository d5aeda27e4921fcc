"""FCN and the plain network: built, saved, read and exported as SMP's are."""

import pytest
import torch

from distill import models
from distill.config.networks import NetworkConfig
from distill.errors import ConfigError

CLASSES = ["a", "b", "c"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def network(arch: str, **options) -> models.Network:
    torch.manual_seed(0)
    return models.build(NetworkConfig(arch=arch, encoder_name="tu-test_resnet", options=options), CLASSES)


@pytest.mark.parametrize(
    ("arch", "options"),
    [("fcn", {}), ("fcn", {"encoder_depth": 4, "decoder_channels": 16}), ("cnn", {}), ("cnn", {"widths": [8, 16, 24]})],
)
def test_it_is_read_as_it_was_saved(arch, options, tmp_path):
    written, image = network(arch, **options).eval(), torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    models.save(written, tmp_path)
    read = models.load(tmp_path, CLASSES, *IMAGENET)
    with torch.no_grad():
        assert read(image).upsampled().shape == (2, 3, 50, 70)
        assert torch.allclose(read(image).logits, written(image).logits, atol=1e-5)
    assert not models.freeze_unused(network(arch, **options), (64, 64))


def test_every_skip_of_the_fcn_counts_and_can_be_learned_from():
    fcn, image = network("fcn"), torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    found = fcn(image, ("encoder.3", "encoder.4", "encoder.5", "decoder"))
    assert found.features["decoder"].shape == (2, 128, 8, 12)
    found.logits.square().sum().backward()
    skips = fcn.model.decoder.skips
    assert len(skips) == 2 and all(skip.weight.grad.any() for skip in skips)


def test_the_plain_network_keeps_each_scale():
    found = network("cnn", widths=[8, 16, 24])(torch.zeros(1, 3, 64, 64), ("encoder.3", "decoder"))
    assert found.features["encoder.3"].shape == (1, 24, 16, 16)
    assert found.features["decoder"].shape == (1, 8, 64, 64)
    assert found.logits.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arch", "options", "words"),
    [
        ("cnn", {"encoder_depth": 4}, "'encoder_depth' is not an option of cnn, which has: widths"),
        ("cnn", {"widths": [8]}, r"widths \[8\] must be two to six"),
        ("fcn", {"encoder_depth": 2}, "encoder_depth 2 must be 3 to 5"),
    ],
)
def test_options_that_it_does_not_have_are_named(arch, options, words):
    with pytest.raises(ConfigError, match=words):
        network(arch, **options)
