"""A teacher's answers on disk: as close as they must be, where they must be, whole or refused."""

import multiprocessing
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from distill.batch import VOID
from distill.config.data import DataConfig
from distill.data import CachedTargets, TeacherCache, build_transform, missing_groups
from distill.data.codec import Codec
from distill.data.pixel_positions import MapGeometry, coordinates, interpolation_of, source_positions
from distill.errors import ConfigError

sys.path.append(str(ROOT / "tests" / "faults"))
from alignment import ARGUMENTS, GEOMETRIC

GEOMETRY = MapGeometry((32, 40), (128, 160), True, 32)
# Their warps bend within a cell of the map, or tear: no map at the stride of a network can follow.
BENT = {"GridDistortion", "GridElasticDeform", "PiecewiseAffine", "RandomGridShuffle", "ThinPlateSpline"}


def divergence(teacher, other, temperature):
    """Mean KL(teacher‖other) of logits [..., C]."""
    t, s = (torch.from_numpy(x).double().div(temperature).log_softmax(-1) for x in (teacher, other))
    return float((t.exp() * (t - s)).sum(-1).mean())


def logits_of(classes, seed=0, scale=4.0, size=64):
    """Smooth fields, with a spread as those of trained networks."""
    noise = torch.randn(1, classes, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return scale * F.interpolate(noise, (size, size), mode="bicubic")[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("classes", [2, 11, 40])
def test_a_byte_a_class_is_as_good_as_floats(classes):
    logits, codec = logits_of(classes), Codec(classes)
    stored = codec.encode(logits)
    assert stored.shape == (64, 64, classes) and stored.dtype == np.uint8
    back = codec.decode(stored)
    assert max(divergence(logits, back, temperature) for temperature in (1, 2, 4)) < 1e-4
    assert (back.argmax(-1) == logits.argmax(-1)).mean() > 0.995
    assert divergence(logits, Codec(classes, "float16").decode(Codec(classes, "float16").encode(logits)), 1) < 1e-6


def test_of_many_classes_the_likeliest_are_kept_and_the_mass_of_the_others():
    logits = logits_of(150, scale=10.0, size=128)  # a mean confidence of 0.78, an entropy of 0.6 nats
    codec = Codec(150)
    stored = codec.encode(logits)
    assert stored.nbytes <= 0.7e6  # of an image of 512×512 at stride 4
    back = codec.decode(stored)
    assert divergence(logits, back, 1) < 1e-3
    kept = np.sort(logits, -1)[..., :-20]
    left = np.exp(kept - logits.max(-1, keepdims=True)).sum(-1)
    there = np.exp(np.sort(back, -1)[..., :-20]).sum(-1)
    assert np.abs(np.log(there / left)).mean() < 0.1


def test_one_class_far_above_all_others_stays_so():
    logits = np.array([[[0.0, -1e4, 50.0, 49.99]]], np.float32)
    back = Codec(4).decode(Codec(4).encode(logits))
    assert back.max() == 0 and back.argmax() == 2 and back[0, 0, 1] < -39


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_the_map_goes_where_the_image_goes(name, align_corners):
    """A teacher whose logits are the place itself, so that what comes out says where it came from."""
    if name == "RandomGridShuffle":
        pytest.skip("its seams run through the cells of the map")
    geometry = MapGeometry((32, 40), (128, 160), align_corners, 32)
    config = DataConfig(crop_size=[128, 160], augmentations=[{name: {**ARGUMENTS.get(name, {}), "p": 1.0}}])
    transform, crop = build_transform(config), geometry.of_crop((128, 160))
    y, x = np.mgrid[:128, :160].astype(np.float32)
    rows, columns = np.meshgrid(geometry.centers(0), geometry.centers(1), indexing="ij")
    places, far = [], []
    for key in range(5):
        image = np.dstack([y, x, np.ones_like(x)])
        with warnings.catch_warnings(action="ignore"):
            moved, mask, where = transform(image, np.zeros((128, 160), np.uint8), (7, key), coordinates(128, 160))
        positions = source_positions(where, crop.centers(0), crop.centers(1))
        cells, weights = interpolation_of(geometry, positions, (32, 40))
        seen = (mask != VOID) & (moved[..., 2] > 0.9999)
        rim = 0 if align_corners else 2  # within half a cell of the edge, upsampling repeats the last cell
        seen[:rim], seen[128 - rim :], seen[:, :rim], seen[:, 160 - rim :] = 0, 0, 0, 0
        for axis, values in enumerate((rows, columns)):
            small = torch.from_numpy((values.reshape(-1)[cells] * weights).sum(-1))[None, None]
            there = F.interpolate(small, (128, 160), mode="bilinear", align_corners=align_corners)[0, 0].numpy()
            error = np.abs(there - moved[..., axis])[seen]
            places.append(error.mean() if len(error) else 0)
            far.append(np.quantile(error, 0.995) if len(error) else 0)
    assert np.mean(places) <= 0.15
    if name not in BENT:
        assert max(far) <= 0.5


def filled(folder, teacher="a", names=("x", "y"), classes=3, **geometry):
    cache = TeacherCache(folder, {"teacher": teacher}, classes).open()
    cache.begin()
    values = np.random.default_rng(0).normal(size=(9, 8, 8, classes)) * 3
    cache.write(
        {name: (cache.codec.encode(values[i]), MapGeometry((8, 8), (32, 32), False, 4)) for i, name in enumerate(names)}
    )
    return cache


def test_what_was_written_is_read_again(tmp_path):
    written = filled(tmp_path / "cache")
    read = TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open()
    assert read.entries == written.entries and not read.damaged
    assert (read.entries["y"].read() == written.entries["y"].read()).all()
    logits = CachedTargets(read, ["x", "y"]).crop(1, coordinates(32, 32))
    assert np.allclose(logits.transpose(1, 2, 0), read.codec.decode(read.entries["y"].read()), atol=0.02)


def test_another_teacher_is_refused_by_name_and_nothing_is_lost(tmp_path):
    filled(tmp_path / "cache")
    before = {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()}
    with pytest.raises(
        ConfigError, match=r"answers of another teacher \(teacher \"a\" there, \"b\" here\); set another"
    ):
        TeacherCache(tmp_path / "cache", {"teacher": "b"}, 3).open()
    with pytest.raises(ConfigError, match=r"classes 3 there, 4 here"):
        TeacherCache(tmp_path / "cache", {"teacher": "a"}, 4).open()
    with pytest.raises(ConfigError, match=r'dtype "int8" there, "float16" here'):
        TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3, "float16").open()
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"1")
    with pytest.raises(ConfigError, match="holds something else; set another folder"):
        TeacherCache(tmp_path, {}, 3).open()
    with pytest.raises(ConfigError, match="is not a folder"):
        TeacherCache(tmp_path / "photo.jpg", {}, 3).open()


