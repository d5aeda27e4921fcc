import itertools
import tracemalloc

import numpy as np
import onnx_files
import pytest
import torch
from PIL import Image

from distill.deployment import predict
from distill.deployment.runtime import OnnxModel
from distill.deployment.tiles import Shrunk, Tiled, blended, starts


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path):
    return OnnxModel(onnx_files.write(tmp_path / "model.onnx"))


class Blind:
    """Knows class 1 everywhere but at the edges of what it sees, where it guesses class 0."""

    classes, palette = ["a", "b"], [(0, 0, 0), (1, 1, 1)]
    image, multilabel = (3, "uint8"), False

    def __init__(self):
        self.seen = []

    def logits(self, image):
        self.seen.append(image.shape[:2])
        logits = np.zeros((2, *image.shape[:2]), np.float32)
        logits[0] = 3
        logits[:, 2:-2, 2:-2] = np.float32([[[0]], [[3]]])
        return logits


@pytest.mark.parametrize(("length", "window"), [(1, 1), (5, 9), (9, 9), (10, 9), (100, 9), (101, 30)])
def test_windows_cover_a_length_and_overlap_by_a_third(length, window):
    window = min(window, length)
    tops = list(starts(length, window))
    assert (tops[0], tops[-1]) == (0, length - window)
    assert all(b - a <= max(1, 2 * window / 3) for a, b in itertools.pairwise(tops))


@pytest.mark.parametrize("size", [(33, 70), (20, 30), (7, 100), (64, 11)])
def test_windows_are_blended_as_all_at_once_would_be(model, size):
    image, window = noise(*size), [min(20, size[0]), min(30, size[1])]
    total, seen = np.zeros((3, *size)), np.zeros(size)
    ramps = [1 - np.abs(2 * (np.arange(n) + 0.5) / n - 1) for n in window]
    for top in starts(size[0], window[0]):
        for left in starts(size[1], window[1]):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, *place] += torch.from_numpy(model.logits(image[place])).softmax(0).numpy() * np.outer(*ramps)
            seen[place] += np.outer(*ramps)
    tiled = Tiled(model, (20, 30))
    assert np.abs(np.exp(tiled.logits(image)) - total / seen).max() < 1e-5
    mask = tiled.mask(image)
    assert mask.dtype == np.uint8
    assert (mask == (total / seen).argmax(0)).mean() > 0.999


def test_an_image_in_one_window_is_as_without(model):
    image = noise(20, 30)
    assert (Tiled(model, (20, 30)).mask(image) == model.mask(image)).all()


def test_no_seams_show():
    blind = Blind()
    mask = Tiled(blind, (24, 24)).mask(noise(60, 90))
    assert set(blind.seen) == {(24, 24)}
    assert (mask[2:-2, 2:-2] == 1).all()


@pytest.mark.parametrize("window", [(32, 48), (40, 40), (60, 64)])
def test_windows_say_what_one_pass_says_where_a_network_sees_less_than_they_overlap(model, window):
    image = np.kron(noise(12, 16), np.ones((10, 10, 1))).astype(np.uint8)
    assert (Tiled(model, window).mask(image) != model.mask(image)).mean() <= 0.005


def test_a_large_image_is_seen_smaller_and_answered_in_its_own_size(model):
    image = noise(60, 45)
    small = np.asarray(Image.fromarray(image).resize((24, 32), Image.Resampling.BILINEAR))
    logits = torch.from_numpy(model.logits(small))[None]
    expected = torch.nn.functional.interpolate(logits, (60, 45), mode="bilinear")[0].numpy()
    shrunk = Shrunk(model, 32)
    assert np.abs(shrunk.logits(image) - expected).max() < 1e-4
    assert (shrunk.mask(image) == expected.argmax(0)).mean() > 0.999
    assert (shrunk.mask(image[:32, :20]) == model.mask(image[:32, :20])).all()


def test_on_the_command_line(tmp_path, capsys):
    path, image = onnx_files.write(tmp_path / "model.onnx"), noise(60, 45)
    Image.fromarray(image).save(tmp_path / "photo.png")
    arguments = [str(path), str(tmp_path / "photo.png"), "--output_dir", str(tmp_path / "out")]
    assert predict.main([*arguments, "--window", "16", "16", "--longest_side", "32"]) == 0
    expected = Shrunk(Tiled(OnnxModel(path), (16, 16)), 32).mask(image)
    assert (np.asarray(Image.open(tmp_path / "out/masks/photo.png")) == expected).mean() > 0.999
    assert predict.main([*arguments, "--max_pixels", "1000"]) == 1
    assert "is 45×60, more than 1,000 pixels; --max_pixels allows more" in capsys.readouterr().err
    for wrong in ["--window", "0", "16"], ["--longest_side", "0"]:
        with pytest.raises(SystemExit):
            predict.main([*arguments, *wrong])


@pytest.mark.parametrize("size", [(33, 70), (20, 30), (7, 100), (64, 11), (61, 95)])
def test_blending_gives_the_bits_of_sums_over_the_whole_image(size):
    image, window = noise(*size), [min(20, size[0]), min(30, size[1])]
    total, seen = np.zeros((3, *size), np.float32), np.zeros(size, np.float32)
    ramps = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5).astype(np.float32) * 2 / n for n in window]

    def answer(part):  # other numbers in every window
        return np.random.default_rng(int(part.sum())).random((3, *part.shape[:2]), np.float32)

    for top in starts(size[0], window[0]):
        for left in starts(size[1], window[1]):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, *place] += np.outer(*ramps) * answer(image[place])
            seen[place] += np.outer(*ramps)
    assert np.array_equal(np.concatenate(list(blended(answer, image, (20, 30))), 1), total / seen)
    ids = np.concatenate(list(blended(answer, image, (20, 30), lambda found: found.argmax(0))))
    assert np.array_equal(ids, (total / seen).argmax(0))


def test_of_all_classes_only_what_is_still_needed_is_in_memory():
    image, classes, window = np.zeros((64, 3000, 3), np.uint8), 20, (32, 40)
    answers = np.zeros((classes, *window), np.float32)
    tracemalloc.start()
    for _ in blended(lambda part: answers, image, window, lambda found: found.argmax(0).astype(np.uint8)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < classes * 3000 * window[0] * answers.itemsize


def test_unsure_pixels_are_void_window_by_window_as_at_once(model, tmp_path, monkeypatch):
    image, folder = noise(60, 45), tmp_path / "out"
    Image.fromarray(image).save(tmp_path / "photo.png")
    tiled, files = Tiled(model, (16, 16)), {"photo": tmp_path / "photo.png"}
    probabilities = torch.from_numpy(tiled.logits(image)).softmax(0).max(0)
    monkeypatch.setattr(Tiled, "logits", None)  # of all classes at once, which is too much
    predict.predict(tiled, files, folder, min_confidence=0.5)
    expected = np.where(probabilities.values < 0.5, 255, probabilities.indices)
    mask, confidence = (np.asarray(Image.open(folder / kind / "photo.png")) for kind in ("masks", "confidence"))
    assert 0.1 < (mask == 255).mean() < 0.9
    assert (mask == expected).mean() > 0.999
    assert np.abs(confidence - 255 * probabilities.values.numpy()).max() < 0.51
