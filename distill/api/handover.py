"""A run of networks and data sets handed over in Python: the settings that stand for them, and what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distill.config.networks import OWN
from distill.config.parse import dotted, load_config
from distill.config.schema import Config
from distill.data import own_splits
from distill.errors import ConfigError
from distill.models.own import name_of
from distill.pipeline import distil
from distill.reporting.results import Results

NAMES = ("arch", "encoder_name", "encoder_weights")  # of a network that is built by name
DATA = (
    *("classes", "palette", "crop_size", "augmentations", "max_train_samples", "max_eval_samples", "check"),
    *("allow_missing_classes", "max_void_share", "num_workers", "multilabel"),
)


def distil_own(
    student: Any,
    teacher: Any,
    train: Any,
    val: Any,
    settings: Mapping[str, Any],
    void: int,
    stop: Callable[[], bool] = lambda: False,
) -> Results:
    """Runs every stage; see `distill.api.distill`.

    Args:
        student: a module.
        teacher: a module, a function, or a path.
        train: data set.
        val: data set.
        settings: by dotted names or in sections.
        void: label that does not count.
        stop: asked at every step whether to stop.

    Raises:
        ConfigError: bad input of any kind; ExportError is told in the results.
    """
    if not isinstance(student, nn.Module):
        raise ConfigError(
            f"student: {type(student).__name__} is not a torch.nn.Module, so it has nothing to be trained"
        )
    if not isinstance(teacher, (str, Path)) and not callable(teacher):
        raise ConfigError(f"teacher: {type(teacher).__name__} is no module, no function and no path")
    config = own_config(student, teacher, dotted(settings), void)
    splits = own_splits(train, val, config.data, void)
    if "data.crop_size" not in dotted(settings):
        config.data.crop_size = [int(n) for n in splits.train.read(0)[0].shape[:2]]
    own = {"student": copy.deepcopy(student)}  # it gets the weights that the run began with
    return distil(config, stop, splits, own if isinstance(teacher, (str, Path)) else own | {"teacher": teacher})


def own_config(student: nn.Module, teacher: Any, settings: dict[str, Any], void: int) -> Config:
    """The settings with words in place of what is handed over.

    Raises:
        ConfigError: an unknown setting, or one of what is handed over.
    """
    path = isinstance(teacher, (str, Path))
    for key, value in settings.items():
        section, _, name = key.partition(".")
        refused = (section == "data" and name not in DATA) or (section == "student" and name in NAMES)
        refused |= section == "teacher" and (name == "checkpoint" or (not path and name in NAMES))
        if refused or (section == "teacher" and name in ("max_train_steps", "learning_rate")):
            what = "the data sets are" if section == "data" else f"the {section} is"
            raise ConfigError(f"{key}: {value!r:.60} cannot be set, since {what} handed over; leave it out")
    name = Path(settings["output_dir"]).name
    found = {
        "name": name if re.fullmatch(r"[\w.-]+", name) and name.strip(".") else OWN,
        "data.format": OWN,
        "data.augmentations": [],
        "data.cache": False,
        "data.ignore_index": max(0, void),
        "student.arch": OWN,
        "student.encoder_name": name_of(student),
        "student.options": {},
    }
    if path:
        found["teacher.checkpoint"] = str(teacher)
    else:
        found |= {"teacher.arch": OWN, "teacher.options": {}}
        found["teacher.encoder_name"] = name_of(teacher)
    return load_config(None, found | settings)
