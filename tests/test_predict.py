import shutil

import cv2
import numpy as np
import onnx_files
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image

from distill import media, models, pictures, predict
from distill.config import ConfigError, NetworkConfig
from distill.deployed import OnnxModel, open_model


def noise(height=30, width=44, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path):
    return onnx_files.write(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (height, width) in enumerate([(30, 44), (30, 44), (17, 5)]):
        Image.fromarray(noise(height, width, i)).save(folder / f"{i}.png")
    return folder


def film(path, count=12):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(count):
        writer.write(noise(48, 64, i))
    writer.release()
    return path


def run(capsys, *arguments):
    code = predict.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_masks_are_the_files_own_with_its_palette(model, photos, tmp_path, capsys):
    code, out, _ = run(capsys, model, photos, "--output_dir", tmp_path / "out", "--num_threads", 2)
    assert code == 0
    pixels = np.zeros(3, int)
    for path in photos.iterdir():
        image = np.asarray(Image.open(path))
        expected = onnxruntime.InferenceSession(model).run(["mask"], {"image": image[None]})[0][0]
        written = Image.open(tmp_path / "out" / "masks" / path.name)
        assert written.mode == "P"
        assert (np.asarray(written) == expected).all()
        assert written.getpalette()[: 3 * 3] == np.ravel(onnx_files.PALETTE).tolist()
        pixels += np.bincount(expected.ravel(), minlength=3)
    assert "3 masks" in out
    for name, share in zip(onnx_files.CLASSES, 100 * pixels / pixels.sum(), strict=True):
        assert f"{name:4}  {share:6.2f} %" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["masks"]


def test_overlay_and_side_by_side(model, photos, tmp_path, capsys):
    smooth = np.stack([np.tile(np.arange(44, dtype=np.uint8) * 5, (30, 1))] * 3, 2)
    Image.fromarray(smooth).save(photos / "0.png")
    arguments = (model, photos / "0.png", "--output_dir", tmp_path / "out", "--teacher", model)
    assert run(capsys, *arguments, "--overlay", 1.0)[0] == 0
    mask = np.asarray(Image.open(tmp_path / "out/masks/0.png"))
    full = np.asarray(Image.open(tmp_path / "out/overlays/0.jpg")).astype(int)
    assert np.abs(full - pictures.colorize(mask, onnx_files.PALETTE)).mean() < 12
    assert Image.open(tmp_path / "out/side_by_side/0.jpg").size == (2 * 44 + pictures.GAP, 30 + pictures.TITLE)
    assert run(capsys, *arguments[:4], "--overlay", 0)[0] == 0
    none = np.asarray(Image.open(tmp_path / "out/overlays/0.jpg")).astype(int)
    assert np.abs(none - smooth).mean() < 2


def test_video_frames(model, tmp_path, capsys):
    code, out, _ = run(capsys, model, film(tmp_path / "ride.avi"), "--output_dir", tmp_path / "out")
    assert code == 0
    assert "12 masks" in out
    names = sorted(p.name for p in (tmp_path / "out/masks/ride").iterdir())
    assert names == [f"{i:06d}.png" for i in range(12)]
    frame = list(media.frames(tmp_path / "ride.avi"))[7]
    assert (np.asarray(Image.open(tmp_path / "out/masks/ride/000007.png")) == OnnxModel(model).mask(frame)).all()


def test_bad_files_are_named_counted_and_skipped(model, photos, tmp_path, capsys):
    (photos / "text.jpg").write_text("not an image")
    (photos / "half.png").write_bytes((photos / "0.png").read_bytes()[:900])
    Image.fromarray(noise()[..., 0].astype(np.uint16) * 256).save(photos / "deep.png")
    content = film(tmp_path / "whole.avi", 30).read_bytes()
    (photos / "cut.avi").write_bytes(content[: len(content) // 2])
    (photos / "stub.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    code, out, err = run(capsys, model, photos, "--output_dir", tmp_path / "out")
    assert code == 1
    lines = [line for line in err.splitlines() if "skipped" in line]
    for name, reason in {
        "text.jpg": "is not an image",
        "half.png": "cannot be read",
        "deep.png": "more than 8 bits",
        "cut.avi": "of 30 frames; it is damaged or cut off",
        "stub.mp4": "cannot be opened as a video",
    }.items():
        assert sum(f"{name}: " in line and reason in line for line in lines) == 1, (name, lines)
    assert len(lines) == 5
    assert "5 skipped" in out
    assert {"0.png", "1.png", "2.png"} <= {p.name for p in (tmp_path / "out/masks").iterdir()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (onnx_files.external, "keeps the tensor 'w1' in another file ('../../etc/passwd'), which is not opened"),
        (onnx_files.foreign, "has the operator evil.ops::Shell"),
        (lambda p: onnx_files.write(p, input_type=TensorProto.FLOAT), "expected raw images, uint8 [N, H, W, 3]"),
        (lambda p: p.write_text("hello") and p, "is not an ONNX file"),
        (lambda p: p.write_bytes(b"") or p, "is not an ONNX file"),
        (lambda p: p.with_name("missing.onnx"), "is not there"),
    ],
)
def test_a_model_that_is_not_run_gets_one_line(photos, tmp_path, capsys, monkeypatch, make, message):
    path = make(tmp_path / "bad.onnx")
    if "raw images" not in message:  # refused before onnxruntime sees it
        monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    code, out, err = run(capsys, path, photos)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_folder_and_a_pattern_without_files(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, message in (("empty", "holds no images"), ("*.webp", "matches none")):
        code, _, err = run(capsys, model, tmp_path / given)
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_two_files_of_one_stem_are_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "more")
    with pytest.raises(ConfigError, match=r"more/0.png: its results would have the name of those of .*photos/0.png"):
        media.find([str(photos), str(tmp_path / "more")])


def test_globs_and_repeats(photos):
    assert [p.name for p in media.find([str(photos / "[01].png"), str(photos)])] == ["0.png", "1.png", "2.png"]


def test_an_image_is_turned_as_its_tag_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(tmp_path / "turned.png", exif=exif)
    assert (media.read_image(tmp_path / "turned.png") == np.rot90(noise(20, 30), -1)).all()


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    with pytest.raises(ConfigError, match="300×300, more than 1,000 pixels"):
        media.read_image(tmp_path / "large.png", max_pixels=1000)


def test_a_file_for_one_size_says_so(tmp_path, photos, capsys):
    path = onnx_files.write(tmp_path / "fixed.onnx", size=(30, 44))
    code, out, err = run(capsys, path, photos, "--output_dir", tmp_path / "out")
    assert code == 1
    assert "was exported for images of 44×30, not 5×17" in err
    assert "2 masks" in out


def test_a_folder_and_a_run_are_asked_like_a_file(tmp_path, photos):
    folder = tmp_path / "run" / "student"
    folder.mkdir(parents=True)
    network = models.build(NetworkConfig(encoder_name="tu-test_resnet"), onnx_files.CLASSES).eval()
    models.save(network, folder)
    image = noise(33, 50)
    smp = open_model(folder)
    assert smp.classes == onnx_files.CLASSES
    logits = smp.logits(image)
    assert logits.shape == (3, 33, 50)
    assert (smp.mask(image) == logits.argmax(0)).all()
    assert type(open_model(tmp_path / "run")) is type(smp)
    onnx_files.write(folder / "model.onnx")
    assert type(open_model(tmp_path / "run")) is OnnxModel
    (folder / "id2label.json").unlink()
    assert open_model(folder).classes == ["class 0", "class 1", "class 2"]


def test_frames_do_not_pile_up_in_memory(model, tmp_path, monkeypatch):
    alive = most = 0
    read = media.items

    def counted(paths):
        nonlocal alive, most
        for item in read(paths):
            alive += 1
            most = max(most, alive)
            yield item

    def count_down(*arguments):
        nonlocal alive
        alive -= 1
        return bincount(*arguments[:1], minlength=256)

    bincount = np.bincount
    monkeypatch.setattr(media, "items", counted)
    monkeypatch.setattr(predict.np, "bincount", lambda *a, **k: count_down(*a))
    summary = predict.predict(OnnxModel(model), [film(tmp_path / "a.avi", 40)], tmp_path / "out", workers=2)
    assert summary.done == 40
    assert most <= 2 * 2 + 1
