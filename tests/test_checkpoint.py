import json
import random

import pytest
import torch

from distill.checkpoint import CHECKSUM, MANIFEST, Checkpoints, State, publish
from distill.config import ConfigError

FILES = ["model.safetensors", "best.safetensors", "optimizer.pt", MANIFEST, CHECKSUM]


def state(step: int) -> State:
    tensors = {"model": {"w": torch.full((50,), float(step))}, "best": {"w": torch.ones(3)}}
    return State(
        step, tensors, {"optimizer": {"state": {0: torch.arange(40.0) + step}}}, {"mean_iou": 0.5, "step": step}
    )


def checkpoints(folder, notes=None, settings=None, facts=None, limit=2) -> Checkpoints:
    note = (notes if notes is not None else []).append
    return Checkpoints(folder, settings or {"kd.weight": 1.0}, facts or {"threads": 1}, limit, note)


def test_what_is_saved_comes_back(tmp_path):
    checkpoints(tmp_path).save(state(3))
    again = checkpoints(tmp_path).load()
    assert (again.step, again.best) == (3, {"mean_iou": 0.5, "step": 3})
    assert torch.equal(again.tensors["model"]["w"], torch.full((50,), 3.0))
    assert torch.equal(again.optimizer["optimizer"]["state"][0], torch.arange(40.0) + 3)


def test_nothing_there_is_nothing_loaded(tmp_path):
    assert checkpoints(tmp_path / "none").load() is None


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        checkpoints(tmp_path).save(state(step))
    assert [p.name for p in checkpoints(tmp_path).list()] == ["checkpoint-0000002", "checkpoint-0000010"]
    assert checkpoints(tmp_path).load().step == 10
    assert checkpoints(tmp_path).load(str(tmp_path / "checkpoint-0000002")).step == 2
    checkpoints(tmp_path).save(state(9))  # gone on from an earlier one: what came after it then is of the past
    assert [p.name for p in checkpoints(tmp_path).list()] == ["checkpoint-0000002", "checkpoint-0000009"]


def damage(path, kind: str, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << generator.randrange(8)
    elif kind == "truncate":
        del data[place:]
    elif kind == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    path.unlink() if kind == "delete" else path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["flip", "truncate", "zeros", "delete"])
def test_a_damaged_state_is_refused_and_the_one_before_is_taken(tmp_path, name, kind):
    generator = random.Random(f"{name} {kind}")
    for trial in range(10):
        folder = tmp_path / str(trial)
        for step in (1, 2):
            checkpoints(folder).save(state(step))
        path = folder / "checkpoint-0000002" / name
        whole = path.read_bytes()
        damage(path, kind, generator)
        if path.exists() and path.read_bytes() == whole:
            continue  # zeros over zeros
        notes: list[str] = []
        assert checkpoints(folder, notes).load().step == 1
        assert "checkpoint-0000002" in notes[0]
        with pytest.raises(Exception, match="checkpoint-0000002"):
            checkpoints(folder).load(str(path.parent))


def test_all_bad_is_an_error_and_not_a_new_start(tmp_path):
    checkpoints(tmp_path).save(state(1))
    (tmp_path / "checkpoint-0000001" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no checkpoint verifies"):
        checkpoints(tmp_path).load()


def test_a_file_more_is_noticed(tmp_path):
    checkpoints(tmp_path).save(state(1))
    (tmp_path / "checkpoint-0000001" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"ema\.safetensors"):
        checkpoints(tmp_path).load()


def test_other_settings_are_refused_with_the_difference(tmp_path):
    checkpoints(tmp_path).save(state(1))
    with pytest.raises(ConfigError, match=r"kd\.weight 1\.0 there, 2\.0 here"):
        checkpoints(tmp_path, settings={"kd.weight": 2.0}).load()


def test_other_threads_are_noted(tmp_path):
    checkpoints(tmp_path).save(state(1))
    notes: list[str] = []
    assert checkpoints(tmp_path, notes, facts={"threads": 4}).load().step == 1
    assert "threads was 1 and is 4" in notes[0]


@pytest.mark.parametrize("where", ["save_file", "write_json", "_sync"])
def test_a_save_that_breaks_leaves_the_older_ones(tmp_path, monkeypatch, where):
    import distill.checkpoint

    checkpoints(tmp_path, limit=1).save(state(1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(distill.checkpoint, where, full)
    with pytest.raises(OSError, match=r"checkpoint-0000002.*No space left.*bytes"):
        checkpoints(tmp_path, limit=1).save(state(2))
    monkeypatch.undo()
    assert checkpoints(tmp_path).load().step == 1
    checkpoints(tmp_path, limit=1).save(state(3))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0000003"], "what the broken save left is gone"


def test_published_whole_or_not_at_all(tmp_path):
    def write(folder):
        (folder / "a").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish(tmp_path / "stage", write)
    assert not (tmp_path / "stage").exists()
    publish(tmp_path / "stage", lambda folder: (folder / "a").write_text(json.dumps(2)))
    assert (tmp_path / "stage" / "a").read_text() == "2"
