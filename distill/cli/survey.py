"""`distill data`: says what a data set holds, as the settings read it, and draws a sheet of samples.

distill data --data.format folders --data.root photos --data.classes '[road, lane]' --sheet samples.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from distill.config.data import DataConfig
from distill.config.parse import read_flags
from distill.data import open_splits
from distill.data.statistics import channel_statistics
from distill.data.survey import SplitSurvey, class_table, contact_sheet, survey, twice
from distill.data.verify import by_class, check_labels
from distill.errors import ConfigError, say

LISTED = 10  # of a kind


def main(argv: Sequence[str] | None = None, prog: str = "distill data") -> int:
    """Runs the command line; returns the exit code: 1 if a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Say what a data set holds: counts, sizes, classes, images that stand twice, a sheet of samples.",
        epilog="Which data: --data.format, --data.root, … as for distill train, or --config FILE.",
        allow_abbrev=False,
    )
    parser.add_argument("--sheet", type=Path, help="picture to write with samples and their masks; none if not given")
    parser.add_argument("--samples", type=int, default=6, help="samples of each split on it (default: %(default)s)")
    args, flags = parser.parse_known_args(argv)
    try:
        return run(args, read_flags(flags).data)
    except (ConfigError, OSError) as error:
        say(f"{prog.split()[0]}: error: {error}", sys.stderr)
        return 1


def run(args: argparse.Namespace, config: DataConfig) -> int:
    """Looks, and says what there is."""
    splits = open_splits(replace(config, cache=False))  # each is read once, and there may be many
    found = survey(splits, lambda items, **options: tqdm(items, disable=None, **options))
    for note in splits.notes:
        say(note)
    for name, part in found.items():
        say(_counts(name, part))
    kind = "RGB" if config.in_channels is None and splits.train.channels == 3 else f"{splits.train.channels} channel(s)"
    say(f"images: {kind} of {splits.train.dtype}")
    bad = [line for part in found.values() for line in part.bad]
    if not bad and (splits.train.dtype != "uint8" or splits.train.channels != 3):
        statistics = channel_statistics(splits)
        for label in ("mean", "std", "low", "high"):
            say(f"  {label:5}" + " ".join(f"{value:.6g}" for value in getattr(statistics, label)))
    say("\n".join(class_table(found, splits.classes)))
    if splits.labeled and not bad:
        try:
            check_labels(by_class(found["train"].pixels, splits), splits, config)
        except ConfigError as error:
            say(f"distill train will stop: {error}")
    same, alike = twice(found)
    _listed(f"{len(same)} validation images are files that are learned from, too", [f"{b} = {a}" for a, b in same])
    _listed(
        f"{len(alike)} validation images look like one that is learned from",
        [f"{b} ~ {a} ({bits} of 256 bits differ)" for a, b, bits in alike],
    )
    if args.sheet:
        Image.fromarray(contact_sheet(splits, args.samples)).save(args.sheet)
        say(f"{args.sheet}: samples")
    _listed(f"{len(bad)} file(s) cannot be used", bad)
    return 1 if bad else 0


def _counts(name: str, part: SplitSurvey) -> str:
    sizes = [f"{count} of {w}×{h}" for (h, w), count in part.sizes.most_common(3)]
    more = len(part.sizes) - len(sizes)
    return f"{name}: {part.images} images: {', '.join(sizes)}" + (f", {more} more sizes" if more > 0 else "")


def _listed(title: str, lines: Sequence[str]) -> None:
    if lines:
        more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        say("\n  ".join([f"{title}:", *lines[:LISTED], *more]))
