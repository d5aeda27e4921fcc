"""`distill compare`: every trial of a list against a baseline, with intervals, seconds, and scores on other images.

distill compare configs/sweeps/compare.yaml --teacher.checkpoint checkpoints/default --equal_time
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.parse import parse, read_flags
from distill.config.schema import Config, DataConfig, flatten
from distill.errors import ConfigError, say
from distill.sweep.comparison import JSON, MARKDOWN, Planned, build, steps_in, with_cache
from distill.sweep.records import SCORES, VALIDATION, ScoredSet, read_json
from distill.sweep.tables import markdown
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

if TYPE_CHECKING:
    from distill.sweep.loop import Loop
    from distill.training.context import Run

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
PATIENCE_SECONDS = 60


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
        plan = read_plan(own, rest, shlex.join([*prog.split(), *arguments]))
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        sys.exit(2)
    parse(shared_flags(own.config, plan.trials[0].common, rest))  # answers --print_config
    return plan


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
        [settings_of_trial(trial, shared) for trial in trials],
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


def compare(plan: Plan, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains what is not there, writes the comparison after every trial, and returns its numbers.

    Raises:
        ConfigError: bad input, before anything is trained; or trials that failed, once the others are done.
        Stopped: `stop` said so; the same call goes on from there.
    """
    from distill.sweep.loop import opened, raise_failures, train_all

    with opened(plan.config, stop) as loop:
        loop.sets = open_sets(plan, loop)
        planned = planned_of(plan, loop)
        loop.on_result = lambda: write(loop, planned)
        runs = train_all(loop, plan.trials, plan.configs)
        for name in plan.equal_time:
            train_as_long(plan, loop, planned, name, runs)
        found = write(loop, planned) if loop.run.accelerator.is_main_process else {}
        loop.run.say(f"\n{markdown(found)}\n\n{plan.config.folder / JSON}" if found else "")
        raise_failures(loop.failures)
    return found


def open_sets(plan: Plan, loop: Loop) -> dict[str, ScoredSet]:
    """The further sets of images, once it is sure that the networks can be scored on them.

    Raises:
        ConfigError: they have other classes or channels, or an image cannot be read.
    """
    from distill.data import check_splits, open_splits

    run, found = loop.run, {}
    for name, (settings, config) in plan.score_on.items():
        try:
            splits = open_splits(config)
            if splits.classes != run.splits.classes or splits.val.kind != run.splits.val.kind:
                raise ConfigError(
                    "has other classes or channels than the validation images; leave data.classes as it is"
                )
            # Every label is looked at when the teacher is scored on them, which comes before any training.
            looked_at = replace(config, check="off" if config.check == "off" else "headers")
            check_splits(replace(splits, train=run.splits.train, unlabeled=None), looked_at, run.progress)
        except ConfigError as error:
            raise ConfigError(f"score_on: {name}: {error}") from error
        found[name] = ScoredSet(splits.val, settings)
    return found


def planned_of(plan: Plan, loop: Loop) -> Planned:
    """What is compared, in words of JSON."""
    accelerator = loop.run.accelerator
    packages = ("distill", "torch", "timm", "segmentation-models-pytorch", "accelerate", "numpy")
    return Planned(
        plan.baseline,
        {trial.name: trial.settings for trial in plan.trials},
        list(dict.fromkeys(trial.seed for trial in plan.trials)),
        list(loop.run.splits.classes),
        {VALIDATION: {}} | {name: settings for name, (settings, _) in plan.score_on.items()},
        about={
            "command": plan.command,
            "settings": flatten(loop.run.config),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
        },
    )


def train_as_long(plan: Plan, loop: Loop, planned: Planned, name: str, runs: dict[str, Run]) -> None:
    """Trains, seed by seed, a baseline for as long as a trial took with its cache."""
    from distill.training.distributed import from_main

    run, folder, longer = loop.run, loop.folder, f"{plan.baseline}, time of {name}"
    for seed in planned.seeds:
        mine, baseline = from_main(run.accelerator, partial(records_of, folder, [name, plan.baseline], seed))
        seconds = with_cache(mine)["seconds_with_cache"]
        if seconds is None or not baseline.get("seconds"):
            run.say(f"{longer}, seed {seed}: left out, since the time of {name} or {plan.baseline} is not known")
            continue
        steps = steps_in(seconds, baseline)
        run.say(
            f"{longer}, seed {seed}: {name} took {seconds:.1f} s with cache, {1000 * seconds / mine['steps']:.1f} ms a "
            f"step; {plan.baseline} {1000 * baseline['seconds'] / baseline['steps']:.1f} ms a step, so {steps} steps"
        )
        i = next(i for i, t in enumerate(plan.trials) if (t.name, t.seed) == (plan.baseline, seed))
        trial = replace(
            plan.trials[i], name=longer, settings=plan.trials[i].settings | {"student.max_train_steps": steps}
        )
        config = plan.configs[i]
        config = replace(config, student=replace(config.student, max_train_steps=steps))
        planned.equal_time[name] = longer
        runs[trial.key] = loop.prepare(trial, config)
        loop.train(trial, runs[trial.key])


def records_of(folder: Path, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The scores of trials with a seed."""
    return [read_json(folder / Trial(name, seed, {}, {}).key / SCORES) for name in names]


def write(loop: Loop, planned: Planned) -> dict[str, Any]:
    """Writes the comparison of what is finished; of several processes at work in a folder one at a time."""
    from distill.storage import write_json, write_text

    with alone(loop.folder):
        found = build(loop.folder, planned, loop.failures)
        write_json(loop.folder / JSON, found)
        write_text(loop.folder / MARKDOWN, markdown(found) + "\n")
    return found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process writes.

    Raises:
        ConfigError: one does for too long.
    """
    from distill.storage import lock

    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            held = lock(folder / "locks" / "comparison")
            break
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        held.close()


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


def printed(folder: Path) -> str:
    """The tables of a comparison, from its files alone.

    Raises:
        ConfigError: there is none.
    """
    found = read_json(folder / JSON)
    try:
        return markdown(found)
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder / JSON}: is not there, or no comparison; give the output folder of one") from None
