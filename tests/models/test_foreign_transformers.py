"""Teachers in transformers' folders, against the library's own post-processing; without transformers, skipped."""

import json
from pathlib import Path

import foreign_teachers as tiny
import pytest
import torch

from distill.config.networks import TeacherConfig
from distill.errors import ConfigError
from distill.models.foreign import ForeignNetwork, Opened, open_teacher

transformers = pytest.importorskip("transformers")
IMAGE = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def opened(folder: Path, classes: list[str] | None = None, image: torch.Tensor = IMAGE, **settings) -> Opened:
    found = open_teacher(
        TeacherConfig(checkpoint=str(folder), **settings),
        classes or tiny.NAMES,
        image[:1],
        None,
        lambda path: path.name,
    )
    assert found is not None
    return found


def network_of(folder: Path, **settings) -> ForeignNetwork:
    network = opened(folder, **settings).network
    assert isinstance(network, ForeignNetwork)
    return network


def normalized(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (tiny.MEAN, tiny.STD))
    return (image / 255 - mean) / std


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Probabilities `[N, C, H, W]`."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.999
    assert len(theirs.argmax(1).unique()) > 1 and theirs.std(1).mean() > 0.01  # it has opinions


@torch.no_grad()
def test_a_semantic_head_gives_the_librarys_probabilities(tmp_path):
    found = opened(tiny.segformer(tmp_path / "teacher"))
    assert found.told == [
        "teacher  transformers SegformerForSemanticSegmentation: 4 classes, logits at 1/4, mean/std from its processor"
    ]
    outputs = found.network(IMAGE)
    assert outputs.logits.dtype == torch.float32
    raw = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "teacher").eval()
    processor = transformers.SegformerImageProcessor()
    scored = processor.post_process_semantic_segmentation(
        raw(normalized(IMAGE)), [(64, 96)] * 2, return_segmentation_scores=True
    )
    theirs = torch.stack([one.segmentation_scores for one in scored])
    assert_same(outputs.upsampled().softmax(1), theirs.softmax(1), 1e-5)


@torch.no_grad()
def test_an_image_processor_of_the_library_gives_the_same_input(tmp_path):
    network = network_of(tiny.segformer(tmp_path / "teacher"))
    processor = transformers.SegformerImageProcessor.from_pretrained(tmp_path / "teacher", do_resize=False)
    theirs = processor(images=list(IMAGE), return_tensors="pt")["pixel_values"]
    assert torch.allclose(network.normalize(IMAGE), theirs, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scaled", [True, False])
def test_a_processor_without_normalization_and_with_swapped_channels(tmp_path, scaled):
    about = {"do_rescale": scaled, "do_flip_channel_order": True}
    network = network_of(tiny.segformer(tmp_path / "teacher", processor=about))
    expected = IMAGE.flip(1) / (255 if scaled else 1)
    assert torch.allclose(network.normalize(IMAGE), expected, atol=1e-4 if not scaled else 1e-6)


def scores_of(processor, outputs, target, **more) -> torch.Tensor:
    more["return_segmentation_scores"] = True
    scored = processor.post_process_semantic_segmentation(outputs, [target] * 2, **more)
    scores = torch.stack([one.segmentation_scores for one in scored])
    return distribution(scores)


def distribution(scores: torch.Tensor) -> torch.Tensor:
    """That of scores `[N, C, H, W]`; all classes alike, but for their order, where no query claims the pixel."""
    clamped = scores.clamp(min=1e-6)
    p = clamped / clamped.sum(1, keepdim=True)
    return torch.where(scores.sum(1, keepdim=True) >= 0.5, p, (1 + 1e-6 * p) / scores.shape[1])


@torch.no_grad()
def test_maskformers_scores_become_a_distribution(tmp_path):
    network = network_of(tiny.maskformer(tmp_path / "teacher"), mean=tiny.MEAN, std=tiny.STD)
    assert network.answer_kind == "scores"
    raw = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path / "teacher").eval()
    theirs = scores_of(transformers.MaskFormerImageProcessor(), raw(normalized(IMAGE)), (16, 24))
    logits = network(IMAGE).logits
    assert_same(logits.softmax(1), theirs, 1e-4)


