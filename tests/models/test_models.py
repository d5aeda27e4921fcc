import json
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from timm.layers import Conv2dSame

from distill import models
from distill.config.networks import NetworkConfig
from distill.data import save_preprocessing
from distill.deployment.torch_runtime import SmpFolder
from distill.errors import ConfigError

CLASSES = ["a", "b", "c"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def network(arch: str = "fpn", encoder: str = "tu-test_resnet", **settings) -> models.Network:
    torch.manual_seed(0)
    return models.build(NetworkConfig(arch=arch, encoder_name=encoder, **settings), CLASSES).eval()


def images(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("arch", ["unet", "fpn", "linknet", "deeplabv3plus", "pspnet", "upernet", "pan", "fcn", "cnn"])
def test_forward_is_smps_on_the_normalized_and_padded_image(arch):
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


@pytest.fixture
def folder(tmp_path) -> Path:
    models.save(network(), tmp_path)
    return tmp_path


NORMALIZE = A.Normalize()
PIPELINES = {
    "Normalize": [NORMALIZE],
    "one mean for all channels": [A.Normalize(mean=0.5, std=0.25)],
    "values of 0 to 1": [A.Normalize(mean=(100, 110, 120), std=60, max_pixel_value=1.0)],
    "ToFloat alone": [A.ToFloat()],
    "ToFloat by another maximum": [A.ToFloat(max_value=510)],
    "ToFloat and Normalize": [A.ToFloat(), A.Normalize(max_pixel_value=1.0)],
    "ToFloat does nothing to floats": [NORMALIZE, A.ToFloat()],
    "Normalize twice": [NORMALIZE, A.Normalize(mean=0.1, std=0.5, max_pixel_value=2.0)],
    "nested": [A.NoOp(), A.Compose([A.Sequential([A.PadIfNeeded(64, 64), NORMALIZE], p=1)])],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_preprocessing_of_others_is_read_right(folder, name):
    pipeline, image = A.Compose(PIPELINES[name]), images(64, 64, 1)
    pipeline.save_pretrained(str(folder))
    theirs = torch.from_numpy(pipeline(image=image[0].permute(1, 2, 0).numpy())["image"]).permute(2, 0, 1)[None]
    ours = models.load(folder, None, [0.9, 0.9, 0.9], [0.9, 0.9, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(ours(image).upsampled(), ours.model(theirs.float()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        *(
            ([A.Normalize(normalization=kind)], f"normalization '{kind}'")
            for kind in ("image", "image_per_channel", "min_max", "min_max_per_channel")
        ),
        ([A.Compose([A.Normalize(normalization="image")])], "normalization 'image'"),
        ([A.Normalize(p=0.5)], "Normalize has p 0.5"),
        ([A.OneOf([NORMALIZE, A.ToFloat()], p=1.0)], "OneOf changes the values"),
        ([A.CLAHE(p=1.0), NORMALIZE], "CLAHE changes the values"),
    ],
)
def test_the_preprocessing_of_others_is_refused_by_name(folder, steps, words):
    A.Compose(steps).save_pretrained(str(folder))
    with pytest.raises(ConfigError, match=rf"albumentations_config_eval\.json: .*{words}.*expected Normalize"):
        models.load(folder, CLASSES, *IMAGENET)


def test_a_pipeline_that_only_resizes_leaves_the_settings(folder):
    A.Compose([A.Resize(64, 64), A.PadIfNeeded(64, 64)]).save_pretrained(str(folder))
    assert models.load(folder, CLASSES, [0.5, 0.6, 0.7], [1, 1, 1]).mean.flatten().tolist() == [127.5, 153.0, 178.5]


def changed(name: str, **values) -> Callable[[Path], object]:
    """Other values in a JSON file of the folder."""

    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | values))

    return change


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


NAMES, CONFIG, PIPELINE = "id2label.json", "config.json", "albumentations_config_eval.json"
BAD_FILES = {
    "names in a list": (written(NAMES, '["a", "b", "c"]'), "expected a JSON object in UTF-8"),
    "wrong keys": (written(NAMES, '{"1": "a", "2": "b", "3": "c"}'), "has the keys '1', '2', '3'; expected"),
    "names that are numbers": (written(NAMES, '{"0": 1, "1": 2, "2": 3}'), "names that are no text"),
    "more names than outputs": (
        written(NAMES, '{"0": "a", "1": "b", "2": "c", "3": "d"}'),
        "predicts 3 classes|was trained for",
    ),
    **{
        f"{what} in {name}": (written(name, content), rf"{name}: expected a JSON object in UTF-8")
        for name in (NAMES, CONFIG, PIPELINE)
        for what, content in {
            "no JSON": "a, b, c",
            "no UTF-8": b'{"0": "\xff"}',
            "nothing": "",
            "null": "null",
            "a deep list": "[" * 100_000,
            "too much": " " * 1_000_001,
        }.items()
    },
    "a pipeline without transform": (written(PIPELINE, "{}"), "holds null where a transform should be"),
    "a pipeline without transforms": (
        written(PIPELINE, '{"transform": {"__class_fullname__": "Compose"}}'),
        "Compose has no list of transforms",
    ),
    "a pipeline of another library": (
        written(PIPELINE, '{"transform": {"__class_fullname__": "mine.Normalize"}}'),
        "mine.Normalize is not one of albumentations",
    ),
    **{
        f"Normalize with {key} {value!s:.9}": (
            written(PIPELINE, json.dumps({"transform": {"__class_fullname__": "Normalize", **good, key: value}})),
            f"Normalize has {key}",
        )
        for good in [{"mean": 0.5, "std": 0.5}]
        for key, values in {
            "mean": [None, [0.5], float("nan"), 10**400],
            "std": [0, "1"],
            "max_pixel_value": [None, float("inf")],
        }.items()
        for value in values
    },
    "no channels": (changed(CONFIG, in_channels=0), "in_channels: 0; expected at least 1"),
    "one class": (changed(CONFIG, classes=1), "predicts one class"),
    "no class of network": (changed(CONFIG, _model_class=None), "_model_class: None; expected"),
    "a weights file elsewhere": (changed(CONFIG, checkpoint_path="x.pt"), "checkpoint_path: would read another file"),
    "a huge number": (changed(CONFIG, img_size=[10**9]), "img_size: asks for more than 100,000"),
    "far more layers than weights": (changed(CONFIG, layers=[3_000, 1, 1, 1]), "asks for far more layers"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("classes", [CLASSES, None])
def test_what_is_wrong_with_a_folder_is_said_in_a_line(folder, name, classes):
    damage, words = BAD_FILES[name]
    damage(folder)
    with pytest.raises(ConfigError, match=words) as raised:
        models.load(folder, classes, *IMAGENET)
    assert "\n" not in str(raised.value)


def test_what_stands_there_instead_of_a_folder_is_said(folder):
    for path, words in [
        (folder / "nowhere", "is not there"),
        (folder / "model.safetensors", "is a file"),
        (folder.parent, r"holds no config\.json"),
    ]:
        with pytest.raises(ConfigError, match=rf"{path}: {words}.*expected a folder written by SMP"):
            models.load(path, CLASSES, *IMAGENET)


def test_encoders_that_compute_with_numbers_while_they_are_built_load(tmp_path):
    models.save(network("segformer", "mit_b0"), tmp_path)
    assert models.load(tmp_path, CLASSES, *IMAGENET)(images(64, 64)).upsampled().shape == (2, 3, 64, 64)


def test_a_folder_whose_network_takes_one_size_says_so(tmp_path):
    models.save(network("dpt", "tu-vit_tiny_patch16_224"), tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}: failed on an image of \(30, 40, 3\): .*224") as raised:
        SmpFolder(tmp_path).mask(np.zeros((30, 40, 3), np.uint8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [(1, 1), (20, 32), (32, 32)])
def test_one_value_per_group_is_normalized_to_the_bias(size):
    lean = network(options={"decoder_segmentation_channels": 32})  # GroupNorm's 32 groups, on a map of one pixel
    image = images(*size)
    with torch.no_grad():
        alone, both = lean(image[:1]).upsampled(), lean(image).upsampled()
    assert torch.allclose(alone, both[:1], rtol=1e-5, atol=1e-5)


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

    monkeypatch.setitem(models.network.ARCHITECTURES, "fpn", offline)
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
