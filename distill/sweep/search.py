"""Search that learns from its trials: a tree of Parzen estimators (TPE) proposes settings, and poor trials end early.

Optuna's sampler and pruner (Akiba et al., Optuna, 2019, arXiv:1907.10902; Bergstra et al., Algorithms for
Hyper-Parameter Optimization, NIPS 2011), this project's trainings: a trial is one like any other of a sweep, resumes
to the bit, and stands in the same table. What was tried is in `search.log` of the sweep's folder, so a search goes on
after any kill, and several processes or machines share it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.parse import parse, read_yaml, refuse_mixed
from distill.config.schema import Config
from distill.errors import ConfigError, say
from distill.sweep.trials import (
    DESCRIPTION,
    FILE_HELP,
    Trial,
    command_parser,
    describe,
    settings_of_trial,
    shared_flags,
)

if TYPE_CHECKING:
    from distill.sweep.loop import Loop
    from distill.sweep.study import Study

FIELDS = {"samples", "seed", "prune", "settings"}


@dataclass(frozen=True)
class Search:
    """A search as asked for.

    Attributes:
        samples: trials in all, those that are given up included.
        settings: dotted name → values to choose from, or `{min:, max:, log: true}`.
        shared: flags of all trials.
        seed: of what is proposed.
        training_seed: of every trial.
        prune: whether a trial ends when its score at a validation is below the median of the others at that step.
        common: settings of all trials.
    """

    samples: int
    settings: Mapping[str, Any]
    shared: Sequence[str]
    seed: int
    training_seed: int
    prune: bool
    common: Mapping[str, Any]

    def trial(self, settings: Mapping[str, Any]) -> Trial:
        """What was proposed, as a trial."""
        return Trial(describe(dict(settings)), self.training_seed, dict(settings), dict(self.common))


def read_search(
    text: Any, path: Path, seeds: Sequence[int], common: Mapping[str, Any], shared: Sequence[str]
) -> Search:
    """The `search` section of a sweep's file; tries the ends of every range as settings.

    Raises:
        ConfigError: names what is wrong.
    """
    if not isinstance(text, dict) or not isinstance(text.get("settings"), dict) or not text["settings"]:
        raise ConfigError(f"{path}: search: holds {text!r:.60}; needs samples: 20, settings: {{setting: [values]}}")
    if strange := text.keys() - FIELDS:
        raise ConfigError(f"{path}: search: {min(map(str, strange))} is none of {', '.join(sorted(FIELDS))}")
    samples, seed, prune = text.get("samples"), text.get("seed", 0), text.get("prune", True)
    if type(samples) is not int or samples < 1 or type(seed) is not int or type(prune) is not bool:
        raise ConfigError(
            f"{path}: search: samples is a whole number above 0, seed a whole number, prune true or false"
        )
    if len(seeds) != 1:
        raise ConfigError(f"{path}: seeds: {list(seeds)}; a search takes one, and its best can be compared with more")
    found = Search(samples, text["settings"], shared, seed, int(seeds[0]), prune, common)
    for key, choice in found.settings.items():
        for value in _ends(path, key, choice):
            settings_of_trial(found.trial({key: value}), shared)
    return found


def _ends(path: Path, key: str, choice: Any) -> list[Any]:
    """The values of a list, or both ends of a range."""
    if isinstance(choice, list) and choice:
        return choice
    if isinstance(choice, dict) and choice.keys() - {"log"} == {"min", "max"}:
        low, high = choice["min"], choice["max"]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
        if numbers and low < high and (low > 0 or not choice.get("log")):
            return [low, high]
    raise ConfigError(
        f"{path}: search: {key}: {choice!r:.60} is no list of values and no range {{min: 1e-4, max: 1e-2, log: true}}"
    )


def command_line(arguments: Sequence[str], prog: str = "sweep.py") -> tuple[Config, Search] | None:
    """The search that a command line asks for; None if its file lists trials. Bad input becomes one line."""
    own, rest = command_parser(prog, DESCRIPTION, FILE_HELP).parse_known_args(arguments)
    try:
        text = read_yaml(own.file)
        if not isinstance(text, dict) or "search" not in text:
            return None
        if strange := text.keys() - {"search", "settings", "seeds"} or (own.only and {"--only"}):
            raise ConfigError(f"{own.file}: {min(map(str, strange))} does not go with search; leave it out")
        common = refuse_mixed(dict(text.get("settings") or {}))
        shared = shared_flags(own.config, common, rest)
        seeds = own.seeds or text.get("seeds") or [0]
        wanted = read_search(text["search"], own.file, seeds, common, shared)
    except (ConfigError, TypeError, ValueError) as error:
        say(f"distill: error: {error}", sys.stderr)
        sys.exit(2)
    return parse(shared), wanted


def search(config: Config, wanted: Search, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    """Proposes, trains and scores until all samples are there; returns the scores of all that were not given up.

    Raises:
        ConfigError: bad input, or trials that failed, once the others are done.
        Stopped: `stop` said so; the same call goes on from there.
    """
    # Only now: they import torch.
    from distill.sweep.loop import opened, raise_failures
    from distill.sweep.ranking import finish
    from distill.sweep.study import Study
    from distill.training.distributed import on_main

    with opened(config, stop) as loop:
        studies: list[Study] = []  # the main process's
        on_main(loop.run.accelerator, lambda: studies.append(Study(loop.folder, wanted)))
        loop.begin()
        busy: set[int] = set()
        while (number := work(loop, wanted, studies, busy)) is not None:
            busy.add(number)
        found = finish(loop)
        raise_failures(loop.failures)
    return found


def work(loop: Loop, wanted: Search, studies: Sequence[Study], done: Collection[int]) -> int | None:
    """Proposes a trial, trains it and notes how it ended.

    Args:
        loop: the trials' loop.
        wanted: the search.
        studies: the study, on the main process.
        done: numbers of trials that are finished, or others' work.

    Returns:
        The trial's number; None if there is none left.
    """
    from distill.sweep.loop import Pruned, alone
    from distill.sweep.records import SCORES, read_json
    from distill.training.distributed import from_main, on_main

    accelerator = loop.run.accelerator

    def propose() -> tuple[int, dict[str, Any]] | None:
        with alone(loop.folder, "search"):
            number = studies[0].next(done)
            return None if number is None else (number, studies[0].settings(number))

    def watch(step: int, score: float) -> None:
        poor = from_main(accelerator, lambda: studies[0].is_poor(number, step, score))
        if poor and step < trial_run.config.student.max_train_steps:  # what is done may as well be scored
            raise Pruned

    if (proposal := from_main(accelerator, propose)) is None:
        return None
    number, settings = proposal
    trial = wanted.trial(settings)
    try:
        config = settings_of_trial(trial, wanted.shared)
    except ConfigError as error:  # each setting was tried, but not all of them together
        loop.failures[trial.key] = str(error)
        on_main(accelerator, lambda: studies[0].tell(number, None))
        return number
    trial_run = replace(loop.prepare(trial, config), on_score=watch)
    score, pruned = None, False
    try:
        if loop.train(trial, trial_run):
            score = from_main(accelerator, lambda: read_json(loop.folder / trial.key / SCORES)["mean_iou"])
        elif trial.key not in loop.failures:
            return number  # another process is at it
    except Pruned:
        pruned = True
        loop.run.say(f"{trial.key}: given up, below the median of the others")
        on_main(accelerator, lambda: shutil.rmtree(loop.folder / "training" / trial.key, ignore_errors=True))
    on_main(accelerator, lambda: studies[0].tell(number, score, pruned))
    return number
