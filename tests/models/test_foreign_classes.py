"""Teachers of other classes: matched by name and table, merged, left out."""

import pytest
import torch

from distill import models
from distill.batch import Outputs
from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.foreign import Mapped, open_teacher
from distill.models.foreign.classes import match

THEIRS = ["Person", "rider", "traffic light", "sky", "road"]


def test_names_match_whatever_their_case_and_punctuation():
    found = match(THEIRS, ["road", "Traffic-Light", "person"], {"rider": "person"})
    assert found.groups == [[4], [2], [0, 1]] and found.left_out == ["sky"]
    assert found.table() == [
        "  road           ← road (4)",
        "  Traffic-Light  ← traffic light (2)",
        "  person         ← Person (0) + rider (1)",
        "  left out: sky",
    ]


def test_the_table_wins_over_the_name():
    assert match(THEIRS, ["person", "sky"], {"sky": None, "road": "sky"}).groups == [[0], [4]]


@pytest.mark.parametrize(
    ("ours", "table", "message"),
    [
        (["person", "boat"], None, r"no class of the teacher stands for boat of the data; .*allow_untaught true"),
        (["person"], {"ridr": "person"}, r"'ridr' is no class of the teacher \(did you mean 'rider'\?\)"),
        (["person"], {"rider": "persona"}, r"rider: 'persona' is no class of the data \(did you mean 'person'\?\)"),
        (["a b", "A-B"], None, "two names differ only in case"),
    ],
)
def test_what_does_not_fit_is_named(ours, table, message):
    with pytest.raises(ConfigError, match=message):
        match(THEIRS, ours, table)


def test_nobody_teaching_anything_is_never_allowed():
    with pytest.raises(ConfigError, match="stands for boat, tree"):
        match(THEIRS, ["boat", "tree"], None, allow_untaught=True)


class Fixed(models.Network):
    """Gives the same logits for every image."""

    def __init__(self, logits):
        torch.nn.Module.__init__(self)
        self.answer, self.classes, self.stride = logits, THEIRS, 1
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))

    def forward(self, image, features=()):
        return Outputs.of(self.answer)


def test_probabilities_add_up_and_what_is_left_out_is_shared_out():
    logits = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3
    mapped = Mapped(Fixed(logits), match(THEIRS, ["road", "person", "boat"], {"rider": "person"}, True))
    p, ours = logits.softmax(1), mapped(torch.zeros(2, 3, 4, 6)).logits.softmax(1)
    expected = torch.stack([p[:, 4], p[:, 0] + p[:, 1], 0 * p[:, 0]], 1)
    assert torch.allclose(ours, expected / expected.sum(1, keepdim=True), atol=2e-6)


@torch.no_grad()
def test_a_folder_of_smps_with_other_classes_teaches_by_name(tmp_path):
    config = TeacherConfig(encoder_name="tu-test_resnet")
    torch.manual_seed(0)
    network = models.build(config, THEIRS).eval()
    models.save(network, tmp_path)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)

    def opened(ours, **settings):
        wanted = TeacherConfig(checkpoint=str(tmp_path), **settings)
        return open_teacher(wanted, ours, image, None, str)

    assert opened(THEIRS) is None and opened(["boat", "road"]) is None  # read, or refused, as ever
    found = opened(["road", "person"])
    assert torch.equal(found.network(image).logits, network(image).logits[:, [4, 0]].float())
    assert "decoder" in found.network.channels and found.network(image, ["decoder"]).features
    found = opened(["road", "person"], classes={"rider": "person"})
    merged = network(image).logits[:, [0, 1]].logsumexp(1)
    assert torch.allclose(found.network(image).logits[:, 1], merged)


def test_settings_for_other_kinds_are_refused_for_smps(tmp_path):
    models.save(models.build(TeacherConfig(encoder_name="tu-test_resnet"), THEIRS), tmp_path)
    for settings in ({"bgr": True}, {"window": [32, 32]}, {"output": "scores"}):
        with pytest.raises(ConfigError, match=rf"teacher\.{next(iter(settings))}: is for other kinds of teachers"):
            open_teacher(TeacherConfig(checkpoint=str(tmp_path), **settings), THEIRS, torch.zeros(1), None, str)
    with pytest.raises(ValueError, match=r"classes.*leave it out"):
        TeacherConfig(classes={"rider": "person"})
