"""A whole run with any number of classes at a pixel, and what its files say; networks and teachers of that kind."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from PIL import Image

from distill import evaluate, models, predict
from distill import load as load_segmenter
from distill.config.data import DataConfig
from distill.config.networks import NetworkConfig
from distill.data import open_splits
from distill.data.codec import Codec
from distill.errors import ConfigError
from distill.evaluation.per_image import confusion_per_image
from distill.evaluation.scores import evaluate as score
from distill.metrics import Scores, confusion_matrix
from distill.models.foreign.classes import Mapped, match
from distill.models.foreign.contract import check_many, many_logits
from distill.models.foreign.tiled import Windows
from distill.pipeline import distil
from distill.sweep.statistics import count_images, iou
from distill.training.ensemble import Ensemble
from distill.training.from_data import check_heads, settled

CLASSES = ["water", "ground", "shadow", "tree", "house", "boat", "person"]
MANY = {"data__multilabel": True, "teacher__head": "multilabel", "student__head": "multilabel"}
USUAL = ([0.5] * 3, [0.25] * 3)


def network(head: str = "multilabel", seed: int = 0) -> models.Network:
    torch.manual_seed(seed)
    return models.build(NetworkConfig(encoder_name="tu-test_resnet", head=head), CLASSES).eval()


def test_a_whole_run(tmp_path):
    settings = {"dice__weight": 0.5, "teacher__allow_near_chance": True, "teacher__cache__enabled": True}
    results = distil(tiny_config(tmp_path / "run", **MANY, **settings))
    assert results.classes == CLASSES and not results.files.errors
    assert results.files.onnx.argmax_agreement > 0.9999 and results.files.onnx.max_margin < 1e-3
    assert json.loads((tmp_path / "run/student/head.json").read_text()) == {"head": "multilabel"}
    assert "any number of them at a pixel" in (tmp_path / "run/student/README.md").read_text()
    config = DataConfig(multilabel=True, synthetic_train=8, synthetic_val=3, synthetic_size=[64, 96])
    found = evaluate(tmp_path / "run", config, window=(48, 64))
    assert found["iou"].keys() == set(CLASSES) and len(found["images"]) == 3
    whole = evaluate(tmp_path / "run", config)
    assert whole["mean_iou"] == pytest.approx(results.student.mean_iou, abs=1e-4)
    # What it says of images can be learned from as it is written.
    val, (images, out) = open_splits(config).val, (tmp_path / "images", tmp_path / "out")
    images.mkdir()
    for i in range(3):
        Image.fromarray(val.read(i)[0]).save(images / f"{i}.png")
    done = predict(tmp_path / "run", images, out, overlay=0.5)
    assert done.done == 3 and (out / "overlays/0.jpg").is_file()
    as_data = {"format": "folders", "classes": CLASSES, "multilabel": True, "root": str(tmp_path)}
    folders = {"train_images": "images", "val_images": "images", "train_masks": "out/masks", "val_masks": "out/masks"}
    read = open_splits(DataConfig(**as_data, **folders)).train.read(1)[1]
    assert np.array_equal(read, load_segmenter(tmp_path / "run").mask(val.read(1)[0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"teacher__head": "softmax"},
            r"teacher\.head: softmax does not go with masks of any number .*; set multilabel",
        ),
        ({"student__head": "sigmoid"}, r"student\.head: sigmoid does not go with masks of any number"),
        (
            {"data__multilabel": False},
            r"teacher\.head: multilabel does not go with masks of one class a pixel; set soft",
        ),
    ],
)
def test_heads_and_masks_of_different_kinds_are_refused(tmp_path, settings, words):
    config = tiny_config(tmp_path, **MANY | settings)
    with pytest.raises(ConfigError, match=words):
        check_heads(config, open_splits(config.data))


def test_class_weights_are_two(tmp_path):
    config = tiny_config(tmp_path, **MANY, cross_entropy__class_weights=[1.0] * 7)
    with pytest.raises(ConfigError, match=r"class_weights: 7 numbers with data\.multilabel; give two, for pixels with"):
        settled(config, open_splits(config.data))
    config = tiny_config(tmp_path, **MANY, cross_entropy__class_weights="log")
    without, with_class = settled(config, open_splits(config.data)).cross_entropy.class_weights
    assert without < 1 < with_class


def test_folders_say_of_which_kind_their_network_is(tmp_path):
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    for head in ("multilabel", "softmax"):
        models.save(network(head), tmp_path / head)
        read = models.load(tmp_path / head, CLASSES, *USUAL)
        assert read.multilabel == (head == "multilabel")
    with torch.no_grad():
        logits = models.load(tmp_path / "multilabel", None, *USUAL)(image).upsampled()
    assert logits.shape == (2, 7, 50, 70) and network().decide(logits).shape == logits.shape
    with pytest.raises(ConfigError, match=r"gives one class a pixel, but the data has any number .*head\.json"):
        models.load(tmp_path / "softmax", CLASSES, *USUAL, multilabel=True)
    with pytest.raises(
        ConfigError, match=r"gives any number of classes at a pixel, but the data has one class a pixel"
    ):
        models.load(tmp_path / "multilabel", CLASSES, *USUAL, multilabel=False)
    (tmp_path / "softmax/id2label.json").unlink()  # as SMP's own folders are, which say nothing of it
    assert models.load(tmp_path / "softmax", CLASSES, *USUAL, multilabel=True).multilabel
    (tmp_path / "multilabel/head.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"head\.json: holds \{\}; expected"):
        models.load(tmp_path / "multilabel", CLASSES, *USUAL)


def test_scores_are_those_of_each_class_by_itself():
    generator = torch.Generator().manual_seed(0)
    said, mask = (torch.randint(0, 2, (2, 3, 9, 8), generator=generator) for _ in range(2))
    mask = mask.byte()
    mask[0, 0, :2], mask[1, 2, 3], mask[:, 1][mask[:, 1] == 1] = 255, 254, 0
    scores = Scores(confusion_matrix(said, mask, 3))
    for i, found in enumerate(scores.iou):
        known = mask[:, i] < 254
        p, y = said[:, i][known] == 1, mask[:, i][known] == 1
        assert found == (int((p & y).sum()) / int((p | y).sum()) if y.any() else None)
    assert scores.iou[1] is None and scores.present == 2
    assert scores.pixel_accuracy == pytest.approx((said == mask)[mask < 254].double().mean().item())
    assert Scores(confusion_matrix(torch.ones_like(said), mask, 3)).skill == pytest.approx(0, abs=1e-12)


def test_matrices_of_single_images_sum_to_what_is_scored(tmp_path):
    val = open_splits(tiny_config(tmp_path, **MANY).data).val
    cells = confusion_per_image(network(), val, 2, "cpu")
    found = iou(count_images(cells, len(val), len(CLASSES), multilabel=True).sum(0))
    expected = score({"s": network()}, val, 2, "cpu").scores["s"].iou
    assert [None if np.isnan(v) else v for v in found] == pytest.approx(expected)


def test_answers_are_kept_to_less_than_can_be_seen():
    z = np.random.default_rng(0).normal(0, 6, (40, 40, 5))
    z[0, 0] = [0, 100, -100, 0.02, -0.02]
    for dtype, most in (("int8", 1e-4), ("float16", 1e-7)):
        codec = Codec(5, dtype, multilabel=True)
        kept = codec.decode(codec.encode(z)).astype(float)
        p = 1 / (1 + np.exp(-z))
        assert (np.logaddexp(0, kept) - np.logaddexp(0, z) - p * (kept - z))[1:].mean() < most
        assert kept[0, 0, 0] == 0 and kept[0, 0, 1] == -kept[0, 0, 2] > 30


def test_probabilities_of_each_class_are_averaged():
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    two = [network(seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        answer = Ensemble(two, weights=[1, 3])(image).logits.sigmoid()
        expected = sum(w * n(image).logits.sigmoid() for w, n in zip((0.25, 0.75), two, strict=True))
    assert torch.allclose(answer, expected, atol=1e-5)
    z = torch.randn(1, 4, 8, 12)
    windows = Windows(lambda part: F.interpolate(part[:, :1].repeat(1, 4, 1, 1), scale_factor=1), (8, 12), 1, True)
    assert torch.allclose(windows(z), z[:, :1].expand_as(z), atol=1e-4)


def test_foreign_teachers_give_a_logit_of_each_class():
    z = torch.randn(1, 3, 4, 5)
    assert torch.allclose(many_logits(z, "logits"), z)
    assert torch.allclose(many_logits(z.sigmoid(), "sigmoid"), z, atol=1e-4)
    for kind in ("probabilities", "scores", "labels"):
        with pytest.raises(ConfigError, match=rf"x: its outputs are {kind}, of classes that exclude each other"):
            check_many(kind, "x")
    inner, image = network(), torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    table = {"shadow": "ground", **dict.fromkeys(("tree", "house", "boat", "person"))}
    mapped = Mapped(inner, match(CLASSES, ["ground", "water", "sky"], table, allow_untaught=True))
    with torch.no_grad():
        found, logits = mapped(image).logits, inner(image).logits
    assert torch.equal(found[:, 0], logits[:, 1:3].amax(1)) and torch.equal(found[:, 1], logits[:, 0])
    assert mapped.multilabel and (found[:, 2] < -10).all()
