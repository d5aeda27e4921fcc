"""The recipe with expected numbers, and what must not change them."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file
from trainings import digest, run_of, same_bits, teacher_of

from distill import models, pipeline
from distill.config.schema import Config
from distill.errors import ConfigError, Stopped
from distill.pipeline import run_stage, settings_of_stage
from distill.reporting.report import sentences
from distill.training.distributed import start
from distill.training.optim import schedule
from distill.training.stage import BASELINE, STUDENT, TEACHER
from distill.training.state import environment
from distill.training.tracking import Tracker
from distill.training.trainer import Trainer, step_seed


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
    Trainer(run, STUDENT, {}, teacher).train()
    steps = [entry for entry in logged if "train/loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    for entry in steps:
        weighted = entry["train/cross_entropy"] + run.config.kd.weight * entry["train/kd"]
        assert entry["train/loss"] == pytest.approx(weighted, rel=1e-5)
    # Pinned: a change of these is a change of what users get.
    assert steps[0]["train/cross_entropy"] == pytest.approx(3.5498, rel=2e-3)
    assert steps[0]["train/kd"] == pytest.approx(2.0593, rel=2e-3)
    assert steps[0]["train/pull/kd"] == pytest.approx(2.6906, rel=5e-3)
    assert steps[-1]["train/loss"] == pytest.approx(8.409, rel=3e-2)
    assert any("compare/agreement" in entry for entry in logged)


def test_the_teacher_does_not_change_and_is_in_no_checkpoint(tmp_path):
    run = run_of(tiny_config(tmp_path))
    teacher = teacher_of(run)
    before = digest(teacher.network)
    Trainer(run, STUDENT, {}, teacher).train()
    assert digest(teacher.network) == before
    assert not teacher.network.training
    (folder,) = (tmp_path / "training" / "student").glob("checkpoint-0000006")
    names = load_file(folder / "model.safetensors").keys()
    assert all(name.startswith(("student.", "objective.")) for name in names)
    parameters = sum(p.numel() for p in models.build(run.config.student, run.splits.classes).parameters())
    assert sum(v.numel() for k, v in load_file(folder / "model.safetensors").items()) < 1.1 * parameters


DROPOUT = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32, "decoder_dropout": 0.5}
# What holds state beyond weights, optimizer and place in the data: alone, so that a fault has a name, and all together.
HOLDS_STATE: dict[str, dict] = {
    "ema": {"optimizer__ema_decay": 0.8, "keep": "best"},
    "sgd-accumulation": {"optimizer__name": "sgd", "gradient_accumulation_steps": 2, "keep": "last"},
    "dropout": {"student__options": DROPOUT},
    "adapters-memory": {"mgd__weight": 0.1, "cirkd__weight": 0.1},
}
ALL_OF_THEM = {
    "student__options": DROPOUT,
    "optimizer__ema_decay": 0.8,
    "gradient_accumulation_steps": 2,
    "mgd__weight": 0.1,
    "cirkd__weight": 0.1,
    "keep": "best",
}


MANY = {"data__multilabel": True, "teacher__head": "multilabel", "student__head": "multilabel", "dice__weight": 0.5}


@pytest.mark.parametrize("settings", [{}, ALL_OF_THEM, MANY], ids=["plain", "all", "many"])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, settings):
    same_bits(tmp_path, settings)


@pytest.mark.faults
@pytest.mark.parametrize("name", HOLDS_STATE)
def test_whatever_holds_state_goes_on(tmp_path, name):
    same_bits(tmp_path, HOLDS_STATE[name])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        {"kd__divergence": "jeffreys", "dice__weight": 0.5, "cwd__weight": 1, "mgd__weight": 0.1, "cirkd__weight": 0.1},
    ],
    ids=["plain", "accumulation", "many-terms"],
)
def test_what_is_logged_does_not_change_what_is_learned(tmp_path, settings):
    settings = {"student__max_train_steps": 4} | settings
    digests = set()
    for logging_steps in (1, 2, 100):
        config = tiny_config(tmp_path / str(logging_steps), logging_steps=logging_steps, **settings)
        run = run_of(config)
        digests.add(digest(Trainer(run, STUDENT, {}, teacher_of(run)).train()))
    assert len(digests) == 1


def test_steps_whose_gradients_were_clipped_are_counted_and_told(tmp_path, monkeypatch):
    logged = losses(monkeypatch)
    calls = iter(range(100))
    clipped = {"optimizer__max_grad_norm": 1e-6, "eval_steps": 6}
    run = run_of(tiny_config(tmp_path, **clipped), stop=lambda: next(calls) == 1)
    with pytest.raises(Stopped):
        Trainer(run, BASELINE, {}).train()
    resumed = Trainer(run_of(tiny_config(tmp_path, **clipped)), BASELINE, {})
    resumed.train()
    assert resumed.clipped == resumed.step == 6
    assert [entry["train/clipped_share"] for entry in logged if "train/clipped_share" in entry] == [1.0] * 6
    free = Trainer(run_of(tiny_config(tmp_path / "free", eval_steps=6, optimizer__max_grad_norm=0)), BASELINE, {})
    free.train()
    assert free.clipped == 0
    same = {"params": 1, "flops": 1, "mean_iou": 0.5, "gap_closed": None, "module": None}
    shares = {"teacher": 0.25, "baseline": 0.02, "student": 0.2}
    networks = {name: SimpleNamespace(**same, clipped_share=share) for name, share in shares.items()}
    told = sentences(SimpleNamespace(**networks, networks=networks))
    assert told[-1].endswith("teacher 25.0 %, baseline 2.0 %, student 20.0 %.")


def test_another_seed_gives_other_weights(tmp_path):
    digests = set()
    for i, seed in enumerate((0, 0, 1)):
        run = run_of(tiny_config(tmp_path / str(i), seed=seed, student__max_train_steps=2))
        digests.add(digest(Trainer(run, BASELINE, {}).train()))
    assert len(digests) == 2


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    run = run_of(tiny_config(tmp_path, student__learning_rate=1e15, checkpointing_steps=1))
    with pytest.raises(FloatingPointError, match=r"student: .* not finite at step 2 on scene-0-\d+, scene-0-\d+"):
        Trainer(run, STUDENT, {}, teacher_of(run)).train()
    newest = sorted((tmp_path / "training" / "student").glob("checkpoint-*"))[-1]
    assert newest.name == "checkpoint-0000001"
    assert all(v.isfinite().all() for v in load_file(newest / "model.safetensors").values())


def test_a_teacher_that_gives_nan_is_named(tmp_path):
    run = run_of(tiny_config(tmp_path))
    teacher = teacher_of(run)
    with torch.no_grad():
        teacher.network.model.segmentation_head[0].bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the teacher's logits are not finite on scene-0-"):
        Trainer(run, STUDENT, {}, teacher).train()


def test_a_network_that_gives_nan_is_named_by_its_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", spoil)
    with pytest.raises(FloatingPointError, match="the teacher network gives values that are not finite on scene-"):
        Trainer(run_of(tiny_config(tmp_path)), TEACHER, {}).train()


def spoil(trainer, step, micro_batches):
    with torch.no_grad():
        trainer.student.model.segmentation_head[0].bias[0] = float("nan")
    return {"loss": torch.zeros(())}, False


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
    assert settings_of_stage(config, TEACHER, 1) == settings_of_stage(other, TEACHER, 1)
    assert settings_of_stage(config, BASELINE, 1) != settings_of_stage(other, BASELINE, 1)
    assert settings_of_stage(config, STUDENT, 1) != settings_of_stage(config, STUDENT, 2)
    assert json.dumps(settings_of_stage(config, STUDENT, 1))


def stopped_at_2(folder, **settings) -> None:
    calls = iter(range(100))
    run = run_of(tiny_config(folder, **settings), stop=lambda: next(calls) == 1)
    with pytest.raises(Stopped):
        run_stage(run, BASELINE)


def test_a_setting_that_is_allowed_to_change_counts_from_the_step_reached(tmp_path):
    stopped_at_2(tmp_path)
    other = {"optimizer__weight_decay": 0.5, "student__max_train_steps": 4}
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay 0\.01 there, 0\.5 here, student\.max_train_steps"):
        run_stage(run_of(tiny_config(tmp_path, **other)), BASELINE)
    allowed = "[optimizer.weight_decay, student.max_train_steps]"
    run_stage(run_of(tiny_config(tmp_path, **other, allow_change=allowed)), BASELINE)
    record = json.loads((tmp_path / "baseline" / "stage.json").read_text())
    changed = {"optimizer.weight_decay": [0.01, 0.5], "student.max_train_steps": [6, 4]}
    assert (record["steps"], record["changes"]) == (4, [{"step": 2, "settings": changed}])
    assert record["settings"]["optimizer.weight_decay"] == 0.5


def test_an_allowed_change_reaches_the_optimizer(tmp_path, monkeypatch):
    stopped_at_2(tmp_path)
    seen = []
    train_step = Trainer.train_step

    def watched(trainer, *args):
        seen.append([group["weight_decay"] for group in trainer.optimizer.param_groups])
        return train_step(trainer, *args)

    monkeypatch.setattr(Trainer, "train_step", watched)
    config = tiny_config(tmp_path, optimizer__weight_decay=0.5, allow_change="[optimizer.weight_decay]")
    run_stage(run_of(config), BASELINE)
    assert seen == [[0.5, 0.0]] * 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student__max_train_steps": 2}, "2 steps are done; to go on set max_train_steps above that"),
        ({"optimizer__name": "sgd"}, "does not fit"),
        ({"optimizer__ema_decay": 0.9}, "does not fit"),
        ({"student__encoder_name": "tu-test_efficientnet"}, "does not fit"),
    ],
    ids=["steps", "optimizer", "ema", "network"],
)
def test_what_cannot_change_on_the_way_is_refused(tmp_path, settings, words):
    stopped_at_2(tmp_path)
    (name,) = settings
    config = tiny_config(tmp_path, **settings, allow_change=f"[{name.replace('__', '.')}]")
    with pytest.raises(ConfigError, match=words) as caught:
        run_stage(run_of(config), BASELINE)
    assert "\n" not in str(caught.value)


def test_what_is_finished_stays_as_it_is_when_a_setting_may_change(tmp_path, capsys):
    run_stage(run_of(tiny_config(tmp_path)), BASELINE)
    before = (tmp_path / "baseline" / "stage.json").read_bytes()
    with pytest.raises(ConfigError, match=r"seed 0 there, 5 here\); .*--allow_change"):
        run_stage(run_of(tiny_config(tmp_path, seed=5)), BASELINE)
    run_stage(run_of(tiny_config(tmp_path, seed=5, allow_change="[seed]")), BASELINE)
    assert "is already there, made before the change of seed" in capsys.readouterr().out
    assert (tmp_path / "baseline" / "stage.json").read_bytes() == before


def test_states_that_a_kill_left_of_a_finished_training_are_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "forget_states", lambda run, stage: None)  # it comes before they are removed
        run_stage(run_of(tiny_config(tmp_path)), BASELINE)
    assert any((tmp_path / "training" / "baseline").iterdir())
    run_stage(run_of(tiny_config(tmp_path)), BASELINE)
    assert not (tmp_path / "training").exists()


def test_the_instructions_of_the_processor_are_among_the_facts(tmp_path, monkeypatch):
    accelerator = run_of(tiny_config(tmp_path)).accelerator
    found = environment(accelerator)
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["onednn_max_cpu_isa"] == "ALL"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not found["amx_bf16"]})
    other = environment(accelerator)
    assert {key: other[key] for key in other if other[key] != found[key]} == {
        "cpu_capability": "DEFAULT",
        "amx_bf16": not found["amx_bf16"],
        "onednn_max_cpu_isa": "AVX2",
    }


def test_synchronized_norms_train_and_load_into_plain_ones(tmp_path):
    settings = {"student__encoder_name": "tu-test_efficientnet"}  # its norms hold the activations
    plain = Trainer(run_of(tiny_config(tmp_path / "plain", **settings)), BASELINE, {}).train()
    run = run_of(tiny_config(tmp_path / "sync", sync_batchnorm="true", **settings))
    network = Trainer(run, BASELINE, {}).train()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert digest(network) == digest(plain)  # one process has nobody to share with
    wanted = run.config.student
    models.save(network, tmp_path / "saved")
    loaded = models.load(tmp_path / "saved", run.splits.classes, wanted.mean, wanted.std)
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in loaded.modules())
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(image).logits, network(image).logits)


def test_accelerate_does_not_divide_the_loss_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps: 1, but ACCELERATE_.* is 4 in the environment"):
        start(tiny_config(tmp_path))
    accelerator = start(tiny_config(tmp_path, gradient_accumulation_steps=4))
    weight = torch.ones((), requires_grad=True)
    accelerator.backward(2 * weight)
    assert weight.grad == 2


def test_synchronized_norms_are_refused_on_a_cpu(tmp_path):
    with pytest.raises(ConfigError, match="sync_batchnorm: needs GPUs, the device here is cpu"):
        start(tiny_config(tmp_path, sync_batchnorm="true"))
