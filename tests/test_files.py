"""The student's files beside the ONNX file: made by a run if asked for, recorded, reported, and not made twice."""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import tiny_config

from distill import export, files, models, report
from distill.export import ExportError
from distill.inference import RATIOS
from distill.pipeline import EXIT_REFUSED, distil, main

SETTINGS = {
    "baseline__enabled": "false",
    "export__output": "none",
    "export__int8": "true",
    "export__int8_max_lost": 0.5,
    "export__int8_calibration_images": 3,
    "export__fp16": "true",
    "export__benchmark": "true",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, distil(tiny_config(folder, **SETTINGS))


def test_all_files_are_there_and_recorded(finished):
    folder, found = finished
    assert {p.name for p in (folder / "student").glob("*.onnx")} == {"model.onnx", "model.int8.onnx", "model.fp16.onnx"}
    assert not list((folder / "student").glob(".*"))
    written = json.loads((folder / "results.json").read_text())
    assert {key: written[key] for key in ("onnx", "int8", "fp16", "latency")} == {
        key: found[key] for key in ("onnx", "int8", "fp16", "latency")
    }
    assert found["int8"]["mean_iou_lost"] <= 0.5
    assert {row["name"] for row in found["latency"]["rows"]} == {"teacher", "student", "student, 8 bits"}
    assert set(found["latency"]["ratios"]) == {name for name, *_ in RATIOS}


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

    monkeypatch.setattr(files, "halve_onnx", refuse)
    (folder / "student" / "model.fp16.onnx").unlink()
    again = distil(tiny_config(folder, **SETTINGS | {"export__int8_calibration_images": 2}))
    assert again["onnx"] == found["onnx"]
    assert again["int8"]["calibration_images"] == 2
    assert again["fp16"] == {"error": "model.fp16.onnx: no"}
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
        patch.setattr(export, "ROUNDING", 0.0)
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
    monkeypatch.setattr(files, "quantize_onnx", refuse)
    found = distil(tiny_config(folder, **SETTINGS | {"export__int8_calibration_images": 2}))
    assert found["int8"] == {"error": "model.int8.onnx: loses too much"}
    assert set(found["latency"]["ratios"]) == {"teacher / student, onnxruntime"}
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
    monkeypatch.setattr(files, "export_onnx", refuse)
    found = files.exported(run, {"student": network}, {"student": {"mean_iou": 0.5}})
    assert found == {"onnx": {"error": "model.onnx: not published"}}
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert report.files(found) == ["No file for onnxruntime: model.onnx: not published"]
    assert main(config, lambda _: found | {"classes": ["error"]}) == EXIT_REFUSED
    assert main(config, lambda _: {"onnx": {"sha256": "0"}, "classes": []}) == 0
