"""Settings from a YAML file and from dotted flags over it; a typo or wrong type ends with one line that names it.

    python scripts/distill.py --config configs/camvid_cpu.yaml --kd.temperature 2 --data.root /data/camvid

Left out on purpose: config inheritance, interpolation, names of Python objects in YAML.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from distill.config import Config, ConfigError, flatten
from distill.config_help import help_text
from distill.config_terms import Schedule
from distill.text import printable, say

MAX_CONFIG_BYTES = 1_000_000
LARGEST = 1e15  # float32 ends at 3e38, and a learning rate is multiplied by weight decay, a temperature by itself
# What the names of settings end in that must be above 0, or at least 0.
POSITIVE = (
    *("eval_steps", "checkpointing_steps", "logging_steps", "max_train_steps", "accumulation_steps"),
    *("_size", "learning_rate", "temperature", "max_pixels", "_limit", "timeout_seconds", "_samples", "_train", "_val"),
    "calibration_images",
)
NOT_NEGATIVE = (
    *("weight", "weight_decay", "warmup_steps", "max_grad_norm", "ema_decay", "num_workers", "num_sample_images"),
    *("seed", "power", "ignore_index", "int8_max_lost", "finetune_steps", "max_void_share"),
)


class _Loader(yaml.SafeLoader):
    """Safe YAML with `5e-4` a number and `no` a word, and without aliases and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise ValueError(f"line {line}: YAML aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key must be a word")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key '{key.value}' stands twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PLAIN = {
    "tag:yaml.org,2002:float": r"[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9]\d*)",
    "tag:yaml.org,2002:bool": r"true|True|false|False",
    "tag:yaml.org,2002:null": r"null|~|",
}
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), None)


