"""A search: what is proposed, given up, interrupted, and refused."""

import pytest
from conftest import TINY, flags

from distill import cli
from distill.errors import ConfigError, Stopped
from distill.sweep import search, search_line
from distill.sweep.search import Search
from distill.sweep.study import STARTING, Study

optuna = pytest.importorskip("optuna")

TEXT = """
settings: {eval_steps: 2, student.max_train_steps: 4, teacher.cache.enabled: false}
search:
  samples: SAMPLES
  settings: {student.learning_rate: {min: 1.0e-4, max: 1.0e-2, log: true}, kd.temperature: [1, 2]}
"""


def arguments_of(tmp_path, text: str) -> list[str]:
    (tmp_path / "s.yaml").write_text(text)
    return [str(tmp_path / "s.yaml"), *flags(TINY | {"output_dir": tmp_path / "search"})]


def states(folder) -> list[str]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "search.log")))
    return [trial.state.name for trial in optuna.load_study(study_name="search", storage=storage).trials]


def test_a_search_goes_on_after_a_stop(finished, tmp_path, capsys):
    arguments = arguments_of(tmp_path, TEXT.replace("SAMPLES", "3"))
    config, wanted = search_line([*arguments, f"--teacher.checkpoint={finished}"])
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        search(config, wanted, lambda: next(asked) > 6)  # in the second trial
    assert states(tmp_path / "search") == ["COMPLETE", "RUNNING"]
    (first,) = (tmp_path / "search" / "trials").glob("*/model.safetensors")
    before = first.stat().st_mtime_ns
    found = search(config, wanted)
    assert states(tmp_path / "search") == ["COMPLETE"] * 3
    assert first.stat().st_mtime_ns == before
    assert len({record["settings"]["student.learning_rate"] for record in found}) == 3
    other = arguments_of(tmp_path, TEXT.replace("SAMPLES", "3").replace("[1, 2]", "[1, 4]"))
    assert cli.main(["sweep", *other, f"--teacher.checkpoint={finished}"]) == 1
    assert "holds a search for" in capsys.readouterr().err


def test_settings_that_do_not_go_together_cost_a_trial_and_not_the_search(finished, tmp_path):
    text = "search: {samples: 1, settings: {data.val_fraction: [0.2], data.leave_out: [a]}}"
    config, wanted = search_line([*arguments_of(tmp_path, text), f"--teacher.checkpoint={finished}"])
    with pytest.raises(ConfigError, match=r"1 trial\(s\) failed, the others are done: .*leave_out"):
        search(config, wanted)
    assert states(tmp_path / "search") == ["FAIL"]
    assert search(config, wanted) == []


def test_a_poor_trial_is_given_up_and_good_settings_are_proposed_more_often(tmp_path):
    wanted = Search(40, {"kd.weight": {"min": 0.01, "max": 100.0, "log": True}}, [], 0, 0, True, {})
    study, tried = Study(tmp_path, wanted), []
    while (number := study.next([])) is not None:
        weight = study.settings(number)["kd.weight"]
        score = 1 / (1 + abs(weight - 3))  # best at 3
        tried.append((weight, poor := study.is_poor(number, 10, score)))
        study.tell(number, score, poor)
    assert not any(poor for _, poor in tried[:STARTING])
    assert all(poor for weight, poor in tried[STARTING:] if weight > 50)
    assert sum(1 < weight < 9 for weight, _ in tried[-20:]) > 10
    assert Study(tmp_path, wanted).next([]) is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("search: 3", "search: holds 3"),
        ("search: {samples: 3, settings: {}}", "needs samples: 20"),
        ("search: {samples: 0, settings: {kd.weight: [1]}}", "samples is a whole number"),
        ("search: {samples: 3, draws: 1, settings: {kd.weight: [1]}}", "draws is none of"),
        ("search: {samples: 3, settings: {kd.weight: {min: 2, max: 1}}}", "kd.weight: {'min': 2, 'max': 1} is no list"),
        ("search: {samples: 3, settings: {kd.weight: {min: -1, max: 1}}}", "kd.weight: -1"),
        ("search: {samples: 3, settings: {kd.wait: [1]}}", "kd.wait"),
        ("search: {samples: 3, settings: {kd.weight: [1]}}\nseeds: [0, 1]", "a search takes one"),
        ("search: {samples: 3, settings: {kd.weight: [1]}}\ngrid: {kd.weight: [1]}", "grid does not go with search"),
    ],
)
def test_a_bad_search_is_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit):
        search_line(arguments_of(tmp_path, text))
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
