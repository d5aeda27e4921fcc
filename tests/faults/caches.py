"""A teacher's answers on disk that are another's, damaged, or half written: one clear line or repaired, never mixed."""

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cache_runs import TEACHERS, Place, draw_pair, files, finished, launched, no_fault, student
from conftest import tiny_config
from harness import Figure
from mixing import edit
from states import damage

from distill.data import TeacherCache, open_splits, teacher_cache
from distill.data.pixel_positions import MapGeometry
from distill.data.synthetic import scene
from distill.errors import ConfigError

KINDS = ("flip", "truncate", "zeros", "delete")
SAYS_WHAT_TO_DO = re.compile(r"; (set|remove|make|it needs)|but the data has")


@dataclass
class Way:
    """Something that is done to a cache, or to a run that fills it or reads it.

    Attributes:
        change: gets the folder that holds `data`, `teacher`, `other`, `cache` and, later, `run`.
        words: what the run must say; a refusal says it in its only line of error, with a fix.
        refused: whether the run must end with such a line, and not with the right student.
        settings: of the run, in place of the usual ones.
        during: what befalls the process that runs; names one of `FAULTS`.
        again: whether what is refused goes on, when the same is started once more without the fault.
    """

    change: Callable[[Path], object]
    words: str = "asked once for 8 images"
    refused: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    during: str = ""
    again: bool = False


def one_more(folder: Path) -> None:
    """An image that the teacher was not asked about."""
    image, mask = open_splits(tiny_config(folder).data).train.read(0)
    draw_pair(folder / "data", "train", "train_9", 255 - image, mask)


def file_of(folder: Path) -> Path:
    """One of the data files."""
    return sorted((folder / "cache").glob("*.safetensors"))[1]


def damaged(kind: str, manifest: bool = False) -> Callable[[Path], None]:
    """Damages a data file, or the manifest."""

    def change(folder: Path) -> None:
        path = folder / "cache" / teacher_cache.MANIFEST if manifest else file_of(folder)
        before = path.read_bytes()
        while path.exists() and path.read_bytes() == before:
            damage(path, kind, random.Random(3))

    return change


def another_version(folder: Path) -> None:
    """A cache as a later version might write it: its files are known by another key."""
    cache = folder / "cache"
    path = cache / teacher_cache.MANIFEST
    made_with = json.loads(path.read_text())["made_with"] | {"version": teacher_cache.VERSION + 1}
    path.write_text(json.dumps({"made_with": made_with}))
    for file in cache.glob("*.safetensors"):
        file.write_bytes(file.read_bytes().replace(b'"key": "', b'"key": "0')[:-1])


def emptied(folder: Path) -> None:
    """No cache yet."""
    shutil.rmtree(folder / "cache")


def halved(folder: Path) -> None:
    """A cache that lacks some."""
    file_of(folder).unlink()


def garbage(folder: Path) -> None:
    (folder / "cache" / teacher_cache.MANIFEST).write_bytes(bytes(range(256)))


WAYS: dict[str, Way] = {
    "nothing": Way(no_fault),
    "another teacher": Way(
        no_fault,
        "holds the answers of another teacher (teacher ",
        refused=True,
        settings={"teacher.checkpoint": "other"},
    ),
    "another precision": Way(no_fault, "(precision ", refused=True, settings={"mixed_precision": "bf16"}),
    "kept otherwise": Way(no_fault, '(dtype "int8" there', refused=True, settings={"teacher.cache.dtype": "float16"}),
    "another class list": Way(
        no_fault,
        "holds the answers of another teacher (groups",
        refused=True,
        settings={"data.classes": [*scene.CLASSES[::-1]]},
    ),
    "another format": Way(another_version, "was written in another format (version ", refused=True),
    "another pixel of an image": Way(
        lambda f: edit(f / "data/train/images/train_1.png"), "is asked once for each of 1 images"
    ),
    "an image more": Way(one_more, "is asked once for each of 1 images"),
    **{f"a file, {kind}": Way(damaged(kind), "is damaged; what it held is asked of") for kind in KINDS[:3]},
    "a file, delete": Way(damaged("delete"), "is asked once for each of 2 images"),
    "the manifest, flip": Way(damaged("flip", manifest=True), "manifest.json: was damaged, and is written anew"),
    "the manifest, zeros": Way(damaged("zeros", manifest=True), "manifest.json: was damaged, and is written anew"),
    "the manifest, garbage": Way(garbage, "manifest.json: was damaged, and is written anew"),
    "the manifest, delete": Way(damaged("delete", manifest=True), "manifest.json: was damaged, and is written anew"),
    "the disk is full": Way(
        emptied, "could not be written (No space left on device)", refused=True, during="disk_full", again=True
    ),
    "read-only": Way(no_fault, during="read_only"),
    "read-only, and the manifest damaged": Way(garbage, during="read_only"),
    "read-only, and one is missing": Way(
        halved, "could not be written (Permission denied); it needs", refused=True, during="read_only", again=True
    ),
    "read-only, and one is damaged": Way(
        damaged("flip"),
        "is damaged and could not be removed (Permission denied)",
        refused=True,
        during="read_only",
        again=True,
    ),
    "kill -9 while filling": Way(emptied, "", refused=True, during="killed_filling", again=True),
    "kill -9 while training": Way(no_fault, "", refused=True, during="killed_training", again=True),
}


