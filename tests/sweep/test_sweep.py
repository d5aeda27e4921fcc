"""Many students of one teacher: what is read, what is drawn, what comes of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, flags
from PIL import Image

from distill.cli import exit_code
from distill.errors import ConfigError
from distill.sweep import SECTIONS, command_line, read_trials, sweep, table


def write(path, text: str):
    path.write_text(text)
    return path


def test_trials_by_hand_in_a_grid_and_drawn(tmp_path):
    file = write(
        tmp_path / "s.yaml",
        """
settings: {kd.weight: 0}
seeds: [3, 4]
trials: {alone: {}, "forward KL": {kd.weight: 2}}
grid: {kd.temperature: [1, 2], student.learning_rate: [1e-3, 2e-3, 4e-3]}
random: {samples: 5, settings: {kd.weight: {min: 0.1, max: 10, log: true}, kd.divergence: [reverse_kl, jeffreys]}}
""",
    )
    trials = read_trials(file)
    assert len(trials) == 2 * (2 + 6 + 5)
    assert [t.seed for t in trials] == [3] * 13 + [4] * 13
    assert trials[1].key == "trials/forward_KL-seed3"
    assert trials[2].settings == {"kd.temperature": 1, "student.learning_rate": 1e-3}
    drawn = [t.settings for t in trials[8:13]]
    assert all(0.1 <= s["kd.weight"] <= 10 and s["kd.divergence"] in ("reverse_kl", "jeffreys") for s in drawn)
    assert len({s["kd.weight"] for s in drawn}) == 5
    assert read_trials(file) == trials, "the same every time"
    assert [t.name for t in read_trials(file, [0], ["alone"])] == ["alone"]
    _, _, settings = command_line([str(file), "--seeds", "7", "--only", "forward KL", *flags(TINY)])
    assert [(s.seed, s.kd.weight) for s in settings] == [(7, 2)]


def test_flags_win_over_what_all_trials_share_and_that_over_the_settings_file(tmp_path):
    file = write(
        tmp_path / "s.yaml", "settings: {eval_steps: 7, kd.temperature: 3}\ntrials: {a: {}, b: {kd.weight: 9}}"
    )
    base = write(tmp_path / "c.yaml", "eval_steps: 5\nlogging_steps: 4\nkd: {weight: 1, temperature: 2}")
    config, _, (a, b) = command_line([str(file), "--config", str(base), "--eval_steps=8", "--kd.weight=6"])
    assert (config.eval_steps, a.logging_steps, a.kd.temperature, a.kd.weight, b.kd.weight) == (8, 4, 3, 6, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: {a: {kd.weigth: 1}}", "kd.weigth"),
        ("trials: {a: {kd.weight: -1}}", "kd.weight: -1"),
        ("trial: {a: {}}", "a sweep has trials, grid or random"),
        ("random: {samples: 2}", "cannot be read as a sweep"),
        ("trials: [a, b]", "cannot be read as a sweep"),
        ("trials: {}", "no trial"),
        ("trials: {a: {}, a: {}}", "stands twice"),
        ("trials: {a: {data: {root: a}, data.root: b}}", "'data' and 'data.root' both stand there"),
        ("trials: {a: {}}\nsettings: {data: {root: a}, data.root: b}", "'data' and 'data.root' both stand there"),
    ],
)
def test_a_bad_sweep_is_one_line(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit):
        command_line([str(write(tmp_path / "s.yaml", text)), *flags(TINY)])
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_names_of_trials_may_have_dots(tmp_path):
    trials = read_trials(write(tmp_path / "s.yaml", "trials: {T1: {kd.temperature: 1}, T1.5: {kd.temperature: 1.5}}"))
    assert [trial.name for trial in trials] == ["T1", "T1.5"]


def test_unknown_trials_are_named(tmp_path):
    with pytest.raises(ConfigError, match="'b' is no trial"):
        read_trials(write(tmp_path / "s.yaml", "trials: {a: {}}"), names=["b"])


def test_the_script_trains_every_trial_of_one_teacher_and_skips_what_is_there(finished, tmp_path, capfd):
    text = "settings: {kd.weight: 0}\ntrials: {alone: {}, KL: {kd.weight: 2}}\nseeds: [0, 1]"
    file = write(tmp_path / "s.yaml", text)
    wanted = TINY | {"output_dir": tmp_path / "sweep", "teacher.checkpoint": finished}
    arguments = [str(file), *flags(wanted)]
    script = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    done = subprocess.run([*script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    weights = sorted((tmp_path / "sweep" / "trials").glob("*/model.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]

    def again(*more: str) -> int:
        config, trials, settings = command_line([*arguments, *more])
        return exit_code(lambda stop: sweep(config, trials, settings, stop))

    assert again() == 0
    assert [path.stat().st_mtime_ns for path in weights] == times
    assert again("--student.learning_rate=1e-4") == 1
    assert "made with other settings (student.learning_rate" in capfd.readouterr().err
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert sorted((r["name"], r["seed"]) for r in found) == [("KL", 0), ("KL", 1), ("alone", 0), ("alone", 1)]
    assert len(weights) == 4
    assert len({p.read_bytes() for p in weights}) == 4
    assert len(list((tmp_path / "sweep" / "tensorboard" / "trials").iterdir())) == 4
    assert "| KL |" in done.stdout
    assert "training" in done.stdout


def test_a_trial_may_have_data_of_its_own(finished, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(
            photos / f"{i}.png"
        )
    text = f"trials: {{all: {{}}, few: {{data.max_train_samples: 2}}, more: {{data.unlabeled: {photos}}}}}"
    file = write(tmp_path / "s.yaml", text)
    wanted = TINY | {"output_dir": tmp_path / "sweep", "teacher.checkpoint": finished}
    config, trials, settings = command_line([str(file), *flags(wanted)])
    sweep(config, trials, settings)
    weights = {p.read_bytes() for p in (tmp_path / "sweep" / "trials").glob("*/model.safetensors")}
    assert len(weights) == 3


def test_the_table_has_means_and_deviations_best_first():
    rows = [
        {"name": "a", "mean_iou": 0.1, "settings": {}},
        {"name": "b", "mean_iou": 0.5, "settings": {"kd.weight": 2}},
        {"name": "b", "mean_iou": 0.7, "settings": {"kd.weight": 2}},
    ]
    assert table(rows).splitlines()[2:] == ["| b | 60.00 ± 14.14 | 2 | kd.weight=2 |", "| a | 10.00 | 1 |  |"]


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit):
        command_line(["--help"])
    text = capsys.readouterr().out
    assert "Raises:" not in text
    assert "Args:" not in text
    for section in SECTIONS:
        assert f"\n  {section} " in text
