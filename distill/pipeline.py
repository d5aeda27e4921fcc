"""The stages in order: teacher → baseline → student → scores → ONNX → report.

A stage whose result is there and was made with the same settings is skipped; with other settings the run is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator

from distill import models
from distill.checkpoint import Checkpoints, publish, remove_leftovers, sha256, size_of, write_json, write_text
from distill.config import Config, ConfigError, NetworkConfig, dump
from distill.data import Splits, check_once, open_splits, save_preprocessing
from distill.export import ExportError, refuse_several_sizes
from distill.files import exported, loses_too_much, refused
from distill.launch import from_main, lock, lost_are_named, on_all, on_main, start, stop_on_signal
from distill.losses.supervised import class_weights
from distill.models import Network
from distill.objective import build_objective
from distill.provenance import (
    RECORD,
    compare_folder,
    network_files,
    not_compared,
    refuse_other_settings,
    stage_settings,
    teacher_folder,
)
from distill.results import collect, finish
from distill.run import Run, Stopped
from distill.smp_files import FILES
from distill.teacher import Teacher, check_teacher
from distill.text import say
from distill.train import train

EXIT_REFUSED = 3  # all is done and reported, but a file that was asked for is not fit to be published
EXIT_STOPPED = 75  # asked to stop, and saved: the same command goes on
CHECKED = "checked.json"
FIRST_FILES = {".lock", ".config.yaml.tmp"}  # all there is of a run that was cut off before it had settings


def main(config: Config, action: Callable[[Config], Any] | None = None) -> int:
    """Runs everything (or another action); returns the exit code. Bad input becomes one line."""
    try:
        found = (action or distil)(config)
    except (ConfigError, ExportError, FloatingPointError, OSError) as error:
        # What a worker raised comes with its traceback; the last line is ours.
        text = str(error).strip()
        if "Traceback" in text:
            text = text.splitlines()[-1].split("Error: ")[-1]
        say(f"distill: error: {text}", sys.stderr)
        return 1
    except Stopped as stopped:
        say(f"distill: {stopped}", sys.stderr)
        return EXIT_STOPPED
    return EXIT_REFUSED if isinstance(found, dict) and refused(found) else 0


def distil(config: Config) -> dict[str, Any]:
    """Runs every stage and returns the results."""
    with opened(config) as run:
        config, accelerator = run.config, run.accelerator
        if config.export.enabled:  # not hours later
            on_main(accelerator, lambda: refuse_several_sizes(config.student.arch, run.splits.val))
        held = on_main(accelerator, lambda: take_folder(run))  # noqa: F841  stays open
        networks = {"teacher": load_teacher(run)}
        if config.baseline.enabled:
            networks["baseline"] = stage(run, "baseline")
        networks["student"] = stage(run, "student", Teacher(networks["teacher"], dtype=precision(accelerator)))
        if run.stop():
            raise Stopped("stopped before the report; the same command goes on from there")
        evaluation = run.evaluate(networks, "final scores")
        results = from_main(accelerator, lambda: collect(run, networks, evaluation))
        on_main(accelerator, lambda: write_json(config.folder / "results.json", results))
        if config.export.enabled:
            results |= export(run, networks, results)
        on_main(accelerator, lambda: finish(run, networks, evaluation, results))
        return results


def export(run: Run, networks: dict[str, Network], results: dict[str, Any]) -> dict[str, Any]:
    """The student's files; if 8 bits lose too much, it is tuned for them first, where the settings allow that."""
    teacher = Teacher(networks["teacher"], dtype=precision(run.accelerator))

    def tuned() -> dict[str, Network]:
        return networks | {"int8": stage(run, "int8", teacher, networks["student"])}

    def written(these: dict[str, Network]) -> dict[str, Any]:
        return from_main(run.accelerator, lambda: exported(run, these, results))

    tuning = run.config.export.int8 and run.config.export.int8_finetune_steps
    if tuning and from_main(run.accelerator, (run.config.folder / "int8" / RECORD).is_file):
        return written(tuned())
    found = written(networks)
    return written(tuned()) if tuning and loses_too_much(found) else found


@contextmanager
def opened(config: Config) -> Iterator[Run]:
    """What stages share: processes, and data and settings that were found to be right."""
    accelerator = start(config)
    try:
        with lost_are_named(config.timeout_seconds):
            splits = on_all(accelerator, lambda: open_splits(config.data))
            run = Run(config, accelerator, splits, stop_on_signal())
            record = config.folder / CHECKED
            run.checked = on_all(accelerator, lambda: check_once(splits, config.data, record, run.progress, run.say))
            run.config = with_class_weights(config, splits)
            try_build(run.config, splits.classes)
            more = f" ({len(splits.unlabelled)} more without labels)" if splits.unlabelled else ""
            run.say(
                f"{config.folder}: {len(splits.train)} training{more} and {len(splits.val)} validation images, "
                f"{len(splits.classes)} classes; {accelerator.num_processes} process(es) on {accelerator.device}, "
                f"{torch.get_num_threads()} thread(s), precision {accelerator.mixed_precision}"
            )
            yield run
    finally:
        accelerator.end_training()


