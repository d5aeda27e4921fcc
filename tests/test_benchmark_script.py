import importlib.util

from conftest import ROOT, tiny_config

from distill.config import dump


def test_inference_leaves_no_file_where_it_was_started(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_script", ROOT / "scripts" / "benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script.models, "load", lambda *_: None)
    monkeypatch.setattr(script, "benchmark", lambda *_: {"rows": []})
    monkeypatch.setattr(script.report, "latency", lambda _: ["a table"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump(tiny_config(tmp_path / "run")))
    script.main(["inference", "run"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    script.main(["inference", "run", "--output", "numbers.json"])
    assert (tmp_path / "numbers.json").is_file()
