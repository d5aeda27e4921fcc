"""The drawn scenes: the same everywhere, at every size, with every class in its place."""

import numpy as np
import pytest

from distill.batch import MAX_CLASSES, VOID
from distill.data.synthetic import scene
from distill.data.synthetic.scene import render
from distill.data.synthetic.shapes import CLASSES, PALETTE, THINGS

CLASS_IDS = {name: index for index, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def scenes():
    return [render(7, index, 96, 120) for index in range(60)]


def shares(mask):
    return np.bincount(mask.ravel(), minlength=256) / mask.size


def test_same_arguments_same_scene():
    for first, second in zip(render(3, 5, 64, 80), render(3, 5, 64, 80), strict=True):
        np.testing.assert_array_equal(first, second)


def test_order_does_not_count():
    there = [render(3, index, 48, 60) for index in range(3)]
    for index in (2, 0, 1):
        np.testing.assert_array_equal(there[index][0], render(3, index, 48, 60)[0])


def test_global_random_state_neither_counts_nor_changes():
    np.random.seed(0)
    image, _ = render(0, 0, 48, 48)
    drawn = np.random.random()
    np.random.seed(0)
    assert np.random.random() == drawn
    np.testing.assert_array_equal(image, render(0, 0, 48, 48)[0])


@pytest.mark.parametrize("other", [(3, 6), (4, 5), (5, 3)])
def test_another_seed_or_index_is_another_scene(other):
    image, mask = render(3, 5, 64, 80)
    another_image, another_mask = render(*other, 64, 80)
    assert np.abs(image.astype(int) - another_image).mean() > 10
    assert (mask != another_mask).mean() > 0.1


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (128, 160), (97, 61), (32, 200), (360, 480)])
def test_sizes_dtypes_and_values(size):
    image, mask = render(1, 2, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert mask.shape == size and mask.dtype == np.uint8 and mask.flags.c_contiguous
    assert set(np.unique(mask)) <= {*range(len(CLASSES)), VOID}
    assert image.std() > 10


@pytest.mark.parametrize("index", range(4))
def test_another_size_shows_the_same_scene(index):
    small, large = render(2, index, 64, 80), render(2, index, 128, 160)
    averaged = large[0].reshape(64, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(averaged - small[0]).mean() < 8
    sampled = large[1][1::2, 1::2]
    both = (sampled != VOID) & (small[1] != VOID)
    assert (sampled == small[1])[both].mean() > 0.95


def test_masks_lie_on_their_pictures(monkeypatch):
    """Each class lies in the mask where it was painted on the finer canvas, which the picture is made of."""
    canvases = []

    def outlines(label, width):
        canvases.append(label.copy())
        return np.zeros(label.shape, bool)

    monkeypatch.setattr(scene, "_outlines", outlines)
    offsets = []
    for index in range(12):
        _, mask = render(4, index, 128, 160)
        for label in range(len(CLASSES)):
            if (mask == label).sum() > 400:
                here, painted = (np.argwhere(m == label).mean(0) + 0.5 for m in (mask, canvases[-1]))
                offsets.append(here - painted / 2)
    assert len(offsets) > 40
    assert np.abs(np.mean(offsets, 0)).max() < 0.05


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (0, 0)])
def test_too_small_says_what_would_do(size):
    with pytest.raises(ValueError, match="32x32 or more"):
        render(0, 0, *size)


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1)])
def test_negative_seed_or_index_raises(arguments):
    with pytest.raises(ValueError):
        render(*arguments, 64, 64)


def test_names_and_palette_match():
    assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) <= MAX_CLASSES
    colors = np.array(PALETTE)
    assert colors.min() >= 0 and colors.max() <= 255
    apart = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(len(colors))
    assert apart.min() >= 60
    assert set(THINGS) < set(range(len(CLASSES)))


def test_shares_are_unequal_and_every_class_is_common(scenes):
    each = np.stack([shares(mask) for _, mask in scenes])
    overall = each.mean(0)
    assert overall[CLASS_IDS["sky"]] == pytest.approx(0.26, abs=0.05)
    assert overall[CLASS_IDS["balloon"]] < 0.025
    assert overall[: len(CLASSES)].min() > 0.005
    assert overall[: len(CLASSES)].max() > 8 * overall[: len(CLASSES)].min()
    assert ((each[:, : len(CLASSES)] > 0).mean(0) >= 0.4).all()


def test_void_runs_along_outlines_in_every_scene(scenes):
    void = np.array([shares(mask)[VOID] for _, mask in scenes])
    assert 0.02 < void.mean() < 0.07
    assert (void > 0.005).all() and (void < 0.15).all()


def test_forty_scenes_of_either_usual_set_hold_every_class():
    for seed in (0, 1):
        seen = {int(label) for index in range(40) for label in np.unique(render(seed, index, 40, 50)[1])}
        assert seen == {*range(len(CLASSES)), VOID}


def test_color_alone_does_not_tell_the_class(scenes):
    """A table of the commonest class of each color, learned and scored on the same pixels, stays poor."""
    colors = np.concatenate([(image[::2, ::2] // 32).reshape(-1, 3) for image, _ in scenes]).astype(int)
    labels = np.concatenate([mask[::2, ::2].ravel() for _, mask in scenes])
    keys, known = colors @ (64, 8, 1), labels != VOID
    table = np.bincount(keys[known] * len(CLASSES) + labels[known], minlength=512 * len(CLASSES)).reshape(512, -1)
    assert table.max(1).sum() / table.sum() < 0.65


def test_scenes_look_as_they_did(scenes):
    """Coarse on purpose: rounding differs between platforms, a scene by mistake changed does not hide here."""
    brightness = np.array([image.mean() for image, _ in scenes])
    assert brightness.mean() == pytest.approx(130, abs=8)
    assert brightness.std() > 15
