"""Many students of one teacher: settings by hand, every combination of a grid, or drawn at random; a table of scores.

A trial is a student's training with some settings changed. It is named after them and its seed, stands beside the
others in TensorBoard, and is skipped when it is there. A sweep that is started several times shares its trials out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from distill.config.parse import parse, read_yaml, refuse_mixed
from distill.config.schema import Config, dump
from distill.errors import ConfigError, cell, printable

FILE_HELP = """the file may hold:
  trials    name: {setting: value, ...}, one student each
  grid      setting: [values]; every combination
  random    samples: 20, seed: 0, settings: {setting: [values] or {min: 1e-4, max: 1e-2, log: true}}
  settings  setting: value, of all trials
  seeds     [0, 1, 2]; every trial once with each

Settings are those of distill.py, with dots (kd.weight). Any of its flags may follow; they win over --config."""
SECTIONS = {"settings", "trials", "grid", "random", "seeds"}


@dataclass(frozen=True)
class Trial:
    """One student.

    Attributes:
        name: what it is called in tables.
        seed: of weights, order, augmentation and dropout.
        settings: dotted names → values, of this trial alone.
        common: the same of all trials.
    """

    name: str
    seed: int
    settings: dict[str, Any]
    common: dict[str, Any]

    @property
    def key(self) -> str:
        """Its folder and its run in TensorBoard."""
        safe = re.sub(r"[^\w.=,+-]+", "_", self.name)
        return f"trials/{safe}-seed{self.seed}"


def read_trials(path: Path, seeds: Sequence[int] = (), names: Sequence[str] = ()) -> list[Trial]:
    """The trials of a YAML file, seed by seed.

    Args:
        path: a mapping of `trials` (name → settings), `grid` (setting → list of values), `random` (`samples`, `seed`
            and `settings`: setting → list to choose from, or `{min:, max:, log: true}`), `seeds`, and `settings`
            that all trials share.
        seeds: instead of those of the file.
        names: only these.

    Raises:
        ConfigError: names what the file has that is none of this.
    """
    text = read_yaml(path)
    if not isinstance(text, dict) or not text.keys() & {"trials", "grid", "random"} or text.keys() - SECTIONS:
        raise ConfigError(f"{path}: holds {text!r:.80}; a sweep has trials, grid or random, and seeds")
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, settings in (text.get("trials") or {}).items():
            found[name] = dict(settings or {})
        grid = text.get("grid") or {}
        for values in itertools.product(*grid.values()) if grid else ():
            settings = dict(zip(grid, values, strict=True))
            found[describe(settings)] = settings
        drawn = text.get("random") or {"samples": 0}
        generator = random.Random(drawn.get("seed", 0))
        for _ in range(drawn["samples"]):
            settings = {key: draw(generator, choice) for key, choice in drawn["settings"].items()}
            found[describe(settings)] = settings
        common = refuse_mixed(dict(text.get("settings") or {}))
        for settings in found.values():
            refuse_mixed(settings)
        wanted = [int(seed) for seed in seeds or text.get("seeds") or [0]]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read as a sweep ({type(error).__name__}: {error}); see --help") from None
    if not found:
        raise ConfigError(f"{path}: holds no trial")
    if unknown := [name for name in names if name not in found]:
        raise ConfigError(f"--only: {unknown[0]!r} is no trial of {path}; it has {', '.join(found)}")
    return [Trial(name, seed, found[name], common) for seed in wanted for name in (names or found)]


def draw(generator: random.Random, choice: Any) -> Any:
    """A value from a list, or a number of a range, evenly or evenly in its logarithm."""
    if isinstance(choice, list):
        return generator.choice(choice)
    low, high = choice["min"], choice["max"]
    if choice.get("log"):
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}")
    whole = isinstance(low, int) and isinstance(high, int)
    return generator.randint(low, high) if whole else generator.uniform(low, high)


def describe(settings: dict[str, Any]) -> str:
    """Settings as the name of a trial."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as command line flags."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def sweep(
    config: Config, trials: Sequence[Trial], configs: Sequence[Config], stop: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """Trains every trial that nobody else is at work on, and returns the scores of all that are there."""
    # Only now: it imports torch.
    from distill import pipeline
    from distill.data import check_splits, contents, open_splits
    from distill.errors import Stopped
    from distill.storage import lock, write_json, write_text
    from distill.training.distributed import from_main, on_main
    from distill.training.stage import STUDENT
    from distill.training.teacher_answers import decide

    def take(name: str) -> IO[str] | None:
        """The right to work on a trial, as long as the file is open; only the main process holds it."""
        return on_main(run.accelerator, lambda: lock(config.folder / "locks" / name))

    with pipeline.opened(config, stop) as run:
        objectives = []
        teacher = run.foreign.network if run.foreign else None
        for trial_config in configs:
            objectives.append(
                pipeline.dry_run(trial_config, run.splits.classes, teacher=teacher, image=run.splits.image)
            )
            if trial_config.data != config.data:
                check_splits(open_splits(trial_config.data), trial_config.data, run.progress)
        held = take("teacher")
        networks = {"teacher": pipeline.load_teacher(run)}
        if held:
            write_text(config.folder / "config.yaml", dump(run.config))
            held.close()
        for trial, trial_config, objective in zip(trials, configs, objectives, strict=True):
            record = config.folder / trial.key / "scores.json"
            same = trial_config.data == config.data
            splits = run.splits if same else open_splits(trial_config.data)
            trial_config = pipeline.with_class_weights(trial_config, splits)
            images = replace(run, config=trial_config).global_batch_size * trial_config.student.max_train_steps
            trial_config, _ = decide(trial_config, splits, objective, images)
            checked = run.checked if same else {"contents": contents(splits)}
            trial_run = replace(run, config=trial_config, splits=splits, compare=False, checked=checked)
            try:
                held = take(Path(trial.key).name)
            except ConfigError as error:
                run.say(f"{trial.key}: left to the other ({error})")
                continue
            # One that is already there is read, and refused if it was made with other settings.
            network = pipeline.run_stage(trial_run, replace(STUDENT, name=trial.key), networks)
            if not from_main(run.accelerator, record.is_file):
                scores = trial_run.evaluate({"student": network}).scores["student"]
                facts = {
                    "name": trial.name,
                    "seed": trial.seed,
                    "settings": trial.settings,
                    "mean_iou": scores.mean_iou,
                    "iou": dict(zip(run.splits.classes, scores.iou, strict=True)),
                }
                if run.accelerator.is_main_process:
                    write_json(record, facts)
            if held:
                held.close()
            if run.stop():
                raise Stopped("stopped between trials; rerun the same command to resume")
        found = from_main(run.accelerator, lambda: collect(config.folder))
        if run.accelerator.is_main_process:
            write_json(config.folder / "sweep.json", found)
            (config.folder / "sweep.md").write_text(table(found) + "\n", encoding="utf-8")
        run.say(f"\n{table(found)}\n\n{config.folder}/sweep.json, tensorboard --logdir {config.folder}/tensorboard")
    return found


def collect(folder: Path) -> list[dict[str, Any]]:
    """The scores of every trial that is there, in the order in which they were finished."""
    records = sorted(folder.glob("trials/*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text(encoding="utf-8")) for path in records]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Trials as Markdown, the best first: mean and standard deviation over seeds."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        by_name.setdefault(record["name"], []).append(record)
    lines = ["| trial | mIoU | seeds | settings |", "| --- | ---: | ---: | --- |"]
    mean = {name: statistics.mean(r["mean_iou"] for r in records) for name, records in by_name.items()}
    for name in sorted(by_name, key=lambda name: -mean[name]):
        scores = [100 * r["mean_iou"] for r in by_name[name]]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        settings = cell(describe(by_name[name][0]["settings"]))
        lines.append(f"| {cell(name)} | {100 * mean[name]:.2f}{spread} | {len(scores)} | {settings} |")
    return "\n".join(lines)


def command_line(arguments: Sequence[str], prog: str = "sweep.py") -> tuple[Config, list[Trial], list[Config]]:
    """The sweep that a command line asks for; bad input becomes one line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train many students of one teacher and compare them.",
        epilog=FILE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="YAML file of the trials")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="instead of the file's")
    parser.add_argument("-c", "--config", action="append", default=[], help="settings of every run; flags after it win")
    parser.add_argument("--only", nargs="+", default=[], metavar="TRIAL", help="these trials of the file")
    own, rest = parser.parse_known_args(arguments)
    try:
        trials = read_trials(own.file, own.seeds, own.only)
    except ConfigError as error:
        parser.exit(2, printable(f"distill: error: {error}") + "\n")
    # As everywhere, flags win over files; a trial wins over all. Checked one by one before the first is trained.
    shared = [*(f"--config={file}" for file in own.config), *flags(trials[0].common), *rest]
    configs = [parse([*shared, *flags(trial.settings), f"--seed={trial.seed}"]) for trial in trials]
    return parse(shared), trials, configs
