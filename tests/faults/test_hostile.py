"""Hostile files: none runs code, fetches something, eats memory, hangs the run or changes a file outside its folder."""

import json
import os
import time

import pytest
import torch
import watch
from harness import Launch
from hostile import HOSTILE, SECONDS, ask, hostile
from safetensors.torch import save_file
from states import checkpoints, state

from distill.storage import lock
from distill.training.checkpoint import MANIFEST


def _names(*words: str) -> list[str]:
    return [name for name in HOSTILE if any(word in name for word in words)]


@pytest.mark.parametrize(
    "names",
    [
        _names("pickle", "safetensors"),
        _names("YAML"),
        _names("link"),
        _names("bomb", "pipe", "huge", "PostScript"),
        _names("an ONNX file", "a video", "a picture"),
    ],
    ids=["pickle", "yaml", "link", "bomb", "media"],
)
def test_hostile_files_do_nothing(tmp_path, names):
    figure = hostile(names, tmp_path)
    assert figure.ok, "\n".join(figure.failures)


@pytest.mark.parametrize("namespace", [True, False])
@pytest.mark.parametrize("how", ["OpenCV", "a child", "nothing"])
def test_the_network_is_watched_below_python(tmp_path, how, namespace):
    Launch(ask, (how, namespace, tmp_path / "told.json"), 1, tmp_path / "log").wait(SECONDS)
    watched, asked = json.loads((tmp_path / "told.json").read_text())
    if watched == watch.UNWATCHED:
        pytest.skip(watched)
    assert asked == (how != "nothing")


@pytest.mark.faults
def test_no_hostile_file_does_anything(tmp_path):
    figure = hostile(list(HOSTILE), tmp_path)
    assert figure.ok, "\n".join(figure.failures)


def test_a_refused_state_does_not_push_out_a_good_one(tmp_path):
    states = checkpoints(tmp_path, limit=1)
    states.save(state(1))
    states.save(state(4))
    (tmp_path / "checkpoint-0000004" / MANIFEST).write_text("{}")
    states.save(state(2))
    assert [path.name for path in states.list()] == ["checkpoint-0000002"]
    assert states.load().step == 2


def test_an_orphan_of_the_run_does_not_hold_its_lock(tmp_path):
    held = lock(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"!")
        time.sleep(30)
        os._exit(0)
    os.read(read, 1)
    held.close()
    try:
        lock(tmp_path).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_weights_may_hold_what_torch_saves(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    checkpoints(tmp_path / "states").save(state(1))
    assert checkpoints(tmp_path / "states").load().step == 1
