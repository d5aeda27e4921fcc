"""The loop over students of one teacher: each trained, resumed or read, and scored on every set of images.

Its results are files in the folder of each trial, so whoever wants a table reads these, whatever was interrupted.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from distill import pipeline
from distill.config.schema import Config, dump
from distill.data import Splits, check_splits, contents, open_splits
from distill.errors import ConfigError, Stopped
from distill.storage import lock, write_json, write_text
from distill.sweep.records import SCORES, VALIDATION, ScoredSet, is_scored, read_json, write_matrices
from distill.sweep.statistics import count_images, iou, mean_iou
from distill.sweep.trials import Trial
from distill.training.checkpoint import Checkpoints
from distill.training.context import Run
from distill.training.distributed import from_main, on_main
from distill.training.from_data import settled
from distill.training.provenance import RECORD, refuse_other_settings, settings_of_stage
from distill.training.stage import STUDENT, Stage
from distill.training.teacher_answers import ASKING, CACHE, decide, learned_from
from distill.training.times import AskingTimes, Stopwatch

FAILURES, LOCKS, TIMES = "failures", "locks", "times"  # folders beside the trials
TIMED = ("seconds", "cache_seconds")
PATIENCE_SECONDS = 60


class Pruned(Exception):
    """A trial is not worth finishing."""


@dataclass
class Loop:
    """What the trials of one teacher share, and what became of them.

    Attributes:
        run: what stages share, with the settings that all trials have.
        sets: further sets of images to score on, by name.
        failures: what ended a trial before its time, by its key.
        networks: the teacher.
        on_result: called after each trial that is finished.
    """

    run: Run
    sets: Mapping[str, ScoredSet] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    on_result: Callable[[], Any] = lambda: None

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.run.config.folder

    def prepare(self, trial: Trial, config: Config) -> Run:
        """What a trial runs with, once it is sure that it can be built, and is no other than the one that has begun.

        Raises:
            ConfigError: a setting, an image, or a trial of the same name that was begun with other settings.
        """
        run, same = self.run, config.data == self.run.config.data
        splits = run.splits if same else open_splits(config.data)
        if not same:
            check_splits(splits, config.data, run.progress)
            self.refuse_other_images(trial, splits)
        try:
            config = settled(config, splits)
            teacher = run.foreign.network if run.foreign else None
            objective = pipeline.dry_run(config, run.splits.classes, None, teacher, splits.image)
            images = replace(run, config=config).global_batch_size * config.student.max_train_steps
            config, _ = decide(config, splits, objective, images)
        except ConfigError as error:
            raise ConfigError(f"trial {trial.name!r}: {error}") from error
        checked = run.checked if same else {"contents": contents(splits)}
        trial_run = replace(run, config=config, compare=False, checked=checked, times=self.folder / TIMES)
        on_main(run.accelerator, lambda: refuse_changed(trial_run, stage_of(trial)))
        return trial_run

    def refuse_other_images(self, trial: Trial, splits: Splits) -> None:
        """Raises ConfigError if a trial with data of its own would be scored on other images or classes."""
        if splits.classes != self.run.splits.classes or splits.val.names != self.run.splits.val.names:
            what = "classes" if splits.classes != self.run.splits.classes else "validation images"
            raise ConfigError(f"trial {trial.name!r}: has other {what} than the rest; set them for all, in `settings`")

    def begin(self) -> None:
        """Loads or trains the teacher, and scores it."""
        held = self.take("teacher")
        self.networks = {"teacher": pipeline.load_teacher(self.run)}
        if held:
            write_text(self.folder / "config.yaml", dump(self.run.config))
            held.close()
        self.score(self.networks["teacher"], self.folder / "teacher", self.run.splits, {})

    def take(self, name: str) -> IO[str] | None:
        """The right to work on something, as long as the file is open; only the main process holds it.

        Raises:
            ConfigError: another has it.
        """
        return on_main(self.run.accelerator, lambda: lock(self.folder / LOCKS / name))

    def train(self, trial: Trial, trial_run: Run) -> bool:
        """Trains and scores a student, unless another process is at it; returns whether it is finished.

        Raises:
            Stopped: the run was asked to stop.
            Pruned: the trial was given up.
        """
        run, name = self.run, Path(trial.key).name
        note = self.folder / FAILURES / f"{name}.txt"
        try:
            held = self.take(name)
        except ConfigError as error:
            run.say(f"{trial.key}: left to the other ({error})")
            return False
        try:
            new = self.finish(trial, trial_run)
        except (Stopped, Pruned):
            raise
        except Exception as error:
            if run.accelerator.is_main_process:
                note.parent.mkdir(exist_ok=True)
                write_text(note, traceback.format_exc())
            if run.accelerator.num_processes > 1:
                raise  # the others may not have met it, and would wait for this one
            lines = (str(error).strip() or repr(error)).splitlines()
            line = lines[-1].split("Error: ")[-1] if "Traceback" in lines[0] else lines[0]
            self.failures[trial.key] = line.removeprefix(f"{trial.key}: ")
            run.say(f"{trial.key}: failed ({self.failures[trial.key]}); {note} says more")
            run.accelerator.free_memory()
            return False
        finally:
            if held:
                held.close()
        if run.accelerator.is_main_process:
            note.unlink(missing_ok=True)
            if new:
                self.on_result()
        if run.stop():
            raise Stopped("stopped between trials; rerun the same command to resume")
        return True

    def finish(self, trial: Trial, trial_run: Run) -> bool:
        """Trains a student if it is not there, and scores it where it is not scored; returns whether it was not."""
        config, folder = trial_run.config, self.folder / trial.key
        same = config.data == self.run.config.data
        splits = self.run.splits if same else open_splits(config.data)
        trial_run = replace(trial_run, splits=splits)
        if config.data.cache and not from_main(self.run.accelerator, (folder / RECORD).is_file):
            warm(splits)
        # One that is already there is read, and refused if it was made with other settings.
        network = pipeline.run_stage(trial_run, stage_of(trial), self.networks)
        facts = {"name": trial.name, "seed": trial.seed, "settings": trial.settings}
        facts |= from_main(self.run.accelerator, lambda: times_of(trial_run, trial))
        return self.score(network, folder, splits, facts)

    def score(self, network: Any, folder: Path, splits: Splits, facts: Mapping[str, Any]) -> bool:
        """Writes the scores of a network on all sets, where they are not known; returns whether some were not."""
        run, classes = self.run, self.run.splits.classes
        sets = {VALIDATION: ScoredSet(splits.val, {})} | dict(self.sets)
        record = from_main(run.accelerator, lambda: read_json(folder / SCORES))
        known = dict(record.get("sets", {}))
        for name, scored in sets.items():
            if from_main(run.accelerator, partial(is_scored, folder, known, name, scored)):
                continue
            cells = run.confusion_per_image(network, scored.dataset, folder.name)
            if run.accelerator.is_main_process:
                write_matrices(folder, name, cells, scored.dataset.names, classes, run.splits.multilabel)
            counts = count_images(cells, len(scored.dataset), len(classes), run.splits.multilabel).sum(0)
            values = [None if value != value else value for value in iou(counts).tolist()]
            by_class = dict(zip(classes, values, strict=True))
            known[name] = {"mean_iou": float(mean_iou(counts)), "iou": by_class, "images": scored.identity}
        here = known[VALIDATION]
        # Times stay as they were first written: what a later baseline is given must not depend on when it is asked.
        times = {key: record[key] for key in TIMED if record.get(key) is not None}
        found = record | dict(facts) | times | {"mean_iou": here["mean_iou"], "iou": here["iou"], "sets": known}
        if new := found != record and run.accelerator.is_main_process:
            write_json(folder / SCORES, found)
        return new


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Waits until no other process is at it.

    Raises:
        ConfigError: one is for too long.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            held = lock(folder / LOCKS / name)
            break
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        held.close()


@contextmanager
def opened(config: Config, stop: Callable[[], bool]) -> Iterator[Loop]:
    """A loop over the trials of a teacher."""
    with pipeline.opened(config, stop) as run:
        yield Loop(run)


def train_all(loop: Loop, trials: Sequence[Trial], configs: Sequence[Config]) -> dict[str, Run]:
    """Trains every trial that nobody else is at work on, once all of them were found to be possible.

    Those that failed the last time come last, so that the others are not held up once more.

    Returns:
        What each trial runs with, by its key.
    """
    runs = {trial.key: loop.prepare(trial, config) for trial, config in zip(trials, configs, strict=True)}
    loop.begin()
    failed = from_main(loop.run.accelerator, lambda: {path.stem for path in (loop.folder / FAILURES).glob("*.txt")})
    for trial in sorted(trials, key=lambda trial: Path(trial.key).name in failed):
        loop.train(trial, runs[trial.key])
    return runs


def raise_failures(failures: Mapping[str, str]) -> None:
    """Raises ConfigError if trials failed; names them."""
    if failures:
        told = "; ".join(f"{key}: {why}" for key, why in failures.items())
        raise ConfigError(f"{len(failures)} trial(s) failed, the others are done: {told}")


def stage_of(trial: Trial) -> Stage:
    """A trial as a training."""
    return replace(STUDENT, name=trial.key)


def refuse_changed(trial_run: Run, stage: Stage) -> None:
    """Raises ConfigError if a trial of the name is there, or has begun, with other settings."""
    config, folder = trial_run.config, trial_run.config.folder
    there = read_json(folder / stage.name / RECORD).get("settings")
    if not there:
        there = Checkpoints(folder / "training" / stage.name, {}, {}, 1).last_settings()
    if there:
        there = {key: value for key, value in there.items() if key not in ("teacher.sha256", "teacher.files")}
        wanted = settings_of_stage(config, stage, trial_run.accelerator.num_processes, trial_run.files)
        refuse_other_settings(folder / stage.name, there, wanted, config.allow_change)


def warm(splits: Splits) -> None:
    """Decodes the training images, which are then kept: else the first of the trials would pay for all."""
    for dataset in filter(None, (splits.train, splits.unlabeled)):
        for index in range(len(dataset)):
            dataset.read(index)


def times_of(trial_run: Run, trial: Trial) -> dict[str, Any]:
    """Steps of a trial, the seconds that they took, and those that filling the teacher's cache takes; None: unknown."""
    config, times = trial_run.config, trial_run.config.folder / TIMES
    steps = config.student.max_train_steps
    cache: float | None = 0.0
    seconds = Stopwatch(times / f"{trial.key}.json").known.get(str(steps))
    if config.teacher.cache.enabled:
        folder = Path(config.teacher.cache.dir) if config.teacher.cache.dir else config.folder / CACHE
        each, images = AskingTimes(times / ASKING).per_image(folder), len(learned_from(trial_run.splits))
        cache = each and each * images / trial_run.accelerator.num_processes  # which share the images
    return {"steps": steps, "seconds": seconds, "cache_seconds": cache}