@torch.no_grad()
def test_mask2formers_masks_are_upsampled_before_the_sigmoid(tmp_path):
    network = network_of(tiny.mask2former(tmp_path / "teacher"), mean=tiny.MEAN, std=tiny.STD)
    network.model.cell = 1
    # The library's way leads through 384×384, whatever the image.
    image = torch.nn.functional.interpolate(IMAGE.float(), (384, 384), mode="bilinear").round().byte()
    raw = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "teacher").eval()
    theirs = scores_of(transformers.Mask2FormerImageProcessor(), raw(normalized(image)), (384, 384))
    assert_same(network(image).logits.softmax(1), theirs, 1e-4)


@torch.no_grad()
def test_a_teacher_of_one_size_sees_larger_images_in_windows(tmp_path):
    network = network_of(tiny.eomt(tmp_path / "teacher"))
    assert network.window == (64, 64)
    network.model.cell = 1
    network.tile_stride = network.stride = 1
    raw = transformers.EomtForUniversalSegmentation.from_pretrained(tmp_path / "teacher").eval()
    processor, tile = transformers.EomtImageProcessor(), IMAGE[..., :64]
    square = {"size": {"shortest_edge": 64, "longest_edge": 64}}
    theirs = scores_of(processor, raw(normalized(tile)), (64, 64), **square)
    assert_same(network(tile).logits.softmax(1), theirs, 1e-4)
    outputs = network(IMAGE)
    assert outputs.upsampled().shape == (2, 4, 64, 96)
    right = scores_of(processor, raw(normalized(IMAGE[..., 32:])), (64, 64), **square)
    probabilities = outputs.logits.exp()
    assert torch.allclose(probabilities[..., :32], theirs[..., :32], atol=1e-4)
    assert torch.allclose(probabilities[..., 64:], right[..., 32:], atol=1e-4)
    share = torch.minimum(torch.arange(64) + 0.5, 63.5 - torch.arange(64))  # of a window, along the row
    middle = (share[32:] * theirs[..., 32:] + share[:32] * right[..., :32]) / (share[32:] + share[:32])
    assert torch.allclose(probabilities[..., 32:64], middle, atol=1e-4)


@torch.no_grad()
def test_one_channel_of_a_segformer_is_a_sigmoids(tmp_path):
    tiny.segformer(tmp_path / "teacher", ["water"])
    network = network_of(tmp_path / "teacher", classes=["background", "Water"])
    raw = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "teacher").eval()
    z = raw(normalized(IMAGE)).logits
    logits = network(IMAGE).logits
    assert logits.shape[1] == 2
    assert torch.allclose(logits.softmax(1)[:, 1:], z.sigmoid(), atol=1e-5)


