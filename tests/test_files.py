"""The student's files beside the ONNX file: made by a run if asked for, recorded, reported, and not made twice."""

import functools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import tiny_config
from known_graphs import quick_exports

from distill import models
from distill.cli import EXIT_REFUSED, exit_code
from distill.cli import run_here as main
from distill.deployment import onnx_export
from distill.deployment.latency import RATIOS
from distill.errors import ExportError
from distill.pipeline import distil
from distill.reporting import artifacts, report
from distill.reporting.results import NetworkResults, Refused, Results, StudentResults

SETTINGS = {
    "baseline__enabled": "false",
    "export__output": "none",
    "export__int8": "true",
    "export__int8_max_lost": 0.5,
    "export__int8_calibration_images": 3,
    "export__fp16": "true",
    "export__benchmark": "true",
}


pytestmark = pytest.mark.xdist_group("files")  # they share one run, in their order


@pytest.fixture(scope="module", autouse=True)
def quick(graphs):
    """Torch's exporter and the proof at large sizes have tests of their own; latencies are measured in few turns."""
    with pytest.MonkeyPatch.context() as patch:
        quick_exports(graphs, patch.setattr)
        patch.setattr(artifacts, "benchmark", functools.partial(artifacts.benchmark, repeat=2))
        yield


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, distil(tiny_config(folder, **SETTINGS))


def test_all_files_are_there_and_recorded(finished):
    folder, found = finished
    assert {p.name for p in (folder / "student").glob("*.onnx")} == {"model.onnx", "model.int8.onnx", "model.fp16.onnx"}
    assert not list((folder / "student").glob(".*"))
    written = json.loads((folder / "results.json").read_text())
    assert Results.from_json(written, folder) == found
    assert found.student.path == folder / "student"
    assert found.files.int8.mean_iou_lost <= 0.5
    assert {row.name for row in found.files.latency.rows} == {"teacher", "student", "student, 8 bits"}
    assert set(found.files.latency.ratios) == {name for name, *_ in RATIOS}


PROOF = {"mean_iou", "float_mean_iou", "mean_iou_lost", "argmax_agreement", "pixels", "bytes", "float_bytes", "sha256"}
SIZES = {"params", "flops"}
SCORES = {"mean_iou", "iou", "pixel_accuracy", "classes_present"} | SIZES
KEYS = {
    "": {"classes", "val_images", "image_size", "teacher", "student", "details", "onnx", "int8", "fp16", "latency"},
    "teacher": SCORES | {"clipped_share"},
    "student": SCORES | {"clipped_share", "agreement", "gap_closed"},
    "onnx": {"max_logit", "max_abs_diff", "max_confidence_diff", "argmax_agreement", "max_margin", "mean_iou"}
    | {"mean_iou_diff", "shapes", "pixels", "bytes", "sha256", "fixed_size", "made_from"},
    "int8": {"method", "float_layers", "tried", "layers", "stored_layers", "calibration_images", "max_lost"}
    | {*PROOF, "made_from"},
    "fp16": {*PROOF, "made_from"},
    "latency": {"rows", "ratios", "sizes", "size", "repeat", "clock", "cpu", "versions", "made_from", "sha256"},
}


def test_the_json_files_have_the_keys_that_others_read(finished):
    folder, _ = finished
    written = json.loads((folder / "results.json").read_text())
    assert {name: set(written[name] if name else written) for name in KEYS} == KEYS
    assert written["student"]["gap_closed"] is written["onnx"]["fixed_size"] is None
    assert {name: set(size) for name, size in written["latency"]["sizes"].items()} == {
        "teacher": {*SIZES, "bytes"},
        "student": {*SIZES, "bytes"},
        "student, 8 bits": {"bytes"},
    }
    for name in ("onnx", "int8", "fp16", "latency"):
        assert json.loads((folder / "student" / f"{name}.json").read_text()) == written[name]


def test_the_report_says_what_is_known_of_them(finished):
    report = (finished[0] / "report.md").read_text()
    for words in ("`model.int8.onnx`", "points lost", "chosen on these same", "`model.fp16.onnx`", "times faster"):
        assert words in report, words


