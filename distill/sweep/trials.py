"""The list of students to train: settings by hand, every combination of a grid, or drawn at random, times seeds."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config.parse import parse, read_flags, read_yaml, refuse_mixed
from distill.config.schema import Config
from distill.errors import ConfigError, say

DESCRIPTION = "Train many students of one teacher and compare them."
FILE_HELP = """the file may hold:
  trials    name: {setting: value, ...}, one student each
  grid      setting: [values]; every combination
  random    samples: 20, seed: 0, settings: {setting: [values] or {min: 1e-4, max: 1e-2, log: true}}
  search    samples: 20, settings: as for random; proposed by what was learned, poor ones end early (needs Optuna)
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


def read_file(path: Path, more: Collection[str] = ()) -> dict[str, Any]:
    """What the file of a sweep holds.

    Args:
        path: the YAML file.
        more: what it may hold besides `SECTIONS`.

    Raises:
        ConfigError: it holds no trials, or something else; names the file.
    """
    text = read_yaml(path)
    if not isinstance(text, dict) or not text.keys() & {"trials", "grid", "random"}:
        raise ConfigError(f"{path}: holds {text!r:.80}; a sweep has trials, grid or random, and seeds")
    if strange := text.keys() - SECTIONS - set(more):
        allowed = ", ".join(sorted(SECTIONS | set(more)))
        raise ConfigError(f"{path}: {min(map(str, strange))} is none of {allowed}; a sweep has trials, grid or random")
    return text


def read_trials(
    path: Path, seeds: Sequence[int] = (), names: Sequence[str] = (), more: Collection[str] = ()
) -> list[Trial]:
    """The trials of a YAML file, seed by seed.

    Args:
        path: a mapping of `trials` (name → settings), `grid` (setting → list of values), `random` (`samples`, `seed`
            and `settings`: setting → list to choose from, or `{min:, max:, log: true}`), `seeds`, and `settings`
            that all trials share.
        seeds: instead of those of the file.
        names: only these.
        more: what the file may hold besides.

    Raises:
        ConfigError: names what the file has that is none of this.
    """
    text = read_file(path, more)
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
    trials = [Trial(name, seed, found[name], common) for seed in wanted for name in (names or found)]
    by_key: dict[str, Trial] = {}
    for trial in trials:
        if (other := by_key.setdefault(trial.key, trial)) is not trial:
            raise ConfigError(
                f"{path}: {other.name!r} and {trial.name!r} would share the folder {trial.key}; rename one"
            )
    return trials


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


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command line flags."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def command_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The flags that all who train a list of students have."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="YAML file of the trials")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="instead of the file's")
    parser.add_argument("-c", "--config", action="append", default=[], help="settings of every run; flags after it win")
    parser.add_argument("--only", nargs="+", default=[], metavar="TRIAL", help="these trials of the file")
    return parser


def shared_flags(files: Sequence[str], common: Mapping[str, Any], rest: Sequence[str]) -> list[str]:
    """What all trials share: files, then the list's settings, then flags, which win over both."""
    return [*(f"--config={file}" for file in files), *flags(common), *rest]


def settings_of_trial(trial: Trial, shared: Sequence[str]) -> Config:
    """The settings of a trial, which wins over what all share.

    Raises:
        ConfigError: one is wrong; names the trial.
    """
    try:
        return read_flags([*shared, *flags(trial.settings), f"--seed={trial.seed}"])
    except ConfigError as error:
        raise ConfigError(f"trial {trial.name!r}: {error}") from None


def command_line(arguments: Sequence[str], prog: str = "sweep.py") -> tuple[Config, list[Trial], list[Config]]:
    """The sweep that a command line asks for; bad input becomes one line."""
    own, rest = command_parser(prog, DESCRIPTION, FILE_HELP).parse_known_args(arguments)
    try:
        trials = read_trials(own.file, own.seeds, own.only)
        # Checked one by one before the first is trained.
        shared = shared_flags(own.config, trials[0].common, rest)
        configs = [settings_of_trial(trial, shared) for trial in trials]
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        sys.exit(2)
    return parse(shared), trials, configs
