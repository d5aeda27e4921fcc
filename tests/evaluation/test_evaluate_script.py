import json
import math
import subprocess
import sys

import numpy as np
import onnx
import onnx_files
import pytest
import torch
from conftest import ROOT
from PIL import Image

from distill import metrics, models
from distill.config.networks import NetworkConfig
from distill.data import Dataset
from distill.deployment.latency import Size, latencies, sizes
from distill.deployment.runtime import OnnxModel, OnnxProcess, open_model
from distill.errors import ConfigError
from distill.evaluation import detailed
from distill.metrics import BoundaryIoU, Calibration


def images(count=3, height=30, width=44):
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = generator.integers(0, 4, (height, width), dtype=np.uint8)
        pairs.append((image, np.where(mask == 3, np.uint8(255), mask)))
    return Dataset([f"i{n}" for n in range(count)], lambda i: pairs[i], [()] * count, lambda i: None)


@pytest.fixture
def model(tmp_path):
    return OnnxModel(onnx_files.write(tmp_path / "model.onnx"))


def boundary_closed_form(mask, classes, reach):
    """Pixels of each class from which another class or the outside is at most `reach` away, walking over squares."""
    height, width = mask.shape
    near = {c: set() for c in range(classes)}
    for y in range(height):
        for x in range(width):
            window = [(y + i, x + j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
            inside = all(0 <= a < height and 0 <= b < width and mask[a, b] == mask[y, x] for a, b in window)
            if mask[y, x] < classes and not inside:
                near[int(mask[y, x])].add((y, x))
    return near


def test_boundary_iou_against_walking_over_pixels():
    generator = np.random.default_rng(0)
    truth, guess = (np.kron(generator.integers(0, 3, (4, 5)), np.ones((8, 9))).astype(np.uint8) for _ in range(2))
    truth[3:6, 10:20] = 255
    found = BoundaryIoU(4)
    found.add(guess, truth)
    reach = max(1, round(0.02 * math.hypot(*truth.shape)))
    near_truth = boundary_closed_form(truth, 4, reach)
    near_guess = boundary_closed_form(np.where(truth == 255, 255, guess), 4, reach)
    for c in range(3):
        expected = len(near_truth[c] & near_guess[c]) / len(near_truth[c] | near_guess[c])
        assert found.iou[c] == pytest.approx(expected)
    assert found.iou[3] is None
    assert found.mean == pytest.approx(sum(found.iou[:3]) / 3)


def test_boundary_iou_sees_what_iou_does_not():
    truth = np.zeros((100, 100), np.uint8)
    truth[10:90, 10:90] = 1
    guess = np.zeros_like(truth)
    guess[13:87, 13:87] = 1
    found = BoundaryIoU(2)
    found.add(guess, truth)
    assert found.iou[1] < 0.1 < 0.85 < 74**2 / 80**2


def test_boundary_iou_is_the_same_some_rows_at_a_time(monkeypatch):
    random = np.random.default_rng(3)
    mask, guess = (random.integers(0, 3, (9, 8)).repeat(9, 0).repeat(7, 1).astype(np.uint8) for _ in range(2))
    mask[20:30, 10:20] = 255
    whole, parts = BoundaryIoU(3), BoundaryIoU(3)
    whole.add(guess, mask)
    monkeypatch.setattr(metrics, "ROWS", 7)
    parts.add(guess, mask)
    assert (parts.counts == whole.counts).all() and 0 < whole.counts[0].sum() < whole.counts[1].sum()


def test_calibration_error_closed_form():
    confidence = np.array([[0.9, 0.9, 0.9, 0.9, 0.31, 0.99]], np.float32)
    prediction = np.array([[1, 1, 1, 1, 0, 0]], np.uint8)
    mask = np.array([[1, 1, 1, 0, 0, 255]], np.uint8)
    calibration = Calibration(10)
    calibration.add(confidence, prediction, mask)
    assert calibration.error == pytest.approx((4 * abs(0.75 - 0.9) + abs(1 - 0.31)) / 5, abs=1e-6)


def test_a_confidence_of_one_falls_into_the_last_bin():
    calibration = Calibration(15)
    calibration.add(np.ones((2, 2)), np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert calibration.error == 0


def test_assessment_of_a_network_that_is_its_own_teacher(model):
    dataset = images()
    found = detailed.assess(3, detailed.plain(model), dataset, model)
    assert found.agreement == 1
    matrix = np.zeros((3, 3), int)
    for i in range(len(dataset)):
        image, mask = dataset.read(i)
        np.add.at(matrix, (mask[mask < 3], model.mask(image)[mask < 3]), 1)
    assert (found.scores.matrix.numpy() == matrix).all()
    assert len(found.image_iou) == 3


def test_values_that_are_not_finite_name_the_image(model):
    with pytest.raises(FloatingPointError, match="i0"):
        detailed.assess(3, lambda image: torch.full((3, 30, 44), float("nan")), images())


@pytest.mark.parametrize("window", [(30, 44), (64, 64), (12, 16), (7, 44)])
def test_windows_cover_every_pixel_once_or_more(window):
    def position(image):  # what is seen through a window is what is there
        return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)

    seen = []
    image = images().read(0)[0]
    found = detailed.Sliding(lambda part: seen.append(part.shape[:2]) or position(part), window)(image)
    assert torch.allclose(found, position(image))
    assert set(seen) == {(min(30, window[0]), min(44, window[1]))}


def test_large_images_are_assessed_band_by_band_as_they_are_as_a_whole(model):
    banded = detailed.Sliding(detailed.plain(model), (12, 16))
    assert len(list(banded.bands(images().read(0)[0]))) > 2
    found = detailed.assess(3, banded, images())
    whole = detailed.assess(3, lambda image: torch.cat(list(banded.bands(image)), 1), images())
    assert torch.equal(found.scores.matrix, whole.scores.matrix)
    assert (found.image_iou, found.boundary.iou) == (whole.image_iou, whole.boundary.iou)
    assert found.calibration.error == pytest.approx(whole.calibration.error, rel=1e-12)


def test_the_worst_images_are_kept_from_the_first_look(model):
    seen, dataset = [], images()
    found = detailed.assess(3, lambda image: seen.append(0) or detailed.plain(model)(image), dataset, model, worst=2)
    assert list(found.worst) == np.argsort(found.image_iou, kind="stable")[:2].tolist()
    for index, kept in found.worst.items():
        (image, mask), guess = dataset.read(index), model.mask(dataset.read(index)[0])
        assert all(map(np.array_equal, kept, (image, mask, guess, guess)))
    assert len(seen) == 3


def test_counts_are_the_same_some_rows_at_a_time(model, monkeypatch):
    whole = detailed.assess(3, detailed.plain(model), images())
    monkeypatch.setattr(metrics, "COUNTED", 100)
    parts = detailed.assess(3, detailed.plain(model), images())
    assert torch.equal(parts.scores.matrix, whole.scores.matrix)
    assert (parts.boundary.counts == whole.boundary.counts).all()
    assert (parts.calibration.confidence == whole.calibration.confidence).all()  # to the bit
    assert (parts.calibration.right == whole.calibration.right).all()


def test_strips_of_large_images_and_the_teacher_of_windows(tmp_path, labeled, monkeypatch):
    sizes = []
    ask = OnnxProcess.run
    monkeypatch.setattr(OnnxProcess, "run", lambda self, *a: sizes.append(a[1].shape[:2]) or ask(self, *a))
    monkeypatch.setattr(detailed, "WORST_SIDE", 22)
    model = str(tmp_path / "model.onnx")
    call = [model, "--teacher", model, "--data.format=folders", f"--data.root={labeled}", "--worst=1"]
    assert detailed.main([*call, "--window", "16", "24", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert set(sizes) == {(16, 24)}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["agreement"] == 1
    (strip,) = (tmp_path / "out" / "worst").iterdir()
    assert Image.open(strip).size == (5 * 22 + 4 * 4, 15 + 18)


def test_mirrored_views_are_mirrored_back(model):
    plain = detailed.plain(model)
    image = images().read(0)[0]
    both = detailed.augmented(plain, [1.0], flip=True)(image)
    mirrored = plain(np.ascontiguousarray(image[:, ::-1])).flip(-1)
    assert torch.allclose(both, (plain(image) + mirrored) / 2, atol=1e-6)
    assert torch.allclose(both.flip(-1), detailed.augmented(plain, [1.0], True)(image[:, ::-1].copy()), atol=1e-6)
    scaled = detailed.augmented(plain, [0.5, 1.0, 1.5], flip=False)(image)
    assert scaled.shape == (3, 30, 44)
    assert torch.allclose(scaled.sum(0), torch.ones(30, 44), atol=1e-5)


@pytest.fixture
def labeled(tmp_path, model):
    """A folder of three images a split, the second and third with the network's own masks."""
    folder, dataset = tmp_path / "data", images()
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(len(dataset)):
            image, mask = dataset.read(i)
            Image.fromarray(image).save(folder / split / "images" / f"{i}.png")
            Image.fromarray(model.mask(image) if i else mask).save(folder / split / "masks" / f"{i}.png")
    return folder


def test_the_script(tmp_path, labeled, capsys):
    model = tmp_path / "model.onnx"
    data = ["--data.format=folders", f"--data.root={labeled}", f"--data.classes={json.dumps(onnx_files.CLASSES)}"]
    script = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(model)]
    options = ["--teacher", str(model), "--worst=1", "--num_threads=1"]
    done = subprocess.run([*script, *options, *data], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert numbers["agreement"] == 1
    assert numbers["images"]["1"] == numbers["images"]["2"] == 1 > numbers["images"]["0"]
    assert numbers["data"] == f"folders, {labeled}"
    assert done.stdout.splitlines()[0] == f"{model} on folders, {labeled}: val, 3 images"
    assert f"mIoU {100 * numbers['mean_iou']:.2f} over 3 of 3 classes, 3 images" in done.stdout
    assert [p.name for p in (tmp_path / "evaluation" / "worst").iterdir()] == ["01_0.png"]
    other = [*data[:2], '--data.classes=["a","b"]']
    assert detailed.main([str(model), *other]) == 2
    refused = capsys.readouterr().err
    assert "has the classes ['sky', 'land', 'sea'], the data ['a', 'b']" in refused
    assert len(refused.strip().splitlines()) == 1


def test_no_evaluation_is_overwritten(tmp_path, labeled, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call = ["model.onnx", "--data.format=folders", f"--data.root={labeled}", "--worst=1"]
    assert detailed.main(call) == 0
    first = (tmp_path / "evaluation" / "evaluation.json").read_bytes()
    assert detailed.main([*call, "--split=train"]) == 0
    assert "evaluation-2/evaluation.json" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "evaluation.json").read_bytes() == first
    assert json.loads((tmp_path / "evaluation-2" / "evaluation.json").read_text())["split"] == "train"
    assert detailed.main([*call, "--output_dir=evaluation"]) == 2
    assert "--output_dir: evaluation holds an evaluation already" in capsys.readouterr().err
    assert (tmp_path / "evaluation" / "evaluation.json").read_bytes() == first


def test_classes_that_nobody_names_are_the_networks(tmp_path, labeled, capsys):
    call = [str(tmp_path / "model.onnx"), f"--data.root={labeled}", f"--output_dir={tmp_path / 'out'}"]
    assert detailed.main([*call, "--data.format=folders"]) == 0
    assert list(json.loads((tmp_path / "out" / "evaluation.json").read_text())["iou"]) == onnx_files.CLASSES
    capsys.readouterr()
    for alone in (call[:1], call[:2]):
        assert detailed.main(alone) == 2
        assert "model.onnx: is no part of a run" in (told := capsys.readouterr().err)
        assert "set --data.format with --data.root, or --config" in told
        assert len(told.splitlines()) == 1


def test_a_folder_without_class_names_takes_those_of_the_data(tmp_path, labeled, capsys):
    models.save(models.build(NetworkConfig(encoder_name="tu-test_resnet"), onnx_files.CLASSES), tmp_path / "theirs")
    (tmp_path / "theirs" / "id2label.json").unlink()
    call = [str(tmp_path / "theirs"), "--teacher", str(tmp_path / "model.onnx"), "--data.format=folders"]
    call += [f"--data.root={labeled}", f"--output_dir={tmp_path / 'out'}"]
    assert detailed.main([*call, f"--data.classes={json.dumps(onnx_files.CLASSES)}"]) == 0
    assert list(json.loads((tmp_path / "out" / "evaluation.json").read_text())["iou"]) == onnx_files.CLASSES
    assert detailed.main([*call[:-1], '--data.classes=["a","b","c","d"]']) == 2
    assert "theirs: predicts 3 classes, but the data has 4" in capsys.readouterr().err


def test_flags_win_over_a_runs_own_settings(tmp_path, labeled, capsys):
    text = f"data: {{format: folders, root: {tmp_path / 'nowhere'}, max_eval_samples: 2}}"
    (tmp_path / "config.yaml").write_text(text)
    call = [str(tmp_path / "model.onnx"), f"--data.root={labeled}", f"--output_dir={tmp_path / 'out'}"]
    assert detailed.main(call) == 0
    assert f"on folders, {labeled}: val, 2 images" in capsys.readouterr().out


def test_what_stands_there_instead_of_a_network_is_said(tmp_path, model):
    for path, words in ((tmp_path, "holds no config.json"), (tmp_path / "nowhere", "is not there")):
        with pytest.raises(ConfigError, match=rf"{path}: expected an ONNX file, .*{words}$"):
            open_model(path)


def odd_mask(path, operator, shape=None, **attributes):
    """A file whose mask is not `[N, H, W]`: an operator is put behind it, and it claims a shape."""
    file = onnx_files.build()
    file.graph.node[-1].output[0] = "inner"
    file.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    inputs = ["inner", "axes"] if operator == "Unsqueeze" else ["inner"]
    file.graph.node.append(onnx.helper.make_node(operator, inputs, ["mask"], **attributes))
    file.graph.output[0].type.tensor_type.ClearField("shape")
    if shape:
        file.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.UINT8, shape))
    onnx.save(file, str(path))
    return path


@pytest.mark.parametrize("shape", [["N", 1, "H", "W"], None])
def test_a_mask_of_four_dimensions_is_refused(tmp_path, shape):
    with pytest.raises(ConfigError, match=r"odd\.onnx: its mask has the shape .*, expected 3 dimensions"):
        OnnxModel(odd_mask(tmp_path / "odd.onnx", "Unsqueeze", shape))


def test_a_mask_of_another_size_is_refused(tmp_path):
    model = OnnxModel(odd_mask(tmp_path / "odd.onnx", "Transpose", perm=[0, 2, 1]))
    image = images().read(0)[0]
    with pytest.raises(ConfigError, match=r"odd\.onnx: gives mask of \(44, 30\) for an image, expected \(30, 44\)"):
        model.mask(image)
    assert model.logits(image).shape == (3, 30, 44)


def test_latencies_and_sizes(tmp_path):
    path = onnx_files.write(tmp_path / "model.onnx")
    rows = latencies({}, {"student": path}, images().read(0)[0], threads=[1, 2], repeat=3)
    assert [(r.name, r.engine, r.threads) for r in rows] == [("student", "onnxruntime", n) for n in (1, 2)]
    assert all(0 < r.fastest <= r.milliseconds for r in rows)
    assert sizes({}, {"student": path}, (30, 44)) == {"student": Size(bytes=path.stat().st_size)}
