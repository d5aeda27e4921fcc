"""The recipe with expected numbers, and what must not change them."""

import hashlib
import json

import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_config
from safetensors.torch import load_file

from distill import models
from distill.config import Config
from distill.data import open_splits
from distill.optim import schedule
from distill.pipeline import stage_settings
from distill.teacher import Teacher
from distill.tracking import Tracker
from distill.train import Run, Stopped, step_seed, train


def run_of(config: Config, stop=lambda: False) -> Run:
    torch.set_num_threads(1)
    config.folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(config.folder))
    return Run(config, accelerator, open_splits(config.data), stop)


def teacher_of(run: Run) -> Teacher:
    torch.manual_seed(7)
    return Teacher(models.build(run.config.teacher, run.splits.classes))


def digest(network: torch.nn.Module) -> str:
    state = network.state_dict()
    return hashlib.sha256(b"".join(state[k].contiguous().numpy().tobytes() for k in sorted(state))).hexdigest()


def losses(monkeypatch) -> list[dict[str, float]]:
    """Everything that is logged, as it is logged."""
    logged: list[dict[str, float]] = []
    original = Tracker.scalars

    def remember(self, values, step):
        logged.append({"step": step, **{k: float(v) for k, v in values.items()}})
        original(self, values, step)

    monkeypatch.setattr(Tracker, "scalars", remember)
    return logged


def test_the_recipe_gives_its_numbers(tmp_path, monkeypatch):
    logged = losses(monkeypatch)
    run = run_of(tiny_config(tmp_path))
    teacher = teacher_of(run)
    train(run, "student", {}, teacher)
    steps = [entry for entry in logged if "train/loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    for entry in steps:
        weighted = entry["train/cross_entropy"] + run.config.kd.weight * entry["train/kd"]
        assert entry["train/loss"] == pytest.approx(weighted, rel=1e-5)
    # Pinned: a change of these is a change of what users get.
    assert steps[0]["train/cross_entropy"] == pytest.approx(3.4915, rel=2e-3)
    assert steps[0]["train/kd"] == pytest.approx(2.0559, rel=2e-3)
    assert steps[0]["train/pull/kd"] == pytest.approx(2.7157, rel=5e-3)
    assert steps[-1]["train/loss"] == pytest.approx(8.444, rel=3e-2)
    assert any("compare/agreement" in entry for entry in logged)


def test_the_teacher_does_not_change_and_is_in_no_checkpoint(tmp_path):
    run = run_of(tiny_config(tmp_path))
    teacher = teacher_of(run)
    before = digest(teacher.network)
    train(run, "student", {}, teacher)
    assert digest(teacher.network) == before
    assert not teacher.network.training
    (folder,) = (tmp_path / "training" / "student").glob("checkpoint-0000006")
    names = load_file(folder / "model.safetensors").keys()
    assert all(name.startswith(("student.", "objective.")) for name in names)
    parameters = sum(p.numel() for p in models.build(run.config.student, run.splits.classes).parameters())
    assert sum(v.numel() for k, v in load_file(folder / "model.safetensors").items()) < 1.1 * parameters


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer__ema_decay": 0.8, "keep": "best"},
        {"optimizer__name": "sgd", "gradient_accumulation_steps": 2, "keep": "last"},
        {
            "student__options": {
                "decoder_pyramid_channels": 16,
                "decoder_segmentation_channels": 32,
                "decoder_dropout": 0.5,
            }
        },
        {"mgd__weight": 0.1, "cirkd__weight": 0.1},
    ],
    ids=["plain", "ema", "sgd-accumulation", "dropout", "adapters-memory"],
)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, settings):
    whole, _ = train(run := run_of(tiny_config(tmp_path / "whole", **settings)), "student", {}, teacher_of(run))
    for stop_at in (1, 4):
        config = tiny_config(tmp_path / f"stopped-{stop_at}", **settings)
        calls = iter(range(100))
        run = run_of(config, stop=lambda calls=calls, stop_at=stop_at: next(calls) == stop_at - 1)
        with pytest.raises(Stopped, match=f"stopped at step {stop_at} of 6"):
            train(run, "student", {}, teacher_of(run))
        run = run_of(config)
        resumed, state = train(run, "student", {}, teacher_of(run))
        assert state.step == 6
        assert digest(resumed) == digest(whole), f"stopped at {stop_at}"


def test_another_seed_gives_other_weights(tmp_path):
    digests = set()
    for i, seed in enumerate((0, 0, 1)):
        run = run_of(tiny_config(tmp_path / str(i), seed=seed, student__max_train_steps=2))
        digests.add(digest(train(run, "baseline", {})[0]))
    assert len(digests) == 2


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    run = run_of(tiny_config(tmp_path, student__learning_rate=1e30, checkpointing_steps=1))
    with pytest.raises(FloatingPointError, match=r"student: .* not finite at step 2 on scene-0-\d+, scene-0-\d+"):
        train(run, "student", {}, teacher_of(run))
    newest = sorted((tmp_path / "training" / "student").glob("checkpoint-*"))[-1]
    assert newest.name == "checkpoint-0000001"
    assert all(v.isfinite().all() for v in load_file(newest / "model.safetensors").values())


def test_a_teacher_that_gives_nan_is_named(tmp_path):
    run = run_of(tiny_config(tmp_path))
    teacher = teacher_of(run)
    with torch.no_grad():
        teacher.network.model.segmentation_head[0].bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the teacher's logits are not finite on scene-0-"):
        train(run, "student", {}, teacher)


def test_the_schedule_warms_up_and_falls_to_zero():
    optimizer = Config().optimizer
    optimizer.warmup_steps, optimizer.power = 4, 1.0
    factors = [schedule(step, 10, optimizer) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_seeds_differ_between_steps_and_processes():
    assert len({step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}) == 600


def test_settings_of_a_stage_leave_out_what_does_not_reach_it(tmp_path):
    config = tiny_config(tmp_path)
    other = tiny_config(tmp_path, kd__weight=3, student__learning_rate=1, data__num_workers=5)
    assert stage_settings(config, "teacher", 1) == stage_settings(other, "teacher", 1)
    assert stage_settings(config, "baseline", 1) != stage_settings(other, "baseline", 1)
    assert stage_settings(config, "student", 1) != stage_settings(config, "student", 2)
    assert json.dumps(stage_settings(config, "student", 1))
