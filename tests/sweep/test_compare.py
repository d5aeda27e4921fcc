"""Settings against a baseline: what is read, trained once, resumed, and said."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from comparisons import compare_that_dies
from conftest import ROOT, TINY, flags, tiny_config
from harness import Launch

from distill import cli
from distill.batch import UNLABELED
from distill.data import open_splits
from distill.errors import ConfigError
from distill.sweep.comparison import JSON, MARKDOWN, steps_in
from distill.sweep.loop import train_all
from distill.sweep.plan import LABELS_ALONE, command_line
from distill.sweep.records import read_counts, read_json
from distill.sweep.statistics import mean_iou
from distill.sweep.trials import Trial
from distill.training.times import AskingTimes

pytestmark = pytest.mark.xdist_group("compare")  # they share one comparison

LIST = """
settings: {{kd.weight: 0, eval_steps: 6}}
seeds: {seeds}
trials:
  KL: {{kd.weight: 2}}
{more}
score_on: {{other: {{data.synthetic_size: [48, 64]}}}}
"""
BROKEN = "  broken: {kd.weight: 1, student.learning_rate: 1.0e+14}\nequal_time: [KL]"


def arguments_of(folder, teacher, seeds="[0, 1]", more=BROKEN) -> list[str]:
    """A comparison's command line; its file lies beside the folder."""
    file = folder.with_suffix(".yaml")
    file.write_text(LIST.format(seeds=seeds, more=more))
    return [str(file), *flags(TINY | {"output_dir": folder, "teacher.checkpoint": teacher})]


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    """Two seeds of a trial, of one that cannot work, of labels alone, and of these for as long; and what was said."""
    folder = tmp_path_factory.mktemp("compare") / "compared"
    arguments = arguments_of(folder, finished)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(cli, "last_line", said.append)
        assert cli.compare(arguments) == 1
    return folder, arguments, said


def weights(folder) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/model.safetensors")}


def test_a_trial_that_fails_is_named_at_the_end_and_the_others_are_done(compared):
    folder, _, (said,) = compared
    assert "2 trial(s) failed, the others are done" in said
    assert said.count("is not finite at step 2") == 2
    assert sorted(weights(folder)) == [
        *(f"KL-seed{seed}" for seed in (0, 1)),
        *(f"labels_alone,_time_of_KL-seed{seed}" for seed in (0, 1)),
        *(f"labels_alone-seed{seed}" for seed in (0, 1)),
    ]
    found = read_json(folder / JSON)
    assert set(found["failures"]) == {"trials/broken-seed0", "trials/broken-seed1"}
    assert found["results"]["broken"]["missing_seeds"] == [0, 1]
    assert "FloatingPointError" in (folder / "failures" / "broken-seed0.txt").read_text()


def test_numbers_are_those_of_the_images(compared):
    folder, *_ = compared
    found = read_json(folder / JSON)
    assert (found["baseline"], found["seeds"], set(found["sets"])) == (LABELS_ALONE, [0, 1], {"validation", "other"})
    for name in found["sets"]:
        counts = {
            trial: [read_counts(folder / "trials" / f"{trial}-seed{seed}", name)[0] for seed in (0, 1)]
            for trial in ("KL", "labels_alone")
        }
        scores = {trial: [float(mean_iou(one.sum(0))) for one in seeds] for trial, seeds in counts.items()}
        kl, alone = (found["results"][trial]["sets"][name] for trial in ("KL", LABELS_ALONE))
        assert kl["mean_iou"]["values"] == pytest.approx(scores["KL"], abs=1e-12)
        assert kl["mean_iou"]["deviation"] == pytest.approx(np.std(scores["KL"], ddof=1))
        gain = np.mean(scores["KL"]) - np.mean(scores["labels_alone"])
        assert kl["difference"]["mean"] == pytest.approx(gain)
        assert kl["difference"]["low"] <= gain <= kl["difference"]["high"]
        teacher = found["teacher"][name]["mean_iou"]
        baseline = alone["mean_iou"]["mean"]
        assert kl["gap_closed"] == pytest.approx(gain / (teacher - baseline))
        assert "difference" not in alone
    for name, size in (("validation", [64, 96]), ("other", [48, 64])):
        images = open_splits(tiny_config(folder, data__synthetic_size=size).data).val
        labeled = [int((images.read(i)[1] < UNLABELED).sum()) for i in range(3)]
        assert read_counts(folder / "trials" / "KL-seed0", name)[0][:, 1].sum(1).tolist() == labeled
    assert found["about"]["versions"].keys() >= {"torch", "distill"}
    assert found["about"]["settings"]["student.max_train_steps"] == 6


