"""Confusion matrices of single images."""

import numpy as np
import torch
from conftest import tiny_config

from distill import models
from distill.data import open_splits
from distill.evaluation.per_image import confusion_per_image
from distill.evaluation.scores import evaluate


def test_they_sum_to_what_is_scored_whoever_counts_them(tmp_path):
    config = tiny_config(tmp_path)
    splits = open_splits(config.data)
    torch.manual_seed(0)
    network = models.build(config.student, splits.classes).train()
    cells = confusion_per_image(network, splits.val, 2, "cpu")
    assert network.training
    total = np.zeros(len(splits.classes) ** 2, np.int64)
    np.add.at(total, cells[:, 1], cells[:, 2])
    (matrix,) = (one.matrix for one in evaluate({"s": network}, splits.val, 2, "cpu").scores.values())
    assert total.tolist() == matrix.flatten().tolist()
    assert sorted(set(cells[:, 0].tolist())) == [0, 1, 2]
    assert (cells[:, 2] > 0).all()
    # One at a time: the last bits of a logit may depend on the images beside it.
    parts = [
        confusion_per_image(network, splits.val, 1, "cpu", rank, world) for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    whole, *shares = ([tuple(cell) for cell in part.tolist()] for part in parts)
    assert sorted(shares[0] + shares[1]) == whole
