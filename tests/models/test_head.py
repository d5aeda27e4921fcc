"""One channel for two classes: the same losses, metrics and files as with a channel for each."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from conftest import tiny_config

from distill import models
from distill.batch import Outputs, Target
from distill.config.networks import NetworkConfig
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.models.network import class_logits

SCENE = ["background", "thing"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Every loss that gives the same if a number is added to all logits of a pixel; CWD's softmax is over pixels.
LOGIT_TERMS = {
    "cross_entropy": {"class_weights": [1.0, 3.0], "label_smoothing": 0.1},
    "ohem": {},
    "dice": {},
    "jaccard": {},
    "lovasz": {},
    "focal": {},
    "dkd": {},
    "dist": {},
    **{
        f"kd {kind}": {"divergence": kind, "temperature": 3.0}
        for kind in ("forward_kl", "reverse_kl", "jeffreys", "jensen_shannon")
    },
}


def network(head: str, arch: str = "fpn", **options) -> models.Network:
    torch.manual_seed(0)
    return models.build(NetworkConfig(arch=arch, head=head, options=options), SCENE).eval()


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(z: torch.Tensor, channels: int = 1) -> Outputs:
    """What a network says that has one channel, or two that mean the same."""
    shift = torch.linspace(-4, 4, z.numel(), dtype=z.dtype).view(z.shape)
    return Outputs.of(class_logits(z) if channels == 1 else torch.cat([shift, z + shift], 1))


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_one_and_two_channels_of_the_same_meaning_teach_and_learn_the_same(name):
    term = TERMS[name.split()[0]](TERMS[name.split()[0]].Config(**LOGIT_TERMS[name]))
    term.build({"logits": 2}, {"logits": 2})
    mask = torch.randint(0, 2, (2, 5, 7), generator=torch.Generator().manual_seed(3)).byte()
    mask[0, 0, :3], mask[1, 2, :2] = 255, 254
    found = {}
    for student_channels in (1, 2):
        for teacher_channels in (1, 2):
            z = logits(1).requires_grad_()
            value = term(outputs(z, student_channels), outputs(logits(2), teacher_channels), Target.of(mask))
            found[student_channels, teacher_channels] = value.detach(), torch.autograd.grad(value, z)[0]
    value, gradient = found.pop((1, 1))
    assert value > 0.01 and gradient.abs().max() > 1e-4
    for other, other_gradient in found.values():
        assert abs(other - value) <= 1e-12
        assert (other_gradient - gradient).abs().max() <= 1e-12


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_of_two_sigmoids_has_the_closed_form(temperature):
    student, teacher = logits(1), logits(2)
    zs, zt = student / temperature, teacher / temperature
    expected = temperature**2 * (F.softplus(zs) - F.softplus(zt) - zt.sigmoid() * (zs - zt)).mean()
    kd = TERMS["kd"](TERMS["kd"].Config(temperature=temperature))
    target = Target.of(torch.zeros(2, 5, 7, dtype=torch.uint8))
    assert float(kd(outputs(student), outputs(teacher), target)) == pytest.approx(float(expected), rel=1e-12)


def test_the_probability_of_the_second_class_is_the_sigmoid():
    z = torch.tensor([[[[-3.0, 0.0, 2.0]]]])
    assert torch.allclose(class_logits(z).softmax(1)[:, 1:], z.sigmoid())
    two = torch.randn(1, 2, 3, 3)
    assert class_logits(two) is two


@pytest.mark.parametrize("arch", ["fpn", "unet"])
def test_a_sigmoid_network_has_one_channel_and_two_classes(arch, tmp_path):
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        written = network("sigmoid", arch)
        found = written(image).upsampled()
        assert found.shape == (2, 2, 50, 70)
        assert not found[:, 0].any() and found[:, 1].any()
        models.save(written, tmp_path)
        assert torch.equal(models.load(tmp_path, SCENE, *IMAGENET)(image).upsampled(), found)
    assert smp.from_pretrained(str(tmp_path)).segmentation_head[0].out_channels == 1


def test_a_folder_of_one_class_names_the_background_itself(tmp_path):
    models.save(network("sigmoid"), tmp_path)
    (tmp_path / "id2label.json").write_text('{"0": "thing"}')
    assert models.load(tmp_path, None, *IMAGENET).classes == SCENE
    assert models.load(tmp_path, SCENE, *IMAGENET).classes == SCENE
    (tmp_path / "id2label.json").unlink()
    assert models.load(tmp_path, None, *IMAGENET).classes == ["class 0", "class 1"]
    with pytest.raises(
        ConfigError, match=r"predicts one class .* two classes apart, background and it; but the data has 3"
    ):
        models.load(tmp_path, ["a", "b", "c"], *IMAGENET)


def test_more_classes_than_a_sigmoid_can_tell_apart_are_refused():
    with pytest.raises(ConfigError, match=r"head: sigmoid decides between two classes, here are 3; set softmax"):
        models.build(NetworkConfig(head="sigmoid"), ["a", "b", "c"])


def test_modules_of_somebodys_own_may_have_one_channel():
    own = torch.nn.Conv2d(3, 1, 1)
    found = models.build(NetworkConfig(arch="own"), SCENE, own)(torch.zeros(1, 3, 8, 8))
    assert found.logits.shape == (1, 2, 32, 32)
    black = -torch.tensor(IMAGENET[0]) / torch.tensor(IMAGENET[1])
    assert found.logits[0, 1, 0, 0].item() == pytest.approx(own(black.view(1, 3, 1, 1)).item(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"one channel for each of the classes"):
        models.build(NetworkConfig(arch="own"), ["a", "b", "c"], own)(torch.zeros(1, 3, 8, 8))


def test_each_kind_of_head_is_a_setting_of_its_own():
    config = tiny_config("unused")
    assert config.student.head == config.teacher.head == "softmax"
    with pytest.raises(ValueError, match="head"):
        NetworkConfig(head="softmaxx")