def test_equal_time_gives_the_baseline_the_steps_that_fit_into_the_time_with_cache(compared):
    folder, *_ = compared
    found = read_json(folder / JSON)
    longer = found["at_equal_time"]["KL"]["baseline"]
    assert longer == f"{LABELS_ALONE}, time of KL"
    mine, alone, other = (found["results"][name]["runs"] for name in ("KL", LABELS_ALONE, longer))
    for run, base, long in zip(mine, alone, other, strict=True):
        assert run["cache_seconds"] > 0 == base["cache_seconds"]
        assert run["seconds_with_cache"] == pytest.approx(run["seconds"] + run["cache_seconds"])
        assert long["steps"] == steps_in(run["seconds_with_cache"], base)
        assert abs(long["steps"] * base["seconds"] / base["steps"] - run["seconds_with_cache"]) <= base["seconds"] / 6
    assert found["at_equal_time"]["KL"]["difference"]["other"]["seeds"] == [0, 1]


def test_what_is_finished_is_not_trained_again(compared, tmp_path, capsys):
    folder, arguments, _ = compared
    before, scores = weights(folder), {path: path.read_bytes() for path in folder.glob("trials/*/scores.json")}
    # What is learned later of the teacher's speed must not change the steps of a baseline that was given its time.
    AskingTimes(folder / "times" / "asking").add(folder / "teacher_cache", 100, 1000.0)
    assert cli.compare([*arguments, "--only", "KL"]) == 0
    assert (weights(folder), {path: path.read_bytes() for path in scores}) == (before, scores)
    assert "| KL | 2 | 6 |" in capsys.readouterr().out
    assert cli.compare([*arguments, "--only", "KL", "--student.learning_rate=1e-4"]) == 1
    printed = capsys.readouterr().err
    assert "was made with other settings (student.learning_rate" in printed
    assert "trial(s) failed" not in printed, "before anything is trained"


def test_scores_that_are_missing_or_damaged_are_counted_again(compared, tmp_path):
    folder, arguments, _ = compared
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before, trained = read_json(copy / JSON), weights(copy)
    (copy / "trials" / "KL-seed0" / "confusion-other.npz").write_bytes(b"PK")
    (copy / "trials" / "KL-seed1" / "scores.json").unlink()
    assert cli.compare([*arguments, "--only", "KL", f"--output_dir={copy}"]) == 0
    found = read_json(copy / JSON)
    assert found["results"]["KL"]["sets"] == before["results"]["KL"]["sets"]
    assert weights(copy) == trained


@pytest.mark.parametrize("moment", ["state", "scores"])
def test_a_comparison_that_is_killed_ends_as_one_that_is_not(compared, finished, tmp_path, moment, capsys):
    whole, folder = compared[0], tmp_path / "killed"
    arguments = arguments_of(folder, finished, "[0]", "")
    launch = Launch(compare_that_dies, (arguments, moment), 1, tmp_path / "log")
    assert launch.wait() == [-signal.SIGKILL], launch.output()
    before = weights(folder)
    assert set(before) == {"labels_alone-seed0", *(["KL-seed0"] if moment == "scores" else [])}
    assert read_json(folder / JSON)["results"]["KL"]["missing_seeds"] == [0], "written after each trial"
    shutil.rmtree(folder / "times" / "asking")  # as if the cache had been filled by another command
    assert cli.compare(arguments) == 0
    assert ("resumes from step 4" in capsys.readouterr().out) == (moment == "state")
    assert before.items() <= weights(folder).items()
    for name in ("KL-seed0", "labels_alone-seed0"):
        files = [place / "trials" / name / "model.safetensors" for place in (whole, folder)]
        assert files[0].read_bytes() == files[1].read_bytes()
    run = read_json(folder / JSON)["results"]["KL"]["runs"][0]
    assert run["seconds"] > 0
    assert (run["cache_seconds"] is not None) == (moment == "state"), "asked about some again while it trained"
    steps = json.loads((folder / "times" / "trials" / "KL-seed0.json").read_text())
    assert list(steps) == ["2", "4", "6"]
    assert list(steps.values()) == sorted(steps.values())


def test_trials_that_failed_come_last_the_next_time(tmp_path):
    trained = []
    loop = SimpleNamespace(
        folder=tmp_path,
        run=SimpleNamespace(accelerator=SimpleNamespace(num_processes=1)),
        prepare=lambda trial, config: config,
        begin=lambda: None,
        train=lambda trial, run: trained.append(trial.name),
    )
    trials = [Trial(name, 0, {}, {}) for name in "abc"]
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "a-seed0.txt").touch()
    train_all(loop, trials, [None] * 3)
    assert trained == ["b", "c", "a"]