def precision(accelerator: Accelerator) -> torch.dtype | None:
    """The half precision that networks run in, if any."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def with_class_weights(config: Config, splits: Splits) -> Config:
    """The settings with class weights as numbers where they are to be taken from the training masks.

    Raises:
        ConfigError: not one weight a class.
    """
    counts = None
    sections = {}
    for name in ("cross_entropy", "focal"):
        section = getattr(config, name)
        if isinstance(section.class_weights, list) and len(section.class_weights) != len(splits.classes):
            count = len(section.class_weights)
            raise ConfigError(
                f"{name}.class_weights: {count} numbers for {len(splits.classes)} classes; give one a class"
            )
        if section.weight and isinstance(section.class_weights, str):
            if counts is None:
                counts = count_classes(splits)
            pixels, around = counts
            weights = class_weights(pixels, around, section.class_weights)
            sections[name] = replace(section, class_weights=[round(w, 4) for w in weights.tolist()])
    return replace(config, **sections)


def count_classes(splits: Splits) -> torch.Tensor:
    """Labelled pixels of each class in the training masks, and of any class in the masks that show it: `[2, C]`."""
    counts = torch.zeros(2, len(splits.classes), dtype=torch.int64)
    for i in range(len(splits.train)):
        pixels = torch.from_numpy(np.bincount(splits.train.read(i)[1].ravel(), minlength=256))[: len(splits.classes)]
        counts += torch.stack([pixels, (pixels > 0) * pixels.sum()])
    return counts


def try_build(config: Config, classes: list[str]) -> None:
    """Builds networks and objectives without memory, for the errors: not hours later, when the teacher is trained."""
    with torch.device("meta"):
        teacher, student = (
            models.build(replace(n, encoder_weights=None), classes) for n in (config.teacher, config.student)
        )
        build_objective(config, student, teacher)
        if config.baseline.enabled or config.teacher.checkpoint is None:
            build_objective(config, student, None)


def take_folder(run: Run) -> IO[str]:
    """Locks the output folder, once it is sure that nothing in it belongs to another run."""
    config, folder = run.config, run.config.folder
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder; set another --name or --output_dir")
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if left - FIRST_FILES and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: holds something else than a run; set another --name or --output_dir")
    held = lock(folder)
    remove_leftovers(folder)
    if config.teacher.checkpoint and (teacher_folder(config) / "model.safetensors").is_file():
        compare_teacher(config)
    states = {path.name: Checkpoints(path, {}, {}, 1).last_settings() for path in (folder / "training").glob("*")}
    underway = {name: settings for name, settings in states.items() if settings}
    notes = compare_folder(config, run.accelerator.num_processes, run.files, underway)
    write_text(folder / "config.yaml", dump(config) + "".join(f"# {note}\n" for note in notes))
    if run.checked:
        write_json(folder / CHECKED, run.checked)
    return held


def load_teacher(run: Run) -> Network:
    """The teacher that the settings name, or the one trained here; scored before anything is learnt from it."""
    config, wanted = run.config, run.config.teacher
    if wanted.checkpoint is None:
        network, source = stage(run, "teacher"), str(config.folder / "teacher")
    else:
        source = from_main(run.accelerator, lambda: str(teacher_folder(config)))
        network = load(run, Path(source), wanted)
        on_main(run.accelerator, lambda: keep_teacher(run, network))
    scores = run.evaluate({"teacher": network}, "teacher").scores["teacher"]
    run.say(f"teacher  {source}: mIoU {100 * scores.mean_iou:.2f}")
    images = run.accelerator.num_processes * config.per_device_train_batch_size * config.gradient_accumulation_steps
    trial = wanted.checkpoint is None and images * wanted.max_train_steps < len(run.splits.train)
    try:
        check_teacher(scores, source)
    except ConfigError as error:
        if not (wanted.allow_near_chance or trial):
            raise
        run.say(f"warning: {error}")
    return network


def keep_teacher(run: Run, network: Network) -> None:
    """A copy of a teacher from elsewhere in the run's folder, beside that by which it is known again."""
    folder, settings = run.config.folder / "teacher", teacher_settings(run.config)
    if changed := compare_teacher(run.config):
        run.say(f"teacher: another than before, as allow_change says ({', '.join(changed)})")
        shutil.rmtree(folder)
    if not (folder / RECORD).is_file():
        write_stage(run, "teacher", network, settings, {"source": str(teacher_folder(run.config))})
    elif unknown := not_compared(json.loads((folder / RECORD).read_text())["settings"], settings):
        run.say(f"{folder / RECORD} does not say {', '.join(unknown)}: not compared")