def _load_yaml(text: str) -> Any:
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"{len(text)} bytes; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def refuse_mixed(settings: Any) -> Any:
    """The settings, unless one is a section and another the dotted name of something in it: one would win silently.

    Raises:
        ValueError: names both.
    """
    for key, value in settings.items() if isinstance(settings, dict) else ():
        parts = str(key).split(".")
        for section in (".".join(parts[:i]) for i in range(1, len(parts))):
            if section in settings:
                raise ValueError(f"'{section}' and '{key}' both stand there, and one would win; keep one")
        refuse_mixed(value)
    return settings


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it is not there, too large or not YAML as read here; names the file and the line.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: is not a file of at most {MAX_CONFIG_BYTES} bytes")
        return _load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(args: Sequence[str] | None = None) -> Config:
    """Settings from the command line; on bad ones, prints one line and exits with code 2. Answers `--help`."""
    jsonargparse.set_loader("yaml", lambda text: refuse_mixed(_load_yaml(text)), exceptions=(ValueError,))
    parser = jsonargparse.ArgumentParser(prog="distill.py", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file; flags after it win.")
    parser.add_class_arguments(Config)
    args = list(sys.argv[1:] if args is None else args)
    files = [v for k, v in itertools.pairwise(args) if k in ("-c", "--config")]
    files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    try:
        if asked := next((arg for arg in args if arg in ("-h", "--help") or arg.startswith("--help=")), None):
            following = asked.partition("=")[2] or next(iter(args[args.index(asked) + 1 :]), "")
            print(help_text(None if following.startswith("-") else following or None))
            sys.exit(0)
        for file in map(Path, files):
            if file.exists() and (not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES):
                raise ConfigError(f"{file}: is not a file of at most {MAX_CONFIG_BYTES} bytes")
        settings = parser.parse_args(args)
        settings.pop("config")
        refuse_options_of_another(settings, parser.parse_args([f"--config={file}" for file in files]), files)
        config: Config = _instantiate(Config, settings)
        check(config)
    except (jsonargparse.ArgumentError, ConfigError) as error:
        where = f" (in {', '.join(files)} or the flags)" if files else ""
        say(f"distill: error: {_one_line(str(error))}{where}", sys.stderr)
        sys.exit(2)
    return config


def refuse_options_of_another(settings: Any, before: Any, files: Sequence[str]) -> None:
    """Refuses options that a file (or the defaults) gave a network, if flags then gave it another architecture.

    Args:
        settings: with the flags.
        before: without them.
        files: from which the settings without flags are.

    Raises:
        ConfigError: names the options and where they are from.
    """
    for name in ("teacher", "student"):
        now, then = settings[name], before[name]
        if now.options and now.options == then.options and now.arch.lower() != then.arch.lower():
            source = ", ".join(files) or "the defaults"
            raise ConfigError(
                f"{name}.options: {', '.join(now.options)} of {source} are for {then.arch}; "
                f"with --{name}.arch {now.arch}, give --{name}.options too, '{{}}' for none"
            )


def _instantiate(cls: type, settings: Any) -> Any:
    values = {}
    for f in fields(cls):
        value = getattr(settings, f.name)
        section = f.default_factory if isinstance(f.default_factory, type) and is_dataclass(f.default_factory) else None
        values[f.name] = _instantiate(section, value) if section else value
    return cls(**values)


def _one_line(message: str) -> str:
    """The parser's message on one line, with the nearest known setting if a name was wrong."""
    line = " ".join(message.split())
    wrong = re.search(r"(?:unrecognized arguments: --|not accept option '|Option ')([\w.]+)", line)
    if not wrong:
        return line
    section = re.search(r"Group '([\w.]+)'", line)
    name = f"{section[1]}.{wrong[1]}" if section else wrong[1]
    near = difflib.get_close_matches(name, list(flatten(Config())), 1)
    return line + (f" (did you mean '{near[0]}'?)" if near else " (--help lists every setting)")


def check(config: Config) -> None:
    """Raises ConfigError for values that no run can have; what only one term knows, that term checks."""
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: {value} is not finite")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, str) and number.encode(errors="replace").decode() != number:
                raise ConfigError(f"{key}: {printable(number)} is not UTF-8; rename it")
            if isinstance(number, float) and abs(number) > LARGEST:
                raise ConfigError(f"{key}: {number} is beyond what float32 computes with; at most {LARGEST:g}")
            if isinstance(number, int) and abs(number) >= 1 << 63:
                raise ConfigError(f"{key}: {value} has more than 63 bits; set a smaller number")
            if isinstance(number, (int, float)) and key.endswith(POSITIVE) and number <= 0:
                raise ConfigError(f"{key}: {value} must be above 0")
            if isinstance(number, (int, float)) and key.endswith(NOT_NEGATIVE) and number < 0:
                raise ConfigError(f"{key}: {value} must not be negative")
    for key in ("data.image_size", "data.crop_size", "data.synthetic_size"):
        if flat[key] is not None and len(flat[key]) != 2:
            raise ConfigError(f"{key}: {flat[key]} must be [height, width]")
    for key in ("teacher.mean", "teacher.std", "student.mean", "student.std"):
        if len(flat[key]) != 3:
            raise ConfigError(f"{key}: {flat[key]} must hold three numbers, for R, G and B")
    if not 0 < config.data.unlabelled_share < 1:
        raise ConfigError(f"data.unlabelled_share: {config.data.unlabelled_share} must be between 0 and 1")
    if config.push_to_hub and not config.hub_model_id:
        raise ConfigError("hub_model_id: push_to_hub needs the name of a repository there, such as user/name")
    if config.export.int8_max_lost >= 1:
        raise ConfigError(f"export.int8_max_lost: {config.export.int8_max_lost} must be below 1; half a point is 0.005")
    if config.optimizer.ema_decay >= 1:
        raise ConfigError(f"optimizer.ema_decay: {config.optimizer.ema_decay} must be below 1")
    for key, settings in config.schedules.items():
        if not key.endswith((".weight", ".temperature")) or key not in flat:
            raise ConfigError(f"schedules: {key!r} is not the weight or temperature of a term, such as kd.weight")
        try:
            schedule = Schedule(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schedules: {key}: {error}") from None
        if schedule.end is not None and abs(schedule.end) > LARGEST:
            raise ConfigError(f"schedules: {key}: end {schedule.end}: at most {LARGEST:g}")
        if key.endswith(".temperature") and (schedule.warmup_steps or (schedule.end is not None and schedule.end <= 0)):
            raise ConfigError(f"schedules: {key}: a temperature stays above 0; no warmup_steps, end above 0")
    if not any(flat[key] for key in flat if key.endswith(".weight")):
        raise ConfigError("cross_entropy.weight, kd.weight, …: all are 0, nothing would be learnt; set one above 0")
    if not re.fullmatch(r"[\w.-]+", config.name) or not config.name.strip("."):
        raise ConfigError(
            f"name: {config.name!r} becomes a folder; use letters, digits, '_' and '-', and '.' beside them"
        )
