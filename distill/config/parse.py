"""Settings from a YAML file and from dotted flags over it; a typo or wrong type ends with one line that names it.

    distill train --config configs/camvid_cpu.yaml --kd.temperature 2 --data.root /data/camvid

Left out on purpose: config inheritance, interpolation, names of Python objects in YAML.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from distill.config.help import help_text
from distill.config.schema import Config, flatten
from distill.errors import ConfigError, say
from distill.losses.validation import Settings

MAX_CONFIG_BYTES = 1_000_000


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


def parse(args: Sequence[str] | None = None, prog: str = "distill.py") -> Config:
    """Settings from the command line; on bad ones, prints one line and exits with code 2. Answers `--help`."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        if asked := next((arg for arg in args if arg in ("-h", "--help") or arg.startswith("--help=")), None):
            following = asked.partition("=")[2] or next(iter(args[args.index(asked) + 1 :]), "")
            print(help_text(None if following.startswith("-") else following or None, prog))
            sys.exit(0)
        return read_flags(args)
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        sys.exit(2)


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Settings from a YAML file, with others over them.

    Args:
        path: the file; the defaults if not given.
        overrides: settings by dotted names (`{"kd.temperature": 2}`) or in sections (`{"kd": {"temperature": 2}}`).

    Raises:
        ConfigError: a file that cannot be read, an unknown setting or a value that it cannot have; names it.
    """
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"{path}: is not there, or no file; expected a YAML file of settings")
    files = [f"--config={path}"] if path is not None else []
    return read_flags([*files, *(f"--{key}={_as_flag(key, value)}" for key, value in dotted(overrides or {}).items())])


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in sections as one flat dict of dotted names, as the flags are called.

    Raises:
        ConfigError: a setting that is given twice.
    """
    sections = {name.rpartition(".")[0] for name in flatten(Config())}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found = dotted(value, f"{name}.") if name in sections and isinstance(value, Mapping) else {name: value}
        if twice := flat.keys() & found.keys():
            raise ConfigError(f"{min(twice)}: is given twice; keep one")
        flat |= found
    return flat


def _as_flag(key: str, value: Any) -> str:
    """A value as the text that a flag would have."""
    try:
        return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=_plain)
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"{key}: {value!r:.80} is no number, text, list or mapping of such") from None


def _plain(value: Any) -> Any:
    """What JSON has no word for: paths, and the numbers and arrays of NumPy and torch."""
    return str(value) if isinstance(value, Path) else value.tolist()


def read_flags(args: Sequence[str]) -> Config:
    """Settings from flags, and the files that `--config` among them names.

    Raises:
        ConfigError: names the wrong setting and the files.
    """
    # Under a name of our own: others in this process may read their YAML with jsonargparse, too.
    jsonargparse.set_loader("distill", lambda text: refuse_mixed(_load_yaml(text)), exceptions=(ValueError,))
    jsonargparse.set_parsing_settings(subclasses_disabled=[Settings])  # a section has one type: no class names in YAML
    parser = jsonargparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False, parser_mode="distill")
    parser.add_argument("-c", "--config", action="config", help="YAML file; flags after it win.")
    parser.add_class_arguments(Config)
    args = list(args)
    files = [v for k, v in itertools.pairwise(args) if k in ("-c", "--config")]
    files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    try:
        for file in map(Path, files):
            if file.exists() and (not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES):
                raise ConfigError(f"{file}: is not a file of at most {MAX_CONFIG_BYTES} bytes")
        settings = parser.parse_args(args)
        settings.pop("config")
        refuse_options_of_another(settings, parser.parse_args([f"--config={file}" for file in files]), files)
        config: Config = _instantiate(Config, settings)
    except (jsonargparse.ArgumentError, ConfigError) as error:
        where = f" (in {', '.join(files)} or the flags)" if files else ""
        raise ConfigError(f"{_one_line(str(error))}{where}") from error
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


def _instantiate(cls: type, settings: Any, section: str = "") -> Any:
    """The dataclass with its sections; what it refuses is named with its section, as a flag is."""
    values = {}
    for f in fields(cls):
        value, kind = getattr(settings, f.name), f.default_factory
        if isinstance(kind, type) and is_dataclass(kind):
            value = _instantiate(kind, value, f"{section}{f.name}.")
        values[f.name] = value
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{section}{error}") from None


# What jsonargparse says of a value of the wrong type, and what its types are called here.
_WRONG_TYPE = re.compile(
    r'Parser key "([\w.]+)": (?:Does not validate .* Subtypes: \[(.*)\] Errors: .*Given|Expected an? (.*)\. Got)'
    " value: ?(.*)"
)
_KINDS = (
    (r"\blist\[list", "a list of lists such as [[1, 2], [3, 4]]"),
    (r"\blist\[<?\w*(?:str|dict)|'list'", "a list such as [a, b]"),
    (r"(?<!list\[)list\[(?:int|float)", "a list such as [1, 2]"),
    (r"\bdict\b", "a mapping such as {{a: b}}"),
    (r"Literal\[(.*?)\]", "one of {}"),
    (r"'int'", "a whole number"),
    (r"'float'", "a number"),
    (r"'bool'", "true or false"),
    (r"'str'", "text"),
    (r"NoneType", "null"),
)


def _one_line(message: str) -> str:
    """The parser's message on one line, with the nearest known setting if a name was wrong."""
    line = " ".join(message.split())
    if typed := _WRONG_TYPE.fullmatch(line):
        name, several, one, value = typed.groups()
        kinds = [text.format(*found.groups()) for kind, text in _KINDS if (found := re.search(kind, several or one))]
        return f"{name}: {value or 'nothing'!r} is not {' or '.join(kinds)}" if kinds else line
    wrong = re.search(r"(?:unrecognized arguments: --|not accept option '|Option ')([\w.]+)", line)
    if not wrong:
        return line
    section = re.search(r"Group '([\w.]+)'", line)
    name = f"{section[1]}.{wrong[1]}" if section else wrong[1]
    near = difflib.get_close_matches(name, list(flatten(Config())), 1)
    return line + (f" (did you mean '{near[0]}'?)" if near else " (--help lists every setting)")