def compare_teacher(config: Config) -> dict[str, list[Any]]:
    """The allowed differences between a teacher from elsewhere and the one that the run began with, if it has."""
    record = config.folder / "teacher" / RECORD
    there = json.loads(record.read_text())["settings"] if record.is_file() else None
    settings = teacher_settings(config)
    return refuse_other_settings(record.parent, there, settings, config.allow_change) if there is not None else {}


def teacher_settings(config: Config) -> dict[str, Any]:
    """By what a teacher from elsewhere is known again."""
    source = teacher_folder(config)
    return {"teacher.checkpoint": sha256(source / "model.safetensors"), "teacher.files": network_files(source)}


def stage(run: Run, name: str, teacher: Teacher | None = None, start: Network | None = None) -> Network:
    """The network of a stage: trained if it is not there, and read from its folder in any case.

    With a network to start from, this one is tuned for 8 bits.
    """
    if start:
        steps, rate = run.config.export.int8_finetune_steps, run.config.student.learning_rate / 10
        brief = replace(run.config.student, max_train_steps=steps, learning_rate=rate)
        run = replace(run, config=replace(run.config, student=brief))
    config, folder = run.config, run.config.folder / name
    settings = stage_settings(config, name, run.accelerator.num_processes, run.files)

    def is_there() -> bool:
        if start:
            settings["student.sha256"] = sha256(config.folder / "student" / "model.safetensors")
        if teacher:
            settings["teacher.sha256"] = sha256(config.folder / "teacher" / "model.safetensors")
            settings["teacher.files"] = network_files(teacher_folder(config))
        if not (folder / RECORD).is_file():
            return False
        record = json.loads((folder / RECORD).read_text())
        changes = refuse_other_settings(folder, record["settings"], settings, config.allow_change)
        there = network_files(folder) | {"model.safetensors": sha256(folder / "model.safetensors")}
        written = record.get("files", network_files(folder)) | {"model.safetensors": record["sha256"]}
        if other := [file for file in sorted(there.keys() | written.keys()) if there.get(file) != written.get(file)]:
            raise ConfigError(f"{folder / other[0]}: is not the file that was written; remove {folder}")
        if unknown := not_compared(record["settings"], settings):
            run.say(f"{folder / RECORD} does not say {', '.join(unknown)}: not compared")
        run.say(f"{name:8} is there already" + (f", made before the change of {', '.join(changes)}" if changes else ""))
        return True

    if not from_main(run.accelerator, is_there):
        network, state = train(run, name, settings, teacher, start)
        facts = {"steps": state.step, "clipped": state.clipped, "kept": state.best, "changes": state.changes}
        on_main(run.accelerator, lambda: write_stage(run, name, network, settings, facts))
    return load(run, folder, config.teacher if name == "teacher" else config.student)


def load(run: Run, folder: Path, wanted: NetworkConfig) -> Network:
    """The network of a folder that only the main process needs to see; the others get its files from there."""
    accelerator, about = run.accelerator, (run.splits.classes, wanted.mean, wanted.std)
    network = on_main(accelerator, lambda: models.load(folder, *about))
    if accelerator.num_processes > 1:
        paths = (folder / name for name in FILES)
        files = from_main(accelerator, lambda: {path.name: path.read_bytes() for path in paths if path.is_file()})
        if network is None:
            with tempfile.TemporaryDirectory() as copy:
                for name, content in files.items():
                    (Path(copy) / name).write_bytes(content)
                network = models.load(Path(copy), *about)
    assert network is not None
    return network.to(accelerator.device)


def write_stage(run: Run, name: str, network: Network, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """Publishes the folder of a stage, whole or not at all; the states of its training are then no longer needed."""

    def write(folder: Path) -> None:
        models.save(network, folder)
        mean, std = ((buffer / 255).flatten().tolist() for buffer in (network.mean, network.std))
        save_preprocessing(folder, mean, std, network.stride)
        hashes = {"sha256": sha256(folder / "model.safetensors"), "files": network_files(folder)}
        record = {**hashes, **facts, "settings": settings}
        write_json(folder / RECORD, record)

    publish(run.config.folder / name, write, size_of(network.state_dict()))
    states = run.config.folder / "training" / name
    shutil.rmtree(states, ignore_errors=True)
    with suppress(OSError):  # not empty yet
        os.removedirs(states.parent)