@pytest.mark.parametrize("where", ["header", "map", "last byte", "cut off", "empty", "key", "stride"])
def test_damage_is_found_and_nothing_of_it_is_used(tmp_path, where):
    cache = filled(tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    place = {
        "header": 30,
        "map": cache.entries["x"].offset + 5,
        "last byte": -1,
        "key": content.index(cache.key.encode()),
        "stride": content.index(b'stride\\": 4') + len(b'stride\\": '),
    }
    if where in place:
        content[place[where]] ^= 4
    path.write_bytes(content[: {"cut off": len(content) - 7, "empty": 0}.get(where, len(content))])
    again = TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open()
    assert again.damaged == [path] and not again.entries
    again.begin()
    assert not path.exists()
    with pytest.raises(ConfigError, match="remove it, and what it held is asked of the teacher again"):
        cache.entries["x"].read()


@pytest.mark.parametrize("content", [b"{", b'{"made_with": {"teacher": "b"}}', b"\xff", None])
def test_a_damaged_manifest_is_written_anew_where_the_files_say_whose_they_are(tmp_path, content):
    cache = filled(tmp_path / "cache")
    manifest = tmp_path / "cache" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.unlink() if content is None else manifest.write_bytes(content)
    with pytest.raises(ConfigError, match=r"set another folder|cannot be read; remove"):
        TeacherCache(tmp_path / "cache", {"teacher": "c"}, 3).open()
    again = TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open()
    assert again.rewritten and again.entries == cache.entries and manifest.read_bytes() == whole
    assert not TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open().rewritten


def test_of_two_teachers_that_begin_at_once_the_second_is_refused(tmp_path):
    one, other = (TeacherCache(tmp_path / "cache", {"teacher": name}, 3).open() for name in "ab")
    one.begin()
    with pytest.raises(ConfigError, match=r'holds the answers of another teacher \(teacher "a" there, "b" here\)'):
        other.begin()
    late = TeacherCache(tmp_path / "late", {"teacher": "b"}, 3).open()
    put = late._put

    def overtaken(path, content, first=False):
        TeacherCache(tmp_path / "late", {"teacher": "a"}, 3).open().begin()  # between the look and the writing
        put(path, content, first)

    late._put = overtaken
    with pytest.raises(ConfigError, match="another teacher"):
        late.begin()


def test_what_another_run_has_repaired_or_removed_is_left_alone(tmp_path):
    cache = filled(tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again = TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open()
    path.write_bytes(whole)
    again.begin()
    assert path.read_bytes() == whole
    path.unlink()
    again.begin()
    assert again.damaged == [path] and not cache.open().entries


def test_what_cannot_be_read_is_named_and_not_removed(tmp_path, monkeypatch):
    cache = filled(tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    opened = Path.open

    def closed(self, *arguments, **others):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **others)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(ConfigError, match=r"safetensors: cannot be read \(Permission denied\); make it readable"):
        cache.open()
    assert path.exists()


def test_groups_follow_from_the_images_alone():
    names = [f"image {i % 90}" for i in range(100)]
    groups = dict(missing_groups(names, {}))
    assert [len(group) for group in groups.values()] == [32, 32, 26]  # ten are there twice
    assert dict(missing_groups(names, {n: None for n in names[:40]})) == {1: groups[1][8:], 2: groups[2]}
    assert not dict(missing_groups(names, dict.fromkeys(names)))


def write_many(folder, count):
    for _ in range(count):
        filled(folder)


def test_two_writers_of_one_folder_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path / "cache", 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    cache = TeacherCache(tmp_path / "cache", {"teacher": "a"}, 3).open()
    assert len(cache.entries) == 2 and not cache.damaged
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".safetensors"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    import socket

    cache = filled(tmp_path / "cache")
    dead = tmp_path / "cache" / f".{socket.gethostname()}-999999999-abcdef01.tmp"
    elsewhere = tmp_path / "cache" / ".another-host-7-abcdef01.tmp"
    for path in (dead, elsewhere):
        path.write_bytes(b"half")
    cache.begin()
    assert not dead.exists() and elsewhere.exists()  # of another machine nobody knows whether it still writes


def test_its_files_are_those_of_safetensors(tmp_path):
    from safetensors.numpy import load_file

    cache = filled(tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    assert {name: array.tobytes() for name, array in load_file(path).items()} == {
        name: entry.read().tobytes() for name, entry in cache.entries.items()
    }
