import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import cv2
import giant_files
import numpy as np
import onnx_files
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image

from distill import models, visualize
from distill.config.networks import NetworkConfig
from distill.deployment import media, predict, runtime
from distill.deployment.runtime import OnnxModel, OnnxProcess, open_model
from distill.deployment.sandbox import SandboxError
from distill.errors import ConfigError


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
    assert np.abs(full - visualize.colorize(mask, onnx_files.PALETTE)).mean() < 12
    assert Image.open(tmp_path / "out/side_by_side/0.jpg").size == (2 * 44 + visualize.GAP, 30 + visualize.TITLE)
    assert run(capsys, *arguments[:4], "--overlay", 0)[0] == 0
    none = np.asarray(Image.open(tmp_path / "out/overlays/0.jpg")).astype(int)
    assert np.abs(none - smooth).mean() < 2


def test_video_frames(model, tmp_path, capsys):
    code, out, _ = run(capsys, model, film(tmp_path / "ride.avi"), "--output_dir", tmp_path / "out")
    assert code == 0
    assert "12 masks" in out
    names = sorted(p.name for p in (tmp_path / "out/masks/ride").iterdir())
    assert names == [f"{i:06d}.png" for i in range(12)]
    frame = list(media.Video(tmp_path / "ride.avi"))[7]
    assert (np.asarray(Image.open(tmp_path / "out/masks/ride/000007.png")) == OnnxModel(model).mask(frame)).all()


