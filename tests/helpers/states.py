"""States of a training, made up, and damage to their files."""

import random

import torch

from distill.training.checkpoint import Checkpoints
from distill.training.state import TrainState


def state(step: int) -> TrainState:
    tensors = {"model": {"w": torch.full((50,), float(step))}, "best": {"w": torch.ones(3)}}
    return TrainState(
        step, tensors, {"optimizer": {"state": {0: torch.arange(40.0) + step}}}, {"mean_iou": 0.5, "step": step}
    )


def checkpoints(folder, notes=None, settings=None, facts=None, limit=2, allowed=()) -> Checkpoints:
    note = (notes if notes is not None else []).append
    return Checkpoints(folder, settings or {"kd.weight": 1.0}, facts or {"threads": 1}, limit, note, allowed)


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
