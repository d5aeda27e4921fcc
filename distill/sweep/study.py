"""Optuna's record of a search: what is proposed next, what is given up, and how each trial ended."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigError

if TYPE_CHECKING:
    from distill.sweep.search import Search

LOG, NAME = "search.log", "search"
STARTING = 5  # trials that are drawn at random, and never given up, before anything is learned from them


class Study:
    """Optuna's record of a search, in a file that several processes may write to.

    Raises:
        ConfigError: Optuna is not installed, or the folder holds a search for something else.
    """

    def __init__(self, folder: Path, wanted: Search):
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise ConfigError("search: needs Optuna, which is not installed; pip install 'distill[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.wanted, self.folder = optuna, wanted, folder
        folder.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(folder / LOG))
        prune = optuna.pruners.MedianPruner(STARTING) if wanted.prune else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=prune,
        )
        asked = json.dumps([wanted.settings, wanted.common, wanted.training_seed], sort_keys=True)
        if (before := self.study.user_attrs.get("asked", asked)) != asked:
            raise ConfigError(
                f"{folder}: holds a search for {before:.200}; set another --output_dir, or the same search"
            )
        self.study.set_user_attr("asked", asked)

    def next(self, busy: Collection[int]) -> int | None:
        """The number of a trial to work on: one that was interrupted, or a new one; None if all are there.

        Args:
            busy: those that other processes are at work on.
        """
        states = self.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == states.RUNNING and trial.number not in busy:
                return trial.number
        if len(trials) >= self.wanted.samples:
            return None
        # A sampler of its own for each, so that a search that was interrupted proposes what it would have.
        seed = random.Random(f"{self.wanted.seed}, {len(trials)}").getrandbits(32)
        self.study.sampler = self.optuna.samplers.TPESampler(n_startup_trials=STARTING, seed=seed)
        return int(self.study.ask(self._ranges()).number)

    def _ranges(self) -> dict[str, Any]:
        kinds, found = self.optuna.distributions, {}
        for key, choice in self.wanted.settings.items():
            if isinstance(choice, list):
                found[key] = kinds.CategoricalDistribution([json.dumps(value) for value in choice])
            else:
                low, high, log = choice["min"], choice["max"], bool(choice.get("log"))
                whole = isinstance(low, int) and isinstance(high, int)
                found[key] = (kinds.IntDistribution if whole else kinds.FloatDistribution)(low, high, log=log)
        return found

    def settings(self, number: int) -> dict[str, Any]:
        """What was proposed, numbers with three digits."""

        def value(proposed: Any) -> Any:
            if isinstance(proposed, str):
                return json.loads(proposed)
            return float(f"{proposed:.3g}") if isinstance(proposed, float) else proposed

        return {key: value(proposed) for key, proposed in self.study.trials[number].params.items()}

    def is_poor(self, number: int, step: int, score: float) -> bool:
        """Notes a score on the way; returns whether the trial is to be given up."""
        trial = self.optuna.trial.Trial(self.study, self.study.trials[number]._trial_id)
        if step not in self.study.trials[number].intermediate_values:
            trial.report(score, step)
        return bool(trial.should_prune())

    def tell(self, number: int, score: float | None, pruned: bool = False) -> None:
        """Notes how a trial ended: a score, given up, or failed."""
        states = self.optuna.trial.TrialState
        state = states.PRUNED if pruned else states.FAIL if score is None else states.COMPLETE
        self.study.tell(number, score if state == states.COMPLETE else None, state, skip_if_finished=True)
