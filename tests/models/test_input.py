"""Networks of other images than RGB of 8 bits: gray, many channels, 16 bits, some of an image's channels."""

import json
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from distill import models
from distill.batch import RGB, ImageKind
from distill.config.networks import NetworkConfig
from distill.errors import ConfigError

CLASSES = ["a", "b", "c"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
DEEP = ImageKind(6, "uint16")


def network(image: ImageKind, **settings) -> models.Network:
    torch.manual_seed(0)
    count = len(settings.get("channels") or range(image.channels))
    numbers = {"mean": [1000.0 + 100 * i for i in range(count)], "std": [50.0 + i for i in range(count)]}
    config = NetworkConfig(encoder_name="tu-test_resnet", **{**numbers, **settings})
    return models.build(config, CLASSES, None, image).eval()


def images(image: ImageKind, size: tuple[int, int] = (50, 70)) -> torch.Tensor:
    return torch.randint(500, 1500, (2, image.channels, *size), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("bands", [None, [4, 0]])
def test_each_channel_is_normalized_in_the_images_own_units(bands):
    ours, image = network(DEEP, channels=bands), images(DEEP)
    taken = image if bands is None else image[:, bands]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in ours.normalization)
    assert torch.allclose(ours.normalize(image), (taken - mean) / std)
    assert torch.equal(ours.normalize(image.to(torch.uint16)), ours.normalize(image))
    assert ours(image).upsampled().shape == (2, 3, 50, 70)


@torch.no_grad()
def test_units_do_not_matter_if_they_are_measured():
    """Ten times the numbers with ten times the mean and std are the same image."""
    small, image = network(DEEP), images(DEEP)
    factors = torch.tensor([10.0, 1.0, 0.1, 3.0, 7.0, 20.0])
    mean, std = ((torch.tensor(values) * factors).tolist() for values in small.normalization)
    large = network(DEEP, mean=mean, std=std)
    assert torch.allclose(large(image * factors.view(1, 6, 1, 1)).logits, small(image).logits, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("image", "bands"),
    [(DEEP, None), (DEEP, [3, 1, 2]), (RGB, [1]), (ImageKind(1), None), (ImageKind(4, "float32"), None)],
)
def test_a_network_is_read_as_it_was_saved(image, bands, tmp_path):
    written = network(image, channels=bands)
    models.save(written, tmp_path)
    for wanted in (None, image):
        read = models.load(tmp_path, CLASSES, *IMAGENET, None, wanted)
        assert (read.image, read.bands) == (image, bands)
        assert torch.allclose(read(images(image)).logits, written(images(image)).logits, atol=1e-4)
    with pytest.raises(ConfigError, match=r"input\.json: it takes images of .* but the data has 5 channels of uint8"):
        models.load(tmp_path, CLASSES, *IMAGENET, None, ImageKind(5))


def test_networks_of_rgb_have_no_further_file(tmp_path):
    models.save(models.build(NetworkConfig(encoder_name="tu-test_resnet"), CLASSES), tmp_path)
    assert not (tmp_path / "input.json").exists()


def test_a_gray_teacher_takes_one_channel_of_rgb_if_it_is_named(tmp_path):
    smp.FPN("tu-test_resnet", encoder_weights=None, in_channels=1, classes=3).save_pretrained(str(tmp_path))
    gray = ([0.5], [0.2])
    with pytest.raises(ConfigError, match=r"takes images of 1 channel, not of 3; name the 1 .* channels \[0\]"):
        models.load(tmp_path, CLASSES, *gray, None, RGB)
    read = models.load(tmp_path, CLASSES, *gray, None, RGB, [2])
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(read.normalize(image), (image[:, 2:] / 255 - 0.5) / 0.2, atol=1e-5)
    with pytest.raises(ConfigError, match=r"mean: 3 numbers for 1 channels; give one for each"):
        models.load(tmp_path, CLASSES, *IMAGENET, None, ImageKind(1))


def test_channels_and_means_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"mean: 3 numbers for 6 channels; give one for each"):
        models.build(NetworkConfig(encoder_name="tu-test_resnet"), CLASSES, None, DEEP)
    with pytest.raises(ConfigError, match=r"channels: 6 is not one of the images' channels, 0 to 5"):
        network(DEEP, channels=[0, 6])


@pytest.mark.parametrize(
    ("change"),
    [{"bands": [9]}, {"mean": [1.0]}, {"std": [0.0] * 6}, {"dtype": "int8"}, {"channels": "6"}, {"more": 1}],
)
def test_a_file_that_does_not_say_what_is_taken_is_refused(change, tmp_path):
    models.save(network(DEEP), tmp_path)
    path = tmp_path / "input.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=r"input\.json: holds .*; expected what this project writes"):
        models.load(tmp_path, CLASSES, *IMAGENET)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_filters_of_colors_serve_other_channels(channels, tmp_path):
    colors = network(RGB, mean=IMAGENET[0], std=IMAGENET[1])
    path = Path(tmp_path / "weights.safetensors")
    save_file({k: v.contiguous() for k, v in colors.model.encoder.model.state_dict().items()}, path)
    ours = network(ImageKind(channels), mean=[0.5] * channels, std=[0.2] * channels, encoder_weights=str(path))
    wanted, given = (n.model.encoder.model.conv1[0].weight for n in (ours, colors))
    assert wanted.shape[1] == channels
    flat = torch.ones(1, channels, 8, 8), torch.ones(1, 3, 8, 8)  # all channels alike: what gray images are
    answers = [torch.nn.functional.conv2d(x, w) for x, w in zip(flat, (wanted, given), strict=True)]
    if channels == 1:
        assert torch.allclose(*answers, atol=1e-5)
    else:
        assert torch.allclose(wanted[:, 1], given[:, 1] * 3 / channels)