def test_bad_files_are_named_counted_and_skipped(model, photos, tmp_path, capsys):
    (photos / "text.jpg").write_text("not an image")
    (photos / "half.png").write_bytes((photos / "0.png").read_bytes()[:900])
    Image.fromarray(noise()[..., 0].astype(np.float32)).save(photos / "deep.tif")
    content = film(tmp_path / "whole.avi", 30).read_bytes()
    (photos / "cut.avi").write_bytes(content[: len(content) // 2])
    (photos / "stub.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    code, out, err = run(capsys, model, photos, "--output_dir", tmp_path / "out")
    assert code == 1
    lines = [line for line in err.splitlines() if "skipped" in line]
    for name, reason in {
        "text.jpg": "is not an image",
        "half.png": "cannot be read",
        "deep.tif": "more than 16 bits",
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
        (lambda p: onnx_files.write(p, input_type=TensorProto.INT32), "expected raw images, uint8 [N, H, W, 3]"),
        (lambda p: p.write_text("hello") and p, "is not an ONNX file"),
        (lambda p: p.write_bytes(b"") or p, "is not an ONNX file"),
        (lambda p: p.with_name("missing.onnx"), "is not there"),
    ],
)
def test_a_model_that_is_not_run_gets_one_line(photos, tmp_path, capsys, monkeypatch, make, message):
    path = make(tmp_path / "bad.onnx")
    for more in [], ["--trusted"]:
        if more and "raw images" not in message:  # refused before onnxruntime sees it
            monkeypatch.setattr(onnxruntime, "InferenceSession", None)
        code, out, err = run(capsys, path, photos, *more)
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


def test_files_of_one_stem_keep_their_folders(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "more")
    found = media.find([str(photos), str(tmp_path / "more" / "0.png")])
    assert list(found) == ["photos/0", "photos/1", "photos/2", "more/0"]
    assert found["more/0"] == tmp_path / "more" / "0.png"
    shutil.copy(photos / "0.png", photos / "0.tif")
    (photos / "1.mp4").touch()
    assert list(media.find([str(photos)])) == ["0.png", "0.tif", "1.mp4", "1.png", "2"]


def test_folders_are_searched_with_all_folders_in_them(photos, tmp_path, monkeypatch):
    for folder in "a/b", "out/masks":
        shutil.copytree(photos, photos / folder, ignore=lambda *_: ["a"])
    assert list(media.find([str(photos)], photos / "out")) == ["0", "1", "2", "a/b/0", "a/b/1", "a/b/2"]
    monkeypatch.chdir(photos)
    assert list(media.find(["."])) == [*"012", *(f"a/b/{i}" for i in range(3)), *(f"out/masks/{i}" for i in range(3))]
    assert list(media.find(["a/*/[01].png"])) == ["b/0", "b/1"]
    (photos / "0").mkdir()
    shutil.copy("1.png", "0/000000.png")
    film(photos / "0.avi")
    assert list(media.find(["0.avi", "0/000000.png"])) == ["0", "000000"]
    assert list(media.find(["0.avi", "."]))[:2] == ["0.avi", "0.png"]


def test_globs_and_repeats(photos):
    found = media.find([str(photos / "[01].png"), str(photos)])
    assert [p.name for p in found.values()] == ["0.png", "1.png", "2.png"]


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
    assert type(open_model(tmp_path / "run")) is OnnxProcess
    assert type(open_model(tmp_path / "run", trusted=True)) is OnnxModel
    (folder / "id2label.json").unlink()
    assert open_model(folder).classes == ["class 0", "class 1", "class 2"]


def test_frames_do_not_pile_up_in_memory(model, tmp_path, monkeypatch):
    alive = most = 0
    read = media.items

    def counted(*arguments):
        nonlocal alive, most
        for item in read(*arguments):
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
    summary = predict.predict(OnnxModel(model), {"a": film(tmp_path / "a.avi", 40)}, tmp_path / "out", workers=2)
    assert summary.done == 40
    assert most <= 2 * 2 + 1


def test_a_file_named_like_an_address_does_not_ask_the_network(model, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "films"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        film(folder / "ride.avi").rename(folder / f"http:127.0.0.1:{port}?.mp4")
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
        (folder / "list.mp4").write_text(playlist)
        (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n")
        monkeypatch.chdir(folder)
        code, out, _ = run(capsys, model, ".", "--output_dir", tmp_path / "out")
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()
    assert code == 1
    assert "12 masks" in out
    assert "2 skipped" in out


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Loop"])
def test_an_onnx_file_that_asks_for_too_much_is_stopped(photos, tmp_path, capsys, monkeypatch, operator):
    monkeypatch.setattr(runtime, "BASE_SECONDS", 3)
    path = onnx_files.swollen(tmp_path / "model.onnx", operator)
    code, _, err = run(capsys, path, photos / "0.png", "--output_dir", tmp_path / "out", "--num_threads", 1)
    assert code == (2 if operator == "Loop" else 1)
    said = "was stopped after 3 s" if operator == "Loop" else "out of memory; it may allocate 2"
    assert f"{path}: " in err
    assert said in err
    assert "--trusted runs it without limits" in err
    assert len(err.strip().splitlines()) == 1


def test_a_process_that_crashes_is_named(model, photos):
    segmenter = open_model(model)
    segmenter.process.process.kill()
    with pytest.raises(SandboxError, match=r"model.onnx: the process that read it crashed \(Killed\)"):
        segmenter.mask(noise())
    with pytest.raises(SandboxError, match="crashed"):
        segmenter.mask(noise())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_whole_group_of_processes_is_the_parents_affair(model, number):
    segmenter = open_model(model)
    segmenter.process.process.send_signal(number)
    assert segmenter.mask(noise()).ndim == 2


def test_the_process_answers_as_the_file_does(model):
    images = [noise(20 + i, 30, i) for i in range(8)]
    apart, here = open_model(model), OnnxModel(model)
    with ThreadPoolExecutor(4) as pool:
        for image, mask, logits in zip(
            images, pool.map(apart.mask, images), pool.map(apart.logits, images), strict=True
        ):
            assert (mask == here.mask(image)).all()
            assert (logits == here.logits(image)).all()
    child = apart.process.process
    del apart
    assert child.wait(10) is not None  # it ends with the object


@pytest.mark.parametrize("honest", [True, False])
def test_a_video_of_giant_frames_is_refused(model, tmp_path, capsys, honest):
    path = giant_files.video(tmp_path / "giant.avi", honest)
    code, out, err = run(capsys, model, path, "--output_dir", tmp_path / "out")
    assert (code, f"{0 if honest else 1} masks" in out) == (1, True)
    assert ("has frames of 16000×12000, more than 50,000,000 pixels" if honest else "ends after 1 of 3 frames") in err
    assert len(err.strip().splitlines()) == 1


def test_a_tiff_of_one_giant_tile_is_refused(tmp_path):
    path = giant_files.tile(tmp_path / "giant.tif")
    with pytest.raises(ConfigError, match="is 10×10 in tiles of 675,168,256, more than 50,000,000 pixels"):
        media.read_image(path)


def test_gray_of_16_bits_is_scaled_as_color_is(tmp_path):
    deep = np.linspace(0, 65535, 30 * 40).astype(np.uint16).reshape(30, 40)
    for name in "a.png", "a.tif":
        Image.fromarray(deep).save(tmp_path / name)
        image = media.read_image(tmp_path / name)
        assert np.abs(image - deep[..., None] / 257).max() <= 0.5


def test_what_is_no_file_is_named_and_not_waited_for(photos):
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe.mp4")
    found = media.find([str(photos)])
    for item in media.items({name: path for name, path in found.items() if "pipe" in str(path)}):
        with pytest.raises(ConfigError, match=r"it is empty|is no file"):
            item.read()


def test_a_video_comes_out_as_a_video(model, tmp_path, capsys):
    film(tmp_path / "ride.avi")
    for more, size in ([], (48, 64)), (["--teacher", model], (48 + visualize.TITLE, 2 * 64 + visualize.GAP)):
        assert run(capsys, model, tmp_path / "ride.avi", "--output_dir", tmp_path / "out", *more)[0] == 0
        assert [p.name for p in (tmp_path / "out/videos").iterdir()] == ["ride.mp4"]
        video = media.Video(tmp_path / "out/videos/ride.mp4")
        frames = list(video)
        assert (len(frames), video.fps, frames[0].shape) == (12, 10, (*size, 3))
    mask = np.asarray(Image.open(tmp_path / "out/masks/ride/000003.png"))
    frame = list(media.Video(tmp_path / "ride.avi"))[3]
    half = visualize.overlay(frame, mask, onnx_files.PALETTE, 0.5)
    assert np.abs(frames[3][visualize.TITLE :, -64:].astype(int) - half).mean() < 12


def test_nothing_done_gives_no_shares(model, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("not an image")
    code, out, _ = run(capsys, model, tmp_path / "text.jpg", "--output_dir", tmp_path / "out")
    assert (code, len(out.splitlines())) == (1, 1)
    Image.fromarray(noise()).save(tmp_path / "good.png")
    assert run(capsys, model, tmp_path / "good.png", "--output_dir", tmp_path / "out")[1].splitlines()[1] == (
        "share of all pixels:"
    )


def test_masks_to_learn_from_are_void_where_the_network_is_unsure(model, photos, tmp_path, capsys):
    opened, out = OnnxModel(model), tmp_path / "out"
    logits = {path.name: opened.logits(np.asarray(Image.open(path))) for path in photos.iterdir()}
    sure = {name: (1 / np.exp(one - one.max(0)).sum(0)) for name, one in logits.items()}
    least = float(np.median(np.concatenate([one.ravel() for one in sure.values()])))
    code, _, err = run(capsys, model, photos, "--output_dir", out, "--min_confidence", least)
    assert (code, err) == (0, "")
    for name, one in logits.items():
        mask, confidence = (np.asarray(Image.open(out / kind / name)) for kind in ("masks", "confidence"))
        assert np.array_equal(mask, np.where(sure[name] < least, 255, one.argmax(0)))
        assert np.array_equal(confidence, np.round(255 * sure[name]).astype(np.uint8))
    assert run(capsys, model, photos, "--output_dir", tmp_path / "all", "--min_confidence", 0)[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "all/masks/0.png")), opened.mask(noise(30, 44, 0)))