def test_the_table_is_printed_from_the_files_alone_without_torch(compared, tmp_path):
    folder, *_ = compared
    for name in (JSON, MARKDOWN):
        shutil.copy(folder / name, tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from distill import cli\n"
        f"assert cli.compare(['--print', {str(tmp_path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (tmp_path / MARKDOWN).read_text()
    assert "| KL | 2 | 6 |" in done.stdout
    assert f"difference to {LABELS_ALONE}" in done.stdout


def test_there_is_nothing_to_print(tmp_path, capsys):
    assert cli.compare(["--print", str(tmp_path)]) == 2
    assert "comparison.json: is not there, or no comparison" in capsys.readouterr().err
    assert cli.compare(["--print"]) == 2
    assert "which comparison?" in capsys.readouterr().err


def planned(tmp_path, text: str, *more: str):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return command_line([str(file), *flags(TINY), *more])


def test_the_baseline_is_the_one_named_or_found_or_added(tmp_path):
    named = planned(tmp_path, "baseline: b\nseeds: [3, 4]\ntrials: {a: {}, b: {kd.weight: 3}}")
    assert (named.baseline, [(t.name, t.seed) for t in named.trials]) == (
        "b",
        [("b", 3), ("a", 3), ("b", 4), ("a", 4)],
    )
    found = planned(tmp_path, "trials: {a: {}, none: {kd.weight: 0}, b: {kd.weight: 3}}", "--only", "b")
    assert (found.baseline, [trial.name for trial in found.trials]) == ("none", ["none", "b"])
    added = planned(tmp_path, "settings: {dist.weight: 2, data.unlabeled: photos}\ntrials: {a: {}}")
    assert (added.baseline, added.trials[0].settings) == (
        LABELS_ALONE,
        {"kd.weight": 0, "dist.weight": 0, "data.unlabeled": None},
    )
    assert (added.configs[0].kd.weight, added.configs[0].dist.weight, added.configs[0].data.unlabeled) == (0, 0, None)
    assert planned(tmp_path, "trials: {a: {}, b: {kd.weight: 3}}", "--equal_time").equal_time == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trials: {a: {}, b: {kd.weigth: 1}}",
            "trial 'b': unrecognized arguments: --kd.weigth=1 (did you mean 'kd.weight'?)",
        ),
        ("trials: {a: {}}\nbaseline: c", "baseline: 'c' is no trial; there are a"),
        ("trials: {a: {}}\nequal_time: [b]", "equal_time: 'b' is no trial but the baseline; of a"),
        ("trials: {a: {}}\nscore_on: [night]", "score_on: ['night'] is no mapping"),
        ("trials: {a: {}}\nscore_on: {a/b: {data.root: x}}", "score_on: 'a/b' becomes part of a file's name"),
        ("trials: {a: {}}\nscore_on: {validation: {data.root: x}}", "score_on: 'validation' becomes"),
        ("trials: {a: {}}\nscore_on: {night: {kd.weight: 1}}", "must be settings of the data"),
        ("trials: {a: {}}\nscore_on: {night: {data.rot: x}}", "score_on: night: "),
        ("trials: {a b: {}, a_b: {}}", "'a b' and 'a_b' would share the folder"),
        ("trials: {a: {}}\nbase: a", "base is none of baseline, equal_time, grid"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        planned(tmp_path, text)
    printed = capsys.readouterr().err
    assert (ended.value.code, printed.count("\n")) == (2, 1)
    assert message in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("  odd: {hint.weight: 1, hint.layers: [nowhere]}", "trial 'odd': hint"),
        ("  odd: {data.synthetic_val: 4}", "trial 'odd': has other validation images than the rest"),
    ],
)
def test_what_only_networks_or_images_tell_is_named_before_anything_is_trained(tmp_path, more, message):
    from distill.sweep.compare import compare

    arguments = arguments_of(tmp_path / "run", "", more=more)
    plan = command_line([a for a in arguments if not a.startswith("--teacher.checkpoint")])
    with pytest.raises(ConfigError, match=message):
        compare(plan)
    assert not (tmp_path / "run" / "training").exists()
    assert not (tmp_path / "run" / "teacher").exists()


def test_images_of_other_channels_are_no_further_set(tmp_path):
    from distill.sweep.compare import compare

    plan = command_line(arguments_of(tmp_path / "run", "", more=""))
    settings, data = plan.score_on["other"]
    plan = replace(plan, score_on={"other": (settings, replace(data, synthetic_channels=4))})
    with pytest.raises(ConfigError, match=r"score_on: other: has other classes or channels"):
        compare(plan)


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit):
        command_line(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {section} " in text for section in ("trials", "seeds", "baseline", "score_on", "equal_time"))
    assert "--print" in text
