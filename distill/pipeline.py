"""The stages in order: teacher → baseline → student → scores → ONNX → report.

A stage whose result is there and was made with the same settings is skipped; with other settings the run is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from distill import models
from distill.config.networks import OWN, NetworkConfig
from distill.config.schema import Config, dump
from distill.data import Splits, check_once, open_splits, save_preprocessing
from distill.errors import ConfigError, Stopped
from distill.models.foreign import refuse_missing, weights_of
from distill.models.network import Network
from distill.models.smp_files import FILES
from distill.reporting.artifacts import exported, refuse_several_sizes
from distill.reporting.outputs import finish
from distill.reporting.results import ExportResults, Results, collect
from distill.storage import lock, publish, sha256, size_of, write_json, write_text
from distill.training.causes import LOW, MIDDLING, likely_cause, renumbered
from distill.training.checkpoint import Checkpoints, remove_leftovers
from distill.training.context import Run
from distill.training.distributed import from_main, on_all, on_main, started
from distill.training.ensemble import Ensemble
from distill.training.foreign_teacher import open_foreign
from distill.training.from_data import check_heads, settled
from distill.training.objective import Objective, build_objective
from distill.training.provenance import (
    RECORD,
    compare_folder,
    network_files,
    not_compared,
    refuse_other_settings,
    settings_of_stage,
    teacher_folder,
)
from distill.training.rank_failures import name_failed_ranks
from distill.training.stage import BASELINE, INT8, STUDENT, TEACHER, Stage
from distill.training.state import amx_bf16
from distill.training.teacher import CachedTeacher, Teacher, check_teacher
from distill.training.teacher_answers import CACHE, ask, decide, with_cache
from distill.training.trainer import Trainer
from distill.training.unscored import check_unscored

CHECKED = "checked.json"
FIRST_FILES = {".lock", ".config.yaml.tmp"}  # all there is of a run that was cut off before it had settings


def distil(
    config: Config,
    stop: Callable[[], bool] = lambda: False,
    splits: Splits | None = None,
    own: Mapping[str, Any] | None = None,
) -> Results:
    """Runs every stage and returns the results.

    Args:
        config: the settings.
        stop: asked at every step whether to save the state and stop.
        splits: the data, if it is handed over.
        own: modules handed over, as `teacher` and `student`; the student gets the weights that the run began with.

    Raises:
        ConfigError: bad input of any kind.
        ExportError: the student's architecture takes one size of images, and they have several.
        Stopped: `stop` said so; the same call goes on from there.
    """
    with opened(config, stop, splits, own) as run:
        config, accelerator = run.config, run.accelerator
        if config.export.enabled:  # not hours later
            on_main(accelerator, lambda: refuse_several_sizes(config.student.arch, run.splits.val))
        held = on_main(accelerator, lambda: claim_output_dir(run))  # noqa: F841  stays open
        on_main(accelerator, lambda: fetch_encoder(run))
        if "student" in run.own:
            on_main(accelerator, lambda: begin_alike(run))
        networks = {"teacher": load_teacher(run)}
        if config.baseline.enabled:
            networks["baseline"] = run_stage(run, BASELINE)
            run.remembered["baseline"] = {}
        networks["student"] = run_stage(run, STUDENT, networks)
        if run.stop():
            raise Stopped("stopped before the report; rerun the same command to resume")
        evaluation = run.evaluate(networks, "final scores", each_image=True)
        results = from_main(accelerator, lambda: collect(run, networks, evaluation))
        on_main(accelerator, lambda: write_json(config.folder / "results.json", results.to_json()))
        if config.export.enabled:
            results.files = export(run, networks, results.student.mean_iou)
        on_main(accelerator, lambda: finish(run, networks, evaluation, results))
        return results


def fill_cache(config: Config, part: tuple[int, int] | None = None, stop: Callable[[], bool] = lambda: False) -> None:
    """Asks the teacher for every image, and trains nothing but the teacher, if there is none.

    Args:
        config: the settings.
        part: number and count of the parts into which the images are split, to do one of them: machines that know
            nothing of each other fill one folder so.
        stop: asked at every image whether to stop.

    Raises:
        ConfigError: a folder, a setting or an image is not as it should be.
        Stopped: `stop()` became true; what is done is kept.
    """
    cache, teacher = config.teacher.cache, config.teacher
    if cache.enabled is False:
        raise ConfigError("teacher.cache.enabled: is false, and then there is nothing to fill; leave it out")
    if part and not (teacher.source and cache.dir):
        missing = "teacher.cache.dir" if teacher.source else "teacher.checkpoint"
        raise ConfigError(f"{missing}: --shard needs a teacher that is there, and one folder for all; set both")
    with opened(with_cache(config, True), stop) as run:
        if part:  # the run's folder is nobody's: other machines are at work with the same settings
            network = named_teacher(run)[0]
        else:
            held = on_main(run.accelerator, lambda: claim_output_dir(run))  # noqa: F841  stays open
            network = load_teacher(run)
        ask(run, together(run, network) or network, part)


def export(run: Run, networks: dict[str, Network], mean_iou: float) -> ExportResults:
    """The student's files; if 8 bits lose too much, it is tuned for them first, where the settings allow that."""

    def tuned() -> dict[str, Network]:
        return networks | {"int8": run_stage(run, INT8, networks)}

    def written(these: dict[str, Network]) -> ExportResults:
        return from_main(run.accelerator, lambda: exported(run, these, mean_iou))

    tuning = run.config.export.int8 and run.config.export.int8_finetune_steps
    if tuning and from_main(run.accelerator, (run.config.folder / "int8" / RECORD).is_file):
        return written(tuned())
    found = written(networks)
    return written(tuned()) if tuning and found.int8_loses_too_much else found