def change(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@torch.no_grad()
def test_oneformer_is_told_its_task(tmp_path):
    folder = tiny.oneformer(tmp_path / "teacher")
    network = network_of(folder, mean=tiny.MEAN, std=tiny.STD)
    raw = transformers.OneFormerForUniversalSegmentation.from_pretrained(folder, is_training=False).eval()
    assert network.model.task.shape == (1, 24) and int((network.model.task > 1).sum()) == len("thetaskissemantic")
    task = transformers.AutoTokenizer.from_pretrained(folder)(
        ["the task is semantic"], padding="max_length", max_length=24
    )
    task = torch.tensor(task.input_ids) * torch.tensor(task.attention_mask)
    answer = raw(pixel_values=normalized(IMAGE), task_inputs=task.expand(2, -1))
    scores = torch.einsum(
        "nqc,nqhw->nchw", answer.class_queries_logits.softmax(-1)[..., :-1], answer.masks_queries_logits.sigmoid()
    )
    assert torch.allclose(network(IMAGE).logits.softmax(1), distribution(scores), atol=1e-5)
    other = raw(pixel_values=normalized(IMAGE), task_inputs=task.roll(3).expand(2, -1))
    assert (other.masks_queries_logits - answer.masks_queries_logits).abs().max() > 1e-3
    (folder / "vocab.json").unlink()
    with pytest.raises(ConfigError, match=r"told its task in words.*vocab\.json and merges\.txt, into the folder"):
        opened(folder)


def test_what_is_no_teacher_is_refused_in_a_line(tmp_path):
    folder = tiny.segformer(tmp_path / "teacher")
    change(folder, architectures=["DetrForObjectDetection"], model_type="detr")
    with pytest.raises(ConfigError, match=r"is a detector \(DetrForObjectDetection\); expected"):
        opened(folder)
    change(folder, architectures=["SegformerForImageClassification"], model_type="segformer")
    with pytest.raises(ConfigError, match="is no segmentation network"):
        opened(folder)


def test_a_backbone_without_its_head_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(**tiny.SEGFORMER, **tiny.labels(tiny.NAMES))
    transformers.SegformerModel(config).save_pretrained(tmp_path / "teacher")
    change(tmp_path / "teacher", architectures=["SegformerForSemanticSegmentation"])
    with pytest.raises(ConfigError, match=r"has no fitting weights for decode_head\.batch_norm"):
        opened(tmp_path / "teacher")


def test_without_transformers_the_command_is_named(tmp_path, monkeypatch):
    folder = tiny.segformer(tmp_path / "teacher")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'distill\[transformers\]'"):
        opened(folder)


def test_weights_in_half_precision_compute_in_float32(tmp_path):
    tiny.segformer(tmp_path / "teacher")
    raw = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "teacher")
    raw.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    network = network_of(tmp_path / "half")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_classes_without_names_need_some(tmp_path):
    tiny.segformer(tmp_path / "teacher", [f"LABEL_{i}" for i in range(3)])
    with pytest.raises(ConfigError, match=r"has 3 classes without names, and the data has 4.*teacher\.class_names"):
        opened(tmp_path / "teacher")
    found = opened(tmp_path / "teacher", ["a", "b", "c"])
    assert "classes taken to be the data's, in their order" in found.told[0]


def test_an_id_on_the_hub_is_fetched_without_code_and_read_as_its_folder(tmp_path, monkeypatch):
    folder = tiny.segformer(tmp_path / "snapshot")
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = opened("somebody/segformer")
    assert found.source.name == "somebody/segformer" and "SegformerForSemanticSegmentation" in found.told[0]
    assert asked == [("somebody/segformer", ["*.json", "*.safetensors", "pytorch_model*.bin", "merges.txt"])]
    assert found.known_by.keys() == {"config.json", "preprocessor_config.json", "model.safetensors"}


VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
MAPS = {"image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4]}
FUSED = {"image_size": 64, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "settings", "windows"),
    [
        ("Beit", MAPS | VIT, True),
        ("DPT", FUSED | VIT, True),
        ("MobileNetV2", {"depth_multiplier": 0.25}, False),
        ("MobileViTV2", {"width_multiplier": 0.25}, False),
    ],
)
def test_other_semantic_networks_see_images_that_are_not_square(tmp_path, kind, settings, windows):
    config = getattr(transformers, f"{kind}Config")(**settings, **tiny.labels(tiny.NAMES))
    getattr(transformers, f"{kind}ForSemanticSegmentation")(config).save_pretrained(tmp_path / "teacher")
    found = opened(tmp_path / "teacher")
    assert ("windows of 64×64" in found.told[0]) == windows
    assert found.network(IMAGE).upsampled().shape == (2, 4, 64, 96)
