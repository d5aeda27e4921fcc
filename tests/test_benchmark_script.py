import contextlib
import copy
import inspect
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY, flags, tiny_config

from distill.batch import Batch
from distill.cli import benchmark, costs, memory
from distill.cli import measure as script
from distill.cli.torchdistill_step import torchdistill_step
from distill.config.schema import dump
from distill.errors import ConfigError


def test_inference_leaves_no_file_where_it_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr(script.models, "load", lambda *_: None)
    monkeypatch.setattr(script, "benchmark", lambda *_: SimpleNamespace(to_json=lambda: {"rows": []}))
    monkeypatch.setattr(script.report, "latency", lambda _: ["a table"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump(tiny_config(tmp_path / "run")))
    script.main(["inference", "run"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    script.main(["inference", "run", "--output", "numbers.json"])
    assert (tmp_path / "numbers.json").is_file()


@pytest.mark.parametrize("name", ["step", "loader", "validation"])
def test_steps_are_measured_and_written_with_their_command(tmp_path, capsys, name):
    small = TINY | {"data.synthetic_val": 2, "mixed_precision": "no", "kd.weight": 1}
    small = {k: v for k, v in small.items() if not k.endswith("max_train_steps") and k != "logging_steps"}
    more = {"loader": ["--workers", "0"], "step": ["--classes", "7"]}.get(name, [])
    script.main([name, "--repeat", "1", "--output", str(tmp_path / "found.json"), *more, *flags(small)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("command").startswith("distill benchmark")
    said = capsys.readouterr().out
    if name == "loader":
        assert 0 < found["share_waited"]["0"] < 1
    else:
        assert all(time > 0 for times in found["seconds"].values() for time in times)
        assert all(contender in said for contender in found["seconds"])
    assert "asked once for 8 images" in said or name == "validation"
    assert name != "step" or found["shape"][1] == 7


def test_the_other_library_trains_the_same_loss(tmp_path):
    """Its loss and ours are the same number, where no pixel is void."""
    pytest.importorskip("torchdistill")
    config = tiny_config(tmp_path, kd__weight=4, kd__temperature=2)
    torch.manual_seed(0)
    image, mask = torch.randint(0, 256, (2, 3, 64, 64)).byte(), torch.randint(0, 10, (2, 64, 64)).byte()
    step = torchdistill_step(config, list("abcdefghij"), Batch(image, mask, []))
    box = inspect.getclosurevars(step).nonlocals["box"]
    student, teacher = copy.deepcopy(box.student_model), box.teacher_model
    x = inspect.getclosurevars(step).nonlocals["image"]
    torch.manual_seed(1)  # of dropout
    with torch.no_grad():
        ours, theirs = student(x), teacher(x)
        kl = F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="none").sum(1).mean()
        expected = F.cross_entropy(ours, mask.long()) + 4 * 4 * kl
    torch.manual_seed(1)
    assert box.forward_process(x, mask.long(), None).item() == pytest.approx(float(expected), rel=1e-4)
    before = [p.clone() for p in box.student_model.parameters()]
    step()
    assert not all((a == b).all() for a, b in zip(before, box.student_model.parameters(), strict=True))
    assert not teacher.training


def test_the_other_library_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill.core.distillation", None)
    with pytest.raises(ConfigError, match=r"--against torchdistill: .*; pip install torchdistill"):
        torchdistill_step(tiny_config(tmp_path), ["a", "b"], None)


def test_memory_is_measured_in_processes_of_their_own(tmp_path, capsys, monkeypatch):
    small = TINY | {"mixed_precision": "no", "kd.weight": 1}
    small = {k: v for k, v in small.items() if not k.endswith("max_train_steps") and k != "logging_steps"}
    started = []

    def run_here(command, env, stdout):  # a fresh process takes its seconds to import
        started.append(command[command.index("--only") + 1])
        assert command[1:5] == ["-m", "distill", "benchmark", "memory"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            script.main(command[4:])
        assert "is asked once for each" not in said.getvalue() or len(started) == 1
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(memory.subprocess, "run", run_here)
    script.main(["memory", "--repeat", "1", "--output", str(tmp_path / "found.json"), *flags(small)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert started == [memory.ONCE, *memory.CONTENDERS] and list(found["bytes"]) == list(memory.CONTENDERS)
    assert found["shape"] == [2, 10, 64, 64] and all(found["bytes_at_start"].values())
    said = capsys.readouterr().out
    assert all(name in said for name in memory.CONTENDERS) and "1.00 × labels alone" in said


def test_costs_are_measured_point_by_point_and_drawn(tmp_path, monkeypatch, capsys):
    started = []

    def run_here(command, env, stdout):
        text = " ".join(command)
        started.append(text)
        shape = [2, 10, 64, 96]
        seconds = {name: [0.01 * len(started), 1.0, 0.0] for name in costs.SHOWN}
        output = re.search(r"--output'?,? '?([^ ',]+)", text).group(1)
        Path(output).write_text(json.dumps({"shape": shape, "seconds": seconds}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(costs.subprocess, "run", run_here)
    paths = [tmp_path / name for name in ("costs.json", "costs.png")]
    points = ["--size", "64x96", "--classes", "2", "150", "--output", str(paths[0]), "--plot", str(paths[1])]
    script.main(["costs", *points, "--kd.weight=2"])
    found = json.loads(paths[0].read_text())
    assert [p["classes"] for p in found["classes"]] == [2, 150] and [p["processes"] for p in found["processes"]] == [
        1,
        2,
    ]
    assert found["classes"][1]["milliseconds"][costs.ONCE] == 30  # the median
    assert costs.PLAIN not in found["processes"][0]["milliseconds"]
    assert len(started) == 5 and all("--kd.weight=2" in text for text in started)
    assert "--data.crop_size=[64,96]" in started[0] and "--classes=150" in started[2] and "launch(" in started[4]
    assert paths[1].read_bytes().startswith(b"\x89PNG") and paths[1].stat().st_size < 60_000
    monkeypatch.setattr(costs.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert benchmark(["costs", "--over", "classes", "--classes", "3"]) == 1
    assert "--classes=3; leave that point out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["costs", "--size", "100x100"])
    assert "'100x100' is not of the form 192x256, in multiples of 32" in capsys.readouterr().err


def test_a_process_that_fails_ends_the_measurement(tmp_path, capsys, monkeypatch):
    code = -9
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code))
    assert benchmark(["memory"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "distill: error: benchmark memory: 'asked once' was killed by signal 9; set a smaller batch or crop"
    )
    code = 1  # it has said itself what was wrong
    with pytest.raises(SystemExit, match="1"):
        benchmark(["memory"])


@pytest.mark.parametrize("head", ["sigmoid", "multilabel"])
def test_steps_of_other_heads_are_measured_too(tmp_path, head):
    AcceleratorState._reset_state(reset_partial_state=True)
    few = TINY | {"data.synthetic_val": 2, "mixed_precision": "no", "teacher.head": head, "student.head": head}
    data = {"data.labels": "{house: house, '*': rest}"} if head == "sigmoid" else {"data.multilabel": True}
    few = {k: v for k, v in (few | data).items() if not k.endswith("max_train_steps") and k != "logging_steps"}
    script.main(["step", "--repeat", "1", "--output", str(tmp_path / "found.json"), *flags(few)])
    assert len(json.loads((tmp_path / "found.json").read_text())["seconds"]) == 5


def test_what_cannot_be_measured_with_many_labels_is_named(capsys, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    many = ["--data.multilabel=true", "--teacher.head=multilabel", "--student.head=multilabel"]
    assert benchmark(["step", "--classes", "7", *many, "--data.synthetic_train=2", "--data.synthetic_val=1"]) == 1
    assert "distill: error: --classes: with data.multilabel" in capsys.readouterr().err
    assert benchmark(["terms", "--config", str(ROOT / "configs" / "multilabel.yaml")]) == 1
    assert "distill: error: data.multilabel: terms are measured with one class" in capsys.readouterr().err


def test_bad_settings_are_named_in_a_line(capsys):
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests leave theirs, of another precision
    assert benchmark(["step", "--data.format=folders", "--data.root=nowhere"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distill: error: data.classes: format 'folders' needs the class names")


def test_what_no_command_knows_is_refused(capsys):
    with pytest.raises(SystemExit):
        script.main(["export", "--data.root", "x"])
    assert "unrecognized arguments: --data.root" in capsys.readouterr().err