@contextmanager
def opened(
    config: Config,
    stop: Callable[[], bool] = lambda: False,
    data: Splits | None = None,
    own: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """What stages share: processes, and data and settings that were found to be right."""
    with started(config) as accelerator, name_failed_ranks(config.timeout_seconds):
        splits = data or on_all(accelerator, lambda: open_splits(config.data))
        on_all(accelerator, lambda: check_heads(config, splits))
        run = Run(config, accelerator, splits, stop, own=own or {})
        record = config.folder / CHECKED
        run.checked = on_all(accelerator, lambda: check_once(splits, config.data, record, run.progress, run.say))
        if data:
            sizes = {"train": len(data.train), "val": len(data.val)}
            run.checked = {"contents": {f"data.{name}_files": f"{size} items" for name, size in sizes.items()}}
        run.config = on_all(accelerator, lambda: settled(config, splits))
        if not splits.val.labeled:
            run.say("no validation image has labels: agreement with the teacher is measured, not mIoU")
        if config.teacher.source:
            run.foreign = on_all(accelerator, lambda: open_foreign(run.config.teacher, splits))
            for line in run.foreign.told if run.foreign else ():
                run.say(line)
        for other in further(run):  # refused now, not when the baseline is trained
            if other.foreign is None:
                named_teacher(other)
        teacher = run.foreign.network if run.foreign else None
        objective = dry_run(run.config, splits.classes, run.own, teacher, splits.image)
        images = run.global_batch_size * config.student.max_train_steps
        run.config, online = on_all(accelerator, lambda: decide(run.config, splits, objective, images))
        more = f" ({len(splits.unlabeled)} more without labels)" if splits.unlabeled else ""
        run.say(
            f"{config.folder}: {len(splits.train)} training{more} and {len(splits.val)} validation images, "
            f"{len(splits.classes)} classes; {accelerator.num_processes} process(es) on {accelerator.device}, "
            f"{torch.get_num_threads()} thread(s), precision {accelerator.mixed_precision}"
        )
        if run.precision == torch.bfloat16 and accelerator.device.type == "cpu" and amx_bf16() is False:
            run.say("bf16 is slower than float32 on this processor, which has no AMX: --mixed_precision no is faster")
        if online:
            run.say(f"the teacher is asked at every step: {online}")
        yield run


def dry_run(
    config: Config,
    classes: list[str],
    own: Mapping[str, Any] | None = None,
    teacher: Network | None = None,
    image: models.ImageKind = models.RGB,
) -> Objective:
    """Builds networks and objectives without memory, for the errors: not hours later, when the teacher is trained.

    Args:
        config: the settings.
        classes: the data's.
        own: modules that were handed over.
        teacher: the teacher, if it was opened already.
        image: the images.

    Returns:
        The student's objective.
    """
    networks = {"teacher": teacher} if teacher else {}
    for name, wanted in (("teacher", config.teacher), ("student", config.student)):
        if name in networks:
            continue
        known = wanted if wanted.weights_file else replace(wanted, encoder_weights=None)  # not to be downloaded yet
        try:
            with torch.device("cpu" if wanted.arch == OWN else "meta"):
                networks[name] = models.build(known, classes, (own or {}).get(name), image)
            if isinstance(network := networks[name], models.OwnNetwork):
                network.try_out(config.data.crop_size)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    with torch.device("meta"):
        objective = build_objective(config, student := networks["student"], networks["teacher"])
        if config.baseline.enabled or config.teacher.source is None:
            build_objective(config, student, None)
    return objective


def claim_output_dir(run: Run) -> IO[str]:
    """Locks the output folder, once it is sure that nothing in it belongs to another run."""
    config, folder = run.config, run.config.folder
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is not a folder; set another --name or --output_dir")
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if left - FIRST_FILES and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: holds files that are not a run's; set another --name or --output_dir")
    held = lock(folder)
    remove_leftovers(folder)
    elsewhere = config.teacher.checkpoint and (teacher_folder(config) / "model.safetensors").is_file()
    if elsewhere or run.foreign or "teacher" in run.own:
        compare_teacher(run)
    states = {path.name: Checkpoints(path, {}, {}, 1).last_settings() for path in (folder / "training").glob("*")}
    underway = {name: settings for name, settings in states.items() if settings}
    notes = compare_folder(config, run.accelerator.num_processes, run.files, underway)
    write_text(folder / "config.yaml", dump(config) + "".join(f"# {note}\n" for note in notes))
    if run.checked:
        write_json(folder / CHECKED, run.checked)
    return held


def fetch_encoder(run: Run) -> None:
    """Has the student's pretrained encoder downloaded, or refused, before a teacher is trained for it."""
    student, there = run.config.student, (run.config.folder / STUDENT.name / RECORD).is_file()
    if student.encoder_weights and not student.weights_file and "student" not in run.own and not there:
        models.build(student, run.splits.classes, None, run.splits.image)


def begin_alike(run: Run) -> None:
    """Gives a student that was handed over the weights that the run began with, whatever was drawn for it this time."""
    folder, own, config = run.config.folder / "initial", run.own["student"], run.config.student
    network = models.build(config, run.splits.classes, own, run.splits.image)
    if not folder.is_dir():
        publish(folder, lambda temporary: models.save(network, temporary), size_of(network.state_dict()))
    many = run.splits.multilabel
    begun = models.load(folder, run.splits.classes, config.mean, config.std, own, run.splits.image, None, many)
    own.load_state_dict(begun.model.state_dict())


def load_teacher(run: Run) -> Network:
    """The teacher that the settings name, or the one trained here; scored before anything is learned from it."""
    config, wanted = run.config, run.config.teacher
    if own := run.own.get("teacher"):
        network, source = models.build(wanted, run.splits.classes, own, run.splits.image), "handed over"
        network.to(run.accelerator.device).eval()
        on_main(run.accelerator, lambda: keep_teacher(run, network))
    elif wanted.source is None:
        network, source = run_stage(run, TEACHER), str(config.folder / "teacher")
    else:
        network, source = named_teacher(run)
        on_main(run.accelerator, lambda: keep_teacher(run, network))
    run.remembered["teacher"] = {}
    scores = run.evaluate({"teacher": network}, "teacher").scores["teacher"]
    run.say(f"teacher  {source}" + (f": mIoU {100 * scores.mean_iou:.2f}" if scores.present else ""))
    images = run.global_batch_size * wanted.max_train_steps
    trial = wanted.source is None and not own and images < len(run.splits.train)
    foreign = bool(wanted.source or own) and scores.present > 1
    low = MIDDLING if run.foreign or own else LOW  # looking for a cause takes a while
    asked = foreign and scores.skill < low and run.splits.image == models.RGB
    cause = likely_cause(run, network, scores.skill) if asked else None
    if foreign and not asked:
        cause = renumbered(scores, network.classes, wanted.class_names or ())
    try:
        check_teacher(scores, source, cause)
        if not scores.present:
            check_unscored(run, network, source)
    except ConfigError as error:
        if not (wanted.allow_near_chance or trial):
            raise
        run.say(f"warning: {error}")
    else:
        if cause:
            run.say(f"warning: teacher ({source}): {cause}, and {scores.skill:.2f} as it is")
    return network


def named_teacher(run: Run) -> tuple[Network, str]:
    """The teacher that the settings name, and where it is from."""
    if run.foreign:
        return run.foreign.network.to(run.accelerator.device), run.foreign.source.name
    on_main(run.accelerator, lambda: refuse_missing(str(run.config.teacher.checkpoint)))
    source = from_main(run.accelerator, lambda: str(teacher_folder(run.config)))
    return load(run, Path(source), run.config.teacher), source


def keep_teacher(run: Run, network: Network) -> None:
    """A copy of a teacher from elsewhere in the run's folder, beside that by which it is known again."""
    folder, settings = run.config.folder / "teacher", teacher_settings(run)
    if changed := compare_teacher(run):
        run.say(f"teacher: another than before, as allow_change says ({', '.join(changed)})")
        shutil.rmtree(folder)
        shutil.rmtree(run.config.folder / CACHE, ignore_errors=True)  # its answers
    if not (folder / RECORD).is_file():
        source = run.foreign.source.name if run.foreign else str(teacher_folder(run.config))
        source = "handed over" if "teacher" in run.own else source
        kept = run.foreign.inner if run.foreign else network  # with the classes that it has itself
        publish_stage(run, TEACHER, kept, settings, {"source": source})
    elif unknown := not_compared(json.loads((folder / RECORD).read_text())["settings"], settings):
        run.say(f"{folder / RECORD} does not say {', '.join(unknown)}: not compared")


def compare_teacher(run: Run) -> dict[str, list[Any]]:
    """The allowed differences between a teacher from elsewhere and the one that the run began with, if it has."""
    record = run.config.folder / "teacher" / RECORD
    there = json.loads(record.read_text())["settings"] if record.is_file() else None
    settings = teacher_settings(run)
    return refuse_other_settings(record.parent, there, settings, run.config.allow_change) if there is not None else {}


def teacher_settings(run: Run) -> dict[str, Any]:
    """By what a teacher from elsewhere is known again."""
    if own := run.own.get("teacher"):
        return {"teacher.checkpoint": models.fingerprint(own)}
    if run.foreign and run.foreign.known_by:
        return {"teacher.checkpoint": run.foreign.sha256, "teacher.files": run.foreign.known_by}
    source = teacher_folder(run.config)
    return {"teacher.checkpoint": sha256(source / "model.safetensors"), "teacher.files": network_files(source)}


def run_stage(run: Run, stage: Stage, networks: Mapping[str, Network] | None = None) -> Network:
    """The network of a stage: trained if it is not there, and read from its folder in any case.

    Args:
        run: what the stages share.
        stage: what is trained.
        networks: those of the stages that it learns from and starts from, by name.
    """
    networks, config = networks or {}, stage.configured(run.config)
    run, folder = replace(run, config=config), config.folder / stage.name
    settings = settings_of_stage(config, stage, run.accelerator.num_processes, run.files)

    def is_there() -> bool:
        if stage.init:
            settings[f"{stage.init}.sha256"] = sha256(config.folder / stage.init / "model.safetensors")
        if stage.teacher:
            settings["teacher.sha256"] = sha256(weights_of(config.folder / stage.teacher))
            there = run.foreign.known_by if run.foreign else {}
            settings["teacher.files"] = there or network_files(teacher_folder(config))
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
        before = f", made before the change of {', '.join(changes)}" if changes else ""
        run.say(f"{stage.name:8} is already there{before}")
        forget_states(run, stage)  # a kill may have come before they were all gone
        return True

    if not from_main(run.accelerator, is_there):
        teacher = answering(run, networks[stage.teacher]) if stage.teacher else None
        init = networks[stage.init] if stage.init else None
        trainer = Trainer(run, stage, settings, teacher, init, networks.get("baseline"))
        network = trainer.train()
        facts = {"steps": trainer.step, "clipped": trainer.clipped, "kept": trainer.best, "changes": trainer.changes}
        on_main(run.accelerator, lambda: publish_stage(run, stage, network, settings, facts))
    return load(run, folder, stage.network(config))


def answering(run: Run, network: Network) -> Teacher | CachedTeacher:
    """The teacher as the settings want it: asked for every batch, or once for every image."""
    asked = together(run, network)
    if not run.config.teacher.cache.enabled:
        return Teacher(network, run.precision, asked)
    return CachedTeacher(network, ask(run, asked or network))


def together(run: Run, network: Network) -> Ensemble | None:
    """The teacher with all that is averaged with it, scored; None if it answers alone.

    Raises:
        ConfigError: a further teacher that is not there, or of other classes.
    """
    wanted = run.config.teacher
    if not wanted.is_ensemble:
        return None
    others = []
    for other in further(run):
        for line in other.foreign.told if other.foreign else ():
            run.say(line)
        others.append(named_teacher(other)[0])
    asked = Ensemble([network, *others], wanted.tta.scales, wanted.tta.flip, wanted.weights)
    scores = run.evaluate({"together": asked}, "teachers together").scores["together"]
    views, score = len(wanted.tta.scales) * (1 + wanted.tta.flip), 100 * scores.mean_iou
    run.say(f"teacher  {1 + len(others)} network(s), {views} view(s) of each image, averaged: mIoU {score:.2f}")
    return asked


def further(run: Run) -> Iterator[Run]:
    """For each further teacher, the run with it as the only one.

    Raises:
        ConfigError: it is not there, or of other classes.
    """
    wanted = run.config.teacher
    for path in wanted.more:
        config = replace(run.config, teacher=replace(wanted, checkpoint=path, python=None))
        foreign = on_all(run.accelerator, partial(open_foreign, config.teacher, run.splits))
        yield replace(run, config=config, foreign=foreign)


def load(run: Run, folder: Path, wanted: NetworkConfig) -> Network:
    """The network of a folder that only the main process needs to see; the others get its files from there."""
    own = run.own.get("student") if wanted is run.config.student else None
    accelerator, about = run.accelerator, (run.splits.classes, wanted.mean, wanted.std, own, run.splits.image)
    further = (wanted.channels, run.splits.multilabel)
    network = on_main(accelerator, lambda: models.load(folder, *about, *further))
    if accelerator.num_processes > 1:
        paths = (folder / name for name in FILES)
        files = from_main(accelerator, lambda: {path.name: path.read_bytes() for path in paths if path.is_file()})
        if network is None:
            with tempfile.TemporaryDirectory() as copy:
                for name, content in files.items():
                    (Path(copy) / name).write_bytes(content)
                network = models.load(Path(copy), *about, *further)
    assert network is not None
    return network.to(accelerator.device)


def publish_stage(
    run: Run, stage: Stage, network: Network, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Publishes the folder of a stage, whole or not at all; the states of its training are then no longer needed."""

    def write(folder: Path) -> None:
        models.save(network, folder)
        if not isinstance(network, models.ForeignNetwork):  # it is not read from here
            mean, std = ((buffer / 255).flatten().tolist() for buffer in (network.mean, network.std))
            save_preprocessing(folder, mean, std, network.stride)  # in units of 255, as SMP's are
        hashes = {"sha256": sha256(weights_of(folder)), "files": network_files(folder)}
        record = {**hashes, **facts, "settings": settings}
        write_json(folder / RECORD, record)

    copied = {} if isinstance(network, models.ForeignNetwork) else network.state_dict()
    publish(run.config.folder / stage.name, write, size_of(copied))
    forget_states(run, stage)


def forget_states(run: Run, stage: Stage) -> None:
    """Removes the states of a training whose network is published."""
    states = run.config.folder / "training" / stage.name
    shutil.rmtree(states, ignore_errors=True)
    with suppress(OSError):  # not empty yet
        os.removedirs(states.parent)
