"""What a comparison is asked for: its trials, its baseline, other images to score on, and whose time to equal."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.config.data import DataConfig
from distill.config.parse import read_flags
from distill.config.schema import Config
from distill.errors import ConfigError, say
from distill.sweep.records import VALIDATION
from distill.sweep.trials import (
    FILE_HELP,
    Trial,
    command_parser,
    flags,
    read_file,
    read_trials,
    settings_of_trial,
    shared_flags,
)

MORE = ("baseline", "score_on", "equal_time")
LABELS_ALONE = "labels alone"
HELP = f"""{FILE_HELP}

Besides, the file may hold:
  baseline    name of the trial that the others are compared with; if not given, the first whose distillation
              weights are all 0, which is added as '{LABELS_ALONE}' if there is none
  score_on    name: {{data.val_images: folder, ...}}; other images, to be scored with the same weights
  equal_time  true, or a list of trials: for each a further baseline that is trained for as long as it took

Writes comparison.json and comparison.md into the output folder after every trial. Started again, it goes on where it
was, and reads what is finished. --print FOLDER shows the table of a folder again."""


@dataclass
class Plan:
    """A comparison as asked for.

    Attributes:
        config: the settings that all trials share.
        trials: seed by seed, the baseline first.
        configs: their settings.
        baseline: name of one of them.
        score_on: further sets of images: name → settings by which they differ, and all of the data's.
        equal_time: names of the trials whose time a further baseline is given.
        command: what was typed.
    """

    config: Config
    trials: list[Trial]
    configs: list[Config]
    baseline: str
    score_on: dict[str, tuple[dict[str, Any], DataConfig]]
    equal_time: list[str]
    command: str


def command_line(arguments: Sequence[str], prog: str = "compare.py") -> Plan:
    """The comparison that a command line asks for; bad input becomes one line."""
    description = "Train every trial of a list, and say what each gains over labels alone, and how surely."
    parser = command_parser(prog, description, HELP)
    parser.add_argument("--equal_time", action="store_true", help="further baselines, as long as each trial took")
    parser.add_argument("--print", metavar="FOLDER", help="only show what the files of a finished comparison say")
    own, rest = parser.parse_known_args(arguments)
    try:
        return read_plan(own, rest, shlex.join([*prog.split(), *arguments]))
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        sys.exit(2)


def read_plan(own: argparse.Namespace, rest: Sequence[str], command: str) -> Plan:
    """The comparison of a file and flags.

    Raises:
        ConfigError: names the trial or the part of the file that is wrong.
    """
    text = read_file(own.file, MORE)
    listed = read_trials(own.file, own.seeds, (), MORE)
    names = list(dict.fromkeys(trial.name for trial in listed))
    if unknown := [name for name in own.only if name not in names]:
        raise ConfigError(f"--only: {unknown[0]!r} is no trial of {own.file}; it has {', '.join(names)}")
    shared = shared_flags(own.config, listed[0].common, rest)
    config = read_flags(shared)
    by_name = {name: settings_of_trial(next(t for t in listed if t.name == name), shared) for name in names}
    baseline, added = choose_baseline(text.get("baseline"), by_name, config, own.file)
    if added is not None:
        by_name[baseline] = settings_of_trial(Trial(baseline, 0, added, {}), shared)
    trials = []
    for seed in dict.fromkeys(trial.seed for trial in listed):
        of_seed = [trial for trial in listed if trial.seed == seed]
        if added is not None:
            of_seed.append(Trial(baseline, seed, added, listed[0].common))
        wanted = [t for t in of_seed if not own.only or t.name in own.only or t.name == baseline]
        trials += sorted(wanted, key=lambda trial: trial.name != baseline)
    others = [name for name in dict.fromkeys(trial.name for trial in trials) if name != baseline]
    return Plan(
        config,
        trials,
        [replace(by_name[trial.name], seed=trial.seed) for trial in trials],
        baseline,
        read_sets(text.get("score_on"), shared, own.file),
        read_equal_time(True if own.equal_time else text.get("equal_time"), others, own.file),
        command,
    )


def choose_baseline(
    wanted: Any, by_name: Mapping[str, Config], config: Config, file: Path
) -> tuple[str, dict[str, Any] | None]:
    """The name of the baseline, and its settings if it has to be added.

    Raises:
        ConfigError: the one that is wanted is not there.
    """
    from distill.training.stage import DISTILLATION  # only now: it imports torch

    if wanted is not None:
        if wanted not in by_name:
            raise ConfigError(f"{file}: baseline: {wanted!r} is no trial; there are {', '.join(by_name)}")
        return wanted, None
    terms = [name.rstrip(".") for name in DISTILLATION]
    for name, one in by_name.items():
        if not any(getattr(one, term).weight for term in terms):
            return name, None
    added: dict[str, Any] = {f"{term}.weight": 0 for term in terms if getattr(config, term).weight}
    if config.data.unlabeled:  # labels alone say nothing of images without
        added["data.unlabeled"] = None
    name = LABELS_ALONE
    while name in by_name:
        name += " (baseline)"
    return name, added


def read_sets(wanted: Any, shared: Sequence[str], file: Path) -> dict[str, tuple[dict[str, Any], DataConfig]]:
    """The further sets of images of a file.

    Raises:
        ConfigError: a name or a setting that cannot be.
    """
    if not isinstance(wanted or {}, dict):
        raise ConfigError(f"{file}: score_on: {wanted!r:.80} is no mapping; write name: {{data.val_images: folder}}")
    found = {}
    for name, settings in (wanted or {}).items():
        if not re.fullmatch(r"[\w.-]+", name) or name == VALIDATION:
            raise ConfigError(f"{file}: score_on: {name!r} becomes part of a file's name; use letters, digits, _ and -")
        if not isinstance(settings, dict) or not settings or any(not key.startswith("data.") for key in settings):
            raise ConfigError(f"{file}: score_on: {name}: {settings!r:.80} must be settings of the data with dots")
        try:
            found[name] = settings, read_flags([*shared, *flags(settings)]).data
        except ConfigError as error:
            raise ConfigError(f"{file}: score_on: {name}: {error}") from None
    return found


def read_equal_time(wanted: Any, others: Sequence[str], file: Path) -> list[str]:
    """The trials whose time a further baseline is given.

    Raises:
        ConfigError: one that is not there.
    """
    if not isinstance(wanted, list):
        return list(others) if wanted else []
    if unknown := [name for name in wanted if name not in others]:
        raise ConfigError(f"{file}: equal_time: {unknown[0]!r} is no trial but the baseline; of {', '.join(others)}")
    return wanted


def folder_to_print(arguments: Sequence[str]) -> Path | None:
    """The folder whose table is asked for, if it is only that.

    Raises:
        ConfigError: it is not named.
    """
    found = [i for i, text in enumerate(arguments) if text == "--print" or text.startswith("--print=")]
    if not found:
        return None
    name = arguments[found[0]].partition("=")[2] or next(iter(arguments[found[0] + 1 :]), "")
    if not name or name.startswith("-"):
        raise ConfigError("--print: which comparison? give the output folder of one")
    return Path(name)
