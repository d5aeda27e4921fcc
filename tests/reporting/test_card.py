"""The model card of a run says what is true, its lines of code run, and the folder reaches the Hub when asked to."""

import json
import re
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from conftest import TINY, tiny_config
from huggingface_hub import ModelCard
from known_graphs import quick_exports
from PIL import Image

from distill.cli import run_here as main
from distill.config.parse import parse
from distill.errors import ConfigError
from distill.pipeline import distil
from distill.reporting import model_card
from distill.reporting.report import write_report
from distill.reporting.results import ExportResults, Results


@pytest.fixture
def student(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "finished")
    results = Results.from_json(json.loads((run / "results.json").read_text()))
    return run / "student", replace(results, baseline=None)


def test_the_header_has_what_the_hub_shows(student):
    folder, results = student
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("segmentation-models-pytorch", "image-segmentation")
    assert data.base_model == "tiny/teacher"
    assert data.eval_results[0].metric_value == pytest.approx(results.student.mean_iou, abs=1e-4)


@pytest.fixture(scope="module")
def student_of_small_maps(graphs, tmp_path_factory):
    """Its network gives maps of half the image's size."""
    run = tmp_path_factory.mktemp("runs") / "small"
    settings = {"baseline__enabled": False, "student__options": TINY["student.options"] | {"upsampling": 2}}
    with pytest.MonkeyPatch.context() as patch:
        quick_exports(graphs, patch.setattr)
        return run / "student", distil(tiny_config(run, **settings))


@pytest.mark.parametrize("which", ["student", "student_of_small_maps"])
def test_its_code_runs_and_both_ways_agree(which, request, tmp_path, monkeypatch):
    folder, _ = request.getfixturevalue(which)
    shutil.copytree(folder, tmp_path / "student")
    monkeypatch.chdir(tmp_path / "student")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save("image.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    exec(blocks[0], names)
    first = names["mask"]
    with pytest.warns(UserWarning, match="padding"):  # albumentations' own output
        exec(blocks[1], names)
    assert first.shape == names["mask"].shape == (50, 70)
    assert (first == names["mask"].numpy()).mean() > 0.999


def test_the_text_says_how_it_was_made(student):
    text = (student[0] / "README.md").read_text()
    for fact in ("FPN on test_resnet", "1 cross_entropy + 3 kd", "6 steps of 2\nimages", "| balloon |", "model.onnx"):
        assert fact in text, fact


def test_a_change_of_what_is_finished_is_refused_and_no_record_has_it(student, capsys):
    run = student[0].parent
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    settings = {"student__learning_rate": 0.5, "name": "tiny"}
    assert main(tiny_config(run, **settings, allow_change="[student.learning_rate]")) == 1
    said = capsys.readouterr().err.strip()
    assert "student.learning_rate 0.003 there, 0.5 here, but all that it reaches is finished" in said
    assert len(said.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_the_text_says_with_what_the_student_was_made_and_what_changed_on_the_way(student, tmp_path):
    shutil.copytree(student[0].parent, tmp_path / "run")
    folder = tmp_path / "run" / "student"
    record = json.loads((folder / "stage.json").read_text())
    record["changes"] = [{"step": 2, "settings": {"student.learning_rate": [0.1, 0.003]}}]
    (folder / "stage.json").write_text(json.dumps(record))
    later = tiny_config(tmp_path / "run", seed=5, student__learning_rate=9, kd__weight=7, student__max_train_steps=8)
    model_card.write_card(folder, later, student[1])
    text = (folder / "README.md").read_text()
    for fact in (
        "6 steps of 2\nimages",
        "0.003, seed 0",
        "3 kd",
        "Up to step 2, `student.learning_rate` was 0.1, then 0.003.",
    ):
        assert fact in text, fact


def test_a_file_for_one_size_says_so(student, tmp_path):
    shutil.copytree(student[0].parent, tmp_path / "run")
    files = replace(student[1].files, onnx=replace(student[1].files.onnx, fixed_size=[360, 480]))
    results = replace(student[1], files=files)
    config = tiny_config(tmp_path / "run", data__format="folders", data__root=tmp_path / "roads")
    model_card.write_card(tmp_path / "run" / "student", config, results)
    text = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "images have to be 480 wide and 360 high" in text
    assert "any size" not in text
    assert ModelCard.load(tmp_path / "run" / "student" / "README.md").data.datasets == ["roads"]


def test_a_folder_is_uploaded_without_what_is_private(student, monkeypatch):
    calls = {}

    class Hub:
        def create_repo(self, repo_id, **options):
            calls["repo"] = repo_id, options
            return f"https://hub/{repo_id}"

        def upload_folder(self, **options):
            calls["upload"] = options

    monkeypatch.setattr(model_card, "HfApi", Hub)
    assert model_card.push(student[0], "me/small") == "https://hub/me/small"
    assert calls["repo"] == ("me/small", {"private": True, "exist_ok": True})
    patterns = {k: calls["upload"][k] for k in ("allow_patterns", "ignore_patterns")}
    names = [str(path.relative_to(student[0])) for path in student[0].iterdir()]
    sent = set(huggingface_hub.utils.filter_repo_objects(names, **patterns))
    assert {"README.md", "config.json", "model.safetensors", "model.onnx", "id2label.json"} <= sent
    assert "stage.json" not in sent


def test_without_a_token_the_message_says_so(student, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        model_card.HfApi, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("401 no token"))
    )
    with pytest.raises(ConfigError, match=r"me/small was not uploaded \(401 no token\); is HF_TOKEN set"):
        model_card.push(student[0], "me/small")


def test_a_repository_has_a_name(capsys):
    with pytest.raises(SystemExit):
        parse(["--push_to_hub=true"])
    assert "hub_model_id: push_to_hub needs" in capsys.readouterr().err


def test_without_an_export_nothing_speaks_of_its_file(student, tmp_path):
    shutil.copytree(student[0].parent, tmp_path / "run")
    results = replace(student[1], files=ExportResults())
    model_card.write_card(tmp_path / "run" / "student", tiny_config(tmp_path / "run"), results)
    text = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "onnx" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "README.md", "exec")
    assert code.index("image = ") < code.index("image[0]")


HOSTILE = "<img src=x onerror=alert(1)> | 1 | [a](http://x) `rm`\n| b"


def test_names_are_text_in_the_card_and_the_report(student, tmp_path):
    shutil.copytree(student[0].parent, tmp_path / "run")
    results = Results.from_json(json.loads(json.dumps(student[1].to_json()).replace('"balloon"', json.dumps(HOSTILE))))
    config = tiny_config(tmp_path / "run", data__format="folders", data__root=tmp_path / HOSTILE.replace("/", ""))
    model_card.write_card(tmp_path / "run" / "student", config, results)
    write_report(tmp_path / "run", "tiny", results, [f"samples/{HOSTILE}.png"], "command")
    for path in ("student/README.md", "report.md"):
        text = (tmp_path / "run" / path).read_text().split("\n---\n")[-1]
        (line,) = re.findall(r"^\| .*onerror.*$", text, re.MULTILINE)
        assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
        shown = "\n".join(line for line in text.splitlines() if "onerror" in line)
        assert len(shown.splitlines()) == 2
        assert "<img" not in shown
        assert not re.search(r"(?<!\\)\]\(http", shown)
        assert not re.search(r"(?<!\\)`", shown)
    assert ModelCard.load(tmp_path / "run" / "student" / "README.md").data.library_name
