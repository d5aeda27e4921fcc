import json
import random
import shutil

import pytest
import torch

from distill.checkpoint import (
    CHECKSUM,
    MANIFEST,
    Checkpoints,
    State,
    publish,
    refuse_other_settings,
    sha256,
    size_of,
    write_json,
)
from distill.config import ConfigError

FILES = ["model.safetensors", "best.safetensors", "optimizer.pt", MANIFEST, CHECKSUM]


def state(step: int) -> State:
    tensors = {"model": {"w": torch.full((50,), float(step))}, "best": {"w": torch.ones(3)}}
    return State(
        step, tensors, {"optimizer": {"state": {0: torch.arange(40.0) + step}}}, {"mean_iou": 0.5, "step": step}
    )


def checkpoints(folder, notes=None, settings=None, facts=None, limit=2, allowed=()) -> Checkpoints:
    note = (notes if notes is not None else []).append
    return Checkpoints(folder, settings or {"kd.weight": 1.0}, facts or {"threads": 1}, limit, note, allowed)


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


@pytest.mark.parametrize("step", [float("inf"), float("nan"), 2, -1, 1.5, True, "1", None, 10**40])
def test_a_manifest_of_another_step_is_refused(tmp_path, step):
    checkpoints(tmp_path).save(state(1))
    folder = tmp_path / "checkpoint-0000001"
    manifest = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, manifest | {"step": step})
    (folder / CHECKSUM).write_text(f"{sha256(folder / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(ConfigError, match="no checkpoint verifies") as caught:
        checkpoints(tmp_path).load()
    assert len(str(caught.value).splitlines()) == 1


def test_a_setting_that_an_older_version_did_not_have_was_at_its_default(tmp_path):
    assert refuse_other_settings(tmp_path, {"seed": 1}, {"seed": 1, "data.unlabelled_share": 0.5}) == {}
    with pytest.raises(ConfigError, match=r"data.unlabelled_share 0\.5 there, 0\.25 here"):
        refuse_other_settings(tmp_path, {"seed": 1}, {"seed": 1, "data.unlabelled_share": 0.25})


def test_other_settings_are_refused_with_the_difference(tmp_path):
    checkpoints(tmp_path).save(state(1))
    with pytest.raises(ConfigError, match=r"kd\.weight 1\.0 there, 2\.0 here"):
        checkpoints(tmp_path, settings={"kd.weight": 2.0}).load()


def test_a_setting_that_is_allowed_to_change_is_noted_and_goes_into_the_next_state(tmp_path):
    checkpoints(tmp_path).save(state(1))
    notes: list[str] = []
    other = {"kd.weight": 2.0, "seed": 1}
    with pytest.raises(ConfigError, match=r"seed 0 there, 1 here\); .*--allow_change"):
        checkpoints(tmp_path, settings=other, allowed=["kd.weight"]).load()
    changed = checkpoints(tmp_path, notes, settings=other, allowed=["kd.weight", "seed"])
    loaded = changed.load()
    assert "kd.weight 1.0 there, 2.0 here, seed 0 there, 1 here" in notes[0]
    assert loaded.changes == [{"step": 1, "settings": {"kd.weight": [1.0, 2.0], "seed": [0, 1]}}]
    loaded.step = 2
    changed.save(loaded)
    notes.clear()
    assert checkpoints(tmp_path, notes, settings=other).load().changes == loaded.changes
    assert not notes


def test_other_threads_are_noted(tmp_path):
    checkpoints(tmp_path).save(state(1))
    notes: list[str] = []
    assert checkpoints(tmp_path, notes, facts={"threads": 4}).load().step == 1
    assert "threads was 1 and is 4" in notes[0]


def test_what_an_older_version_did_not_record_is_not_compared_and_told_in_one_line(tmp_path):
    checkpoints(tmp_path).save(state(1))
    notes: list[str] = []
    settings = {"kd.weight": 1.0, "data.train_files": "8 files, sha256 12", "teacher.files": {"config.json": "34"}}
    newer = checkpoints(tmp_path, notes, settings=settings, facts={"threads": 1, "cpu_capability": "AVX2"})
    newer.save(newer.load())
    line = "checkpoint-0000001 does not say data.train_files, teacher.files, cpu_capability: not compared"
    assert notes == [line]
    other = settings | {"teacher.files": {"config.json": "34", "id2label.json": "56"}}
    with pytest.raises(ConfigError, match=r"teacher\.files: id2label\.json None there, '56' here\)"):
        checkpoints(tmp_path, settings=other).load()
    with pytest.raises(ConfigError, match=r"data\.train_files '8 files, sha256 12' there, '9 files' here\)"):
        checkpoints(tmp_path, settings=settings | {"data.train_files": "9 files"}).load()


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


@pytest.mark.parametrize("free", [0, 2])
def test_space_is_asked_for_before_anything_is_written(tmp_path, monkeypatch, free):
    checkpoints(tmp_path, limit=1).save(state(1))
    before = sorted(tmp_path.rglob("*"))
    needed = size_of(state(2).tensors) + size_of(state(2).optimizer)
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint-0000001").glob("*[st]"))
    assert written < needed < 4 * written
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10 - free, free))
    with pytest.raises(OSError, match=rf"checkpoint-0000002: .*\({free} bytes are free\).* {needed:,} bytes"):
        checkpoints(tmp_path, limit=1).save(state(2))
    with pytest.raises(OSError, match=rf"stage: .*\({free} bytes are free\).* 3 bytes"):
        publish(tmp_path / "stage", lambda folder: pytest.fail("was written"), 3)
    assert sorted(tmp_path.rglob("*")) == before
    assert checkpoints(tmp_path).load().step == 1


def test_published_whole_or_not_at_all(tmp_path):
    def write(folder):
        (folder / "a").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish(tmp_path / "stage", write, 1)
    assert not (tmp_path / "stage").exists()
    publish(tmp_path / "stage", lambda folder: (folder / "a").write_text(json.dumps(2)), 1)
    assert (tmp_path / "stage" / "a").read_text() == "2"
