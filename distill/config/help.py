"""What `--help` prints: an overview, `--help SECTION` the settings of one section, `--help all` those of all."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass

import jsonargparse

from distill.config.schema import Config
from distill.errors import ConfigError
from distill.losses.sections import TermsConfig
from distill.losses.validation import Settings

# In the order in which a new user meets them; those of the objective's terms follow.
RUN, ALL = "run", "all"
FIRST = ("data", "teacher", "student", "baseline", "optimizer", "export", RUN)
MOST_USED = {
    "data": ("format", "root", "crop_size"),
    "teacher": ("checkpoint", "arch", "encoder_name", "max_train_steps"),
    "student": ("arch", "encoder_name", "max_train_steps"),
    "kd": ("weight", "temperature"),
    RUN: ("name", "per_device_train_batch_size"),
}
USAGE = """usage: {prog} [--config FILE] [--SECTION.SETTING VALUE ...] [--SETTING VALUE ...]

Train a teacher (or load one), distil a student, export it to ONNX and report on all of it.

  -c, --config FILE     YAML file; flags after it win.
  --print_config        Print all settings as they are after files and flags, and stop.
  --help SECTION        List the settings of a section; --help all lists those of all.
"""


def help_text(section: str | None, prog: str = "distill.py") -> str:
    """The overview, or the help of a section (or of one of its settings, `kd.weight`), or of `all`.

    Raises:
        ConfigError: there is no such section.
    """
    known, usage = sections(), USAGE.format(prog=prog)
    if section is None:
        first = "\n".join(f"  {name:22}{_title(known[name])}" for name in FIRST)
        terms = "\n".join(f"  {name:22}{_title(cls)}" for name, cls in known.items() if name not in FIRST)
        return f"{usage}\nMost used:\n\n{_settings(MOST_USED)}\nSections:\n{first}\n\nTerms of the loss:\n{terms}\n"
    if section == ALL:
        return "\n".join([usage, *(_settings({name: None}) for name in known)])
    name = section.partition(".")[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)} and {ALL}"
        raise ConfigError(f"--help {section}: no such section; {hint}")
    return _settings({name: None})


def sections() -> dict[str, type]:
    """Sections of the settings by name, in the order of the help; what stands in none is `run`."""
    classes: dict[str, type] = {}
    for f in fields(Config):
        if isinstance(f.default_factory, type) and is_dataclass(f.default_factory):
            classes[f.name] = f.default_factory
    terms = [f.name for f in fields(TermsConfig)]
    return {name: classes.get(name, Config) for name in (*FIRST, *(term for term in terms if term in classes))}


def _title(cls: type) -> str:
    title = str(cls.__doc__).splitlines()[0]
    return "What stands in no section: name, seed, batch size, precision, checkpoints, …" if cls is Config else title


def _settings(wanted: Mapping[str, Collection[str] | None]) -> str:
    """Help of some settings of some sections; None: of all."""
    jsonargparse.set_parsing_settings(subclasses_disabled=[Settings])  # a section has one type
    parser = jsonargparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    for name, settings in wanted.items():
        cls = sections()[name]
        other = {f.name for f in fields(cls) if settings is not None and f.name not in settings}
        if cls is Config:
            parser.add_class_arguments(cls, skip=other | set(sections()) - {RUN})
        else:
            parser.add_class_arguments(cls, name, skip=other)
    text = parser.format_help().lstrip("\n")
    return re.sub(r" +--[\w.]+ CONFIG +Path to a configuration file\.\n", "", text)  # a section from a file of its own