def wrong(place: Place, name: str) -> str:
    """Tries one of `WAYS`; what is wrong with how it ended."""
    way = WAYS[name]
    data_changed = name in ("another pixel of an image", "an image more")
    whole = place.student(name, way.change) if data_changed else place.known[""]
    folder = place.fresh()
    known = files(folder / "cache")  # as whole as it can be
    way.change(folder)
    before = files(folder / "cache")
    code, said = finished(folder, way.during or "no_fault", **way.settings)
    if "Traceback" in said or way.words not in said:
        return f"code {code}, {said[-600:]!r}"
    if way.refused:
        if student(folder):
            return "went on with it"
        lines = [line for line in said.splitlines() if "error: " in line]
        clear = code == 1 and len(lines) == 1 and SAYS_WHAT_TO_DO.search(lines[0]) and way.words in lines[0]
        if not clear and not way.during.startswith("killed"):
            return f"code {code}, {said[-600:]!r}"
        if before.items() - files(folder / "cache").items():
            return "refused, and something of the cache is lost"
        if not way.again:
            return ""
        code, said = finished(folder)
    if code != 0 or student(folder) != whole:
        return f"code {code}, another student: {said[-600:]!r}"
    left = files(folder / "cache")
    if way.during == "read_only" and not way.again:
        return "" if left == before else "a folder that is only read has changed"
    lost = known.items() - left.items()
    return f"of the cache is lost: {', '.join(name for name, _ in lost)}" if lost or ".tmp" in " ".join(left) else ""


def two_at_once(place: Place) -> str:
    """Two runs fill one folder at the same time; what is wrong with how they ended."""
    folder = place.fresh()
    known = files(folder / "cache")
    emptied(folder)
    launches = [launched(folder, run=name) for name in ("run", "beside")]
    ends = [(launch.wait()[0], launch.output()) for launch in launches]
    if any(code for code, _ in ends):
        return f"ended with {ends}"
    if {student(folder, name) for name in ("run", "beside")} != {place.known[""]}:
        return "another student"
    return "" if files(folder / "cache") == known else "another cache"


def two_teachers_at_once(place: Place) -> str:
    """Two runs with two teachers begin with one folder at the same time; what is wrong with how they ended."""
    folder = place.fresh()
    emptied(folder)
    launches = {name: launched(folder, run=f"of-{name}", **{"teacher.checkpoint": name}) for name in TEACHERS}
    ends = {name: (launch.wait()[0], launch.output()) for name, launch in launches.items()}
    if sorted(code for code, _ in ends.values()) != [0, 1]:
        return f"ended with {ends}"
    (refused,) = (said for code, said in ends.values() if code)
    if "holds the answers of another teacher" not in refused or "Traceback" in refused:
        return refused[-600:]
    keys = {file.read_bytes().partition(b'"key": "')[2][:32] for file in (folder / "cache").glob("*.safetensors")}
    return "" if len(keys) == 1 else "answers of both in one folder"


TOGETHER = {"two runs at once": two_at_once, "two teachers at once": two_teachers_at_once}
NAMES = [*WAYS, *TOGETHER]


def caches(names: Sequence[str], folder: Path) -> Figure:
    """Does all that to a cache, in each way."""
    folder.mkdir(parents=True, exist_ok=True)
    place, failures = Place(folder), []
    for name in names:
        found = TOGETHER[name](place) if name in TOGETHER else wrong(place, name)
        failures += [f"{name}: {found}"] if found else []
    return Figure(
        "caches of a teacher that are another's, damaged, full, read-only, shared or killed at: refused or repaired",
        f"{len(names)} / {len(names)}",
        f"{len(names) - len(failures)} / {len(names)}",
        not failures,
        failures,
        {"ways": list(names)},
    )


def damages(count: int, folder: Path, seed: int = 0) -> Figure:
    """Damages each file of a cache in each way, in turn, at random places: what is read must be what was written."""
    rng, values = random.Random(seed), np.random.default_rng(seed)
    for number in range(3):
        cache = TeacherCache(folder / "cache", {"teacher": "a", "mean": [0.5, 0.25]}, 5).open()
        cache.begin()
        maps = {f"{number} {i}": values.integers(0, 256, (6, 8, 5), np.uint8) for i in range(4)}
        geometry = MapGeometry((6, 8), (24, 32), False, 4)
        cache.write({name: (stored, geometry) for name, stored in maps.items()})
    whole = {name: (entry.read().tobytes(), entry.geometry) for name, entry in cache.open().entries.items()}
    paths, failures, taken = sorted((folder / "cache").iterdir()), [], 0
    for trial in range(count):
        path, kind = paths[trial % len(paths)], KINDS[trial // len(paths) % len(KINDS)]
        content = path.read_bytes()
        while path.exists() and path.read_bytes() == content:
            damage(path, kind, rng)
        try:
            there = TeacherCache(folder / "cache", {"teacher": "a", "mean": [0.5, 0.25]}, 5).open().entries
            read = {name: (entry.read().tobytes(), entry.geometry) for name, entry in there.items()}
            if read.items() - whole.items():
                failures.append(f"{path.name}, {kind}: accepted")
            taken += len(read)
        except ConfigError as error:
            failures.append(f"{path.name}, {kind}: {error}")
        path.write_bytes(content)
    return Figure(
        "files of a teacher's cache damaged (bit flip, truncation, zeros, deletion) and taken all the same",
        f"0 / {count}",
        f"{len(failures)} / {count}",
        not failures,
        failures,
        {"files": [path.name for path in paths], "maps_read": taken},
    )
