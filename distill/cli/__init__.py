"""The command `distill`: its sub-commands, their exit codes, and what signals do to them.

    distill train --config configs/camvid_cpu.yaml --data.root /data/camvid --num_processes 4
    distill predict checkpoints/camvid_cpu photos/ --overlay 0.5

Whatever a process must set for itself alone (signals, threads, the end with its launcher) is set here, so that the
library can be called from any program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigError, ExportError, Stopped, say
from distill.training.launcher import EXIT_STOPPED, follow, last_line, launch, launched

EXIT_REFUSED = 3  # all is done and reported, but a file that was asked for is not fit to be published

if TYPE_CHECKING:
    from distill.config.schema import Config

Stop = Callable[[], bool]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"distill {version('distill')}")
        return 0
    if arguments[0] not in COMMANDS:
        say(f"distill: error: {arguments[0]!r} is not one of {', '.join(COMMANDS)}; see distill --help", sys.stderr)
        return 2
    action, _ = COMMANDS[arguments[0]]
    return action(arguments[1:], f"distill {arguments[0]}")


def usage() -> str:
    """The sub-commands with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: distill COMMAND …", "", *lines, "", "distill COMMAND --help says more."])


def train(argv: Sequence[str], prog: str = "distill train") -> int:
    """Trains, exports and reports."""
    follow()  # before anything takes its time
    from distill.config.parse import parse

    config = parse(argv, prog)
    return in_processes(config, ["train", *argv]) if alone(config) else run_here(config)


def alone(config: Config) -> bool:
    """Whether this is one process without a launcher, and the settings ask for several."""
    return (config.num_processes or 1) > 1 and not launched() and int(os.environ.get("WORLD_SIZE", 1)) == 1


def in_processes(config: Config, arguments: Sequence[str]) -> int:
    """The same command in as many processes as the settings say; returns the exit code."""
    try:
        return launch(arguments, config.num_processes or 1)
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        return 1


def run_here(config: Config) -> int:
    """A run in this process, which signals stop; returns the exit code."""
    from distill.pipeline import distil  # only now: it imports torch

    return exit_code(lambda stop: distil(config, stop))


def sweep(argv: Sequence[str], prog: str = "distill sweep") -> int:
    """Many students of one teacher."""
    follow()
    from distill import sweep

    if searched := sweep.search_line(argv, prog):
        if alone(searched[0]):
            return in_processes(searched[0], ["sweep", *argv])
        return exit_code(lambda stop: sweep.search(*searched, stop))
    config, trials, configs = sweep.command_line(argv, prog)
    if alone(config):
        return in_processes(config, ["sweep", *argv])
    return exit_code(lambda stop: sweep.sweep(config, trials, configs, stop))


def compare(argv: Sequence[str], prog: str = "distill compare") -> int:
    """Settings against a baseline, over seeds; or the table of a comparison that is there."""
    follow()
    from distill.sweep import compare, plan

    arguments = list(argv)
    try:
        if folder := plan.folder_to_print(arguments):
            say(compare.printed(folder))
            return 0
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        return 2
    wanted = plan.command_line(arguments, prog)
    if alone(wanted.config):
        return in_processes(wanted.config, ["compare", *argv])
    return exit_code(lambda stop: compare.compare(wanted, stop))


def cache(argv: Sequence[str], prog: str = "distill cache") -> int:
    """A teacher's answers on disk, and nothing else."""
    follow()
    from distill.config.parse import parse

    arguments, part = list(argv), None
    try:
        arguments, part = without_shard(arguments)
    except ConfigError as error:
        say(f"distill: error: {error}", sys.stderr)
        return 2
    config = parse(arguments, prog)
    if alone(config):
        return in_processes(config, ["cache", *argv])
    from distill.pipeline import fill_cache

    return exit_code(lambda stop: fill_cache(config, part, stop))


def without_shard(arguments: list[str]) -> tuple[list[str], tuple[int, int] | None]:
    """The arguments without `--shard K/N`, and K - 1 and N: one of the parts of the work, for one of many machines."""
    rest, part = [], None
    given = iter(arguments)
    for argument in given:
        if argument != "--shard" and not argument.startswith("--shard="):
            rest.append(argument)
            continue
        text = argument.partition("=")[2] or next(given, "")
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--shard: {text!r} is not of the form 3/16, the third of sixteen parts")
        part = int(number) - 1, int(count)
    return rest, part


def predict(argv: Sequence[str], prog: str = "distill predict") -> int:
    """Masks of images and videos."""
    from distill.deployment.predict import main

    return main(argv, prog)


def evaluate(argv: Sequence[str], prog: str = "distill evaluate") -> int:
    """Scores of a finished network."""
    from distill.evaluation.detailed import main

    return main(argv, prog)


def benchmark(argv: Sequence[str], prog: str = "distill benchmark") -> int:
    """Times and memory."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory, is talkative
    from distill.cli.measure import main

    try:
        return main(argv, prog)
    except (ConfigError, OSError) as error:
        say(f"distill: error: {error}", sys.stderr)
        return 1


def data(argv: Sequence[str], prog: str = "distill data") -> int:
    """What a data set holds."""
    from distill.cli.survey import main

    return main(argv, prog)


def results(argv: Sequence[str], prog: str = "distill results") -> int:
    """What finished runs reached."""
    from distill.cli.table import main

    return main(argv, prog)


COMMANDS: dict[str, tuple[Callable[[Sequence[str], str], int], str]] = {
    "data": (data, "look at a data set: counts, sizes, classes, images that stand twice, and a sheet of samples"),
    "train": (train, "train a teacher (or load one), distil a student, export it to ONNX and report on all of it"),
    "cache": (
        cache,
        "ask the teacher once for every image, on one machine or many, for students to be trained without it",
    ),
    "predict": (predict, "segment images and videos with an ONNX file, an SMP folder or a run"),
    "evaluate": (evaluate, "score an ONNX file, an SMP folder or a run on any data set"),
    "sweep": (sweep, "train many students of one teacher and compare them"),
    "compare": (compare, "say what each of several settings gains over labels alone, and how surely"),
    "results": (results, "show the scores of finished runs and comparisons as a table"),
    "benchmark": (benchmark, "measure the losses, the training step and the exported files"),
}


def exit_code(action: Callable[[Stop], Any]) -> int:
    """Runs an action that is told of signals; what it raises becomes one line and an exit code."""
    from distill.reporting.results import Results
    from distill.training.distributed import stop_on_signal

    try:
        found = action(stop_on_signal())
    except (ConfigError, ExportError, FloatingPointError, OSError) as error:
        # What a worker raised comes with its traceback; the last line is ours.
        text = str(error).strip() or repr(error)
        if "Traceback" in text:
            text = text.splitlines()[-1].split("Error: ")[-1]
        last_line(f"distill: error: {text}")
        return 1
    except Stopped as stopped:
        last_line(f"distill: {stopped}")
        return EXIT_STOPPED
    return EXIT_REFUSED if isinstance(found, Results) and found.files.errors else 0
