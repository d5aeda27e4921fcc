"""The same answer for any number of workers, processes and micro-batches, and for any size of the validation set."""

import json

import pytest
import torch
from conftest import tiny_config
from exactness import SPLITS_OF_FOUR, average_rank, matrices, memory_rank, processes, workers
from harness import run
from safetensors.torch import load_file
from trainings import run_of

from distill.training.stage import BASELINE
from distill.training.trainer import Trainer


def test_workers_do_not_change_the_bits(tmp_path):
    figure = workers((0, 2), (1,), tmp_path)
    assert figure.ok, figure.failures


def test_processes_and_micro_batches_do_not_change_the_answer(tmp_path):
    figure = processes(6, ((1, 1), (1, 2), (2, 1)), ("sgd",), tmp_path)
    assert figure.ok, figure.failures


def test_processes_do_not_change_the_answer_for_classes_that_do_not_exclude_each_other(tmp_path):
    figure = processes(3, ((1, 1), (2, 1)), ("sgd",), tmp_path, many=True)
    assert figure.ok, figure.failures


def test_what_is_scored_is_what_is_kept(tmp_path):
    """Processes see other images, so their moving averages hold other statistics."""
    run(average_rank, (tmp_path,), 2, tmp_path / "log")
    then, again = json.loads((tmp_path / "scores.json").read_text())
    assert then == again


def test_processes_share_one_memory(tmp_path):
    memories = []
    for world in (1, 2):
        run(memory_rank, (tmp_path / str(world), 4 // world), world, tmp_path / f"{world}.log")
        (state,) = (tmp_path / str(world) / "training" / "student").glob("checkpoint-*/model.safetensors")
        memories.append({k.split("cirkd.")[1]: v for k, v in load_file(state).items() if "cirkd." in k})
    for name in ("pixels.pushed", "regions.pushed", "regions.entries"):
        one, two = (memory[name] for memory in memories)
        assert one.any()
        assert torch.allclose(one, two, atol=1e-4), name


def test_every_step_starts_without_gradients(tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def watched(trainer, *args):
        assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
        return train_step(trainer, *args)

    monkeypatch.setattr(Trainer, "train_step", watched)
    Trainer(run_of(tiny_config(tmp_path)), BASELINE, {}).train()


def test_processes_do_not_change_the_scores(tmp_path):
    figure = matrices((1, 2, 3, 7, 40), (2, 3), (1, 4), tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
def test_every_number_of_workers(tmp_path):
    assert workers((0, 1, 2, 3), (1, 2), tmp_path).ok


@pytest.mark.faults
def test_every_split_of_a_step(tmp_path):
    assert processes(20, SPLITS_OF_FOUR, ("sgd", "adamw"), tmp_path).ok


@pytest.mark.faults
def test_every_size_of_the_validation_set(tmp_path):
    assert matrices(range(1, 41), (1, 2, 3), (1, 4), tmp_path).ok