def test_what_is_there_is_not_made_again(finished, monkeypatch):
    folder, found = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "student").glob("model.*")}
    assert distil(tiny_config(folder, **SETTINGS)) == found
    assert {p: p.stat().st_mtime_ns for p in (folder / "student").glob("model.*")} == before

    def refuse(*_):
        raise ExportError("model.fp16.onnx: no")

    monkeypatch.setattr(artifacts, "export_fp16", refuse)
    (folder / "student" / "model.fp16.onnx").unlink()
    again = distil(tiny_config(folder, **SETTINGS | {"export__int8_calibration_images": 2}))
    assert again.files.onnx == found.files.onnx
    assert again.files.int8.calibration_images == 2
    assert again.files.fp16 == Refused("model.fp16.onnx: no")
    assert "No file in half precision: model.fp16.onnx: no" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"export__int8_max_lost": 5}, "export.int8_max_lost: 5.0 must be below 1"),
        ({"export__int8_max_lost": -1}, "export.int8_max_lost: -1.0 must not be negative"),
        ({"export__int8_calibration_images": 0}, "export.int8_calibration_images: 0 must be above 0"),
        ({"export__output": "probabilities"}, "export.output"),
    ],
)
def test_bad_settings(tmp_path, capsys, settings, words):
    with pytest.raises(SystemExit):
        tiny_config(tmp_path, **settings)
    assert words in capsys.readouterr().err


def test_a_refused_export_costs_nothing_else(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    config = tiny_config(folder, **SETTINGS | {"export__output": "logits"})
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "ROUNDING", 0.0)
        (folder / "report.md").unlink()
        assert main(config) == EXIT_REFUSED
    printed = capsys.readouterr()
    assert [line for line in (printed.out + printed.err).splitlines() if "not published, it differs" in line]
    assert not list((folder / "student").glob("*.onnx"))
    assert "No file for onnxruntime: " in (folder / "report.md").read_text()
    card = (folder / "student" / "README.md").read_text()
    assert "With PyTorch" in card
    assert "InferenceSession" not in card
    assert "not published" in json.loads((folder / "results.json").read_text())["onnx"]["error"]
    assert main(config) == 0
    assert (folder / "student" / "model.onnx").is_file()


def test_refused_8_bits_cost_nothing_else(finished, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ExportError("model.int8.onnx: loses too much")

    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    monkeypatch.setattr(artifacts, "quantize_onnx", refuse)
    found = distil(tiny_config(folder, **SETTINGS | {"export__int8_calibration_images": 1}))
    assert found.files.int8 == Refused("model.int8.onnx: loses too much")
    assert found.files.int8_loses_too_much
    assert set(found.files.latency.ratios) == {"teacher / student, onnxruntime"}
    assert {p.name for p in (folder / "student").glob("*.onnx")} == {"model.onnx", "model.fp16.onnx"}
    assert "No file in 8 bits: model.int8.onnx: loses too much" in (folder / "report.md").read_text()


def test_the_reason_of_a_refused_file_is_recorded_and_ends_with_a_code_of_its_own(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ExportError("model.onnx: not published")

    folder = tmp_path / "run" / "student"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "model.onnx", "model.int8.onnx"):
        (folder / name).write_bytes(b"old")
    config = tiny_config(tmp_path / "run", **SETTINGS)
    network = models.build(config.student, ["a", "b"])
    run = SimpleNamespace(config=config, splits=SimpleNamespace(classes=["a", "b"], palette=[], val=[]), say=print)
    monkeypatch.setattr(artifacts, "export_onnx", refuse)
    files = artifacts.exported(run, {"student": network}, mean_iou=0.5)
    assert files.to_json() == {"onnx": {"error": "model.onnx: not published"}}
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert report.files(files) == ["No file for onnxruntime: model.onnx: not published"]
    scores = {"path": folder, "mean_iou": 1.0, "iou": {}, "pixel_accuracy": 1.0, "classes_present": 0}
    scores |= {"params": 1, "flops": 1}
    networks = {"teacher": NetworkResults(**scores), "student": StudentResults(**scores, agreement=1.0)}
    results = Results(classes=["error"], val_images=1, image_size=[1, 1], **networks)
    assert exit_code(lambda stop: replace(results, files=files)) == EXIT_REFUSED
    assert exit_code(lambda stop: results) == 0
