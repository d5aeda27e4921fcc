import json
from types import SimpleNamespace

import pytest
from conftest import TINY, flags, tiny_config

from distill.cli import measure as script
from distill.config.schema import dump


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
    more = {"loader": ["--workers", "0"]}.get(name, [])
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


def test_what_no_command_knows_is_refused(capsys):
    with pytest.raises(SystemExit):
        script.main(["export", "--data.root", "x"])
    assert "unrecognized arguments: --data.root" in capsys.readouterr().err
