from types import SimpleNamespace

from conftest import tiny_config

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
