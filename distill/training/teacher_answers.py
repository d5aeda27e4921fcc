"""Asking a teacher once for every image: whether that can be, by how many processes, and into which folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from distill.batch import Batch, Outputs
from distill.config.schema import Config
from distill.data import CachedTargets, Dataset, Splits, TeacherCache, known_by, missing_groups, pixel_hash
from distill.data.loader import collate
from distill.data.pixel_positions import MapGeometry
from distill.data.teacher_cache import MANIFEST
from distill.errors import ConfigError, Stopped
from distill.losses.pixel import divergence, soften
from distill.models.asked import Asked
from distill.storage import writing
from distill.training.context import Run
from distill.training.distributed import from_main, on_all
from distill.training.objective import Objective
from distill.training.teacher import Teacher
from distill.training.times import AskingTimes

CACHE = "teacher_cache"  # in the folder of a run
ASKING = "asking"  # in the folder of a run's times
NOTICEABLE = 0.01  # nats of divergence that keeping the teacher's answers may cost without a word
TIMED = 16  # images that are asked about once more, where nobody knows how long that took
LOOKED_AT = 16  # items of a data set of somebody's own that are read twice, to see whether it augments


def decide(config: Config, splits: Splits, objective: Objective, images: int) -> tuple[Config, str]:
    """The settings with `teacher.cache.enabled` decided, and why.

    Args:
        config: the settings.
        splits: the data.
        objective: the student's.
        images: how many the student will see in all its steps.

    Raises:
        ConfigError: it is asked for where it cannot be.
    """
    wanted, learned, features = config.teacher.cache.enabled, learned_from(splits), objective.features
    hindrance = ""
    if features and config.teacher.is_ensemble:
        what = "teacher.more" if config.teacher.more else "teacher.tta"
        raise ConfigError(
            f"{what}: a loss needs feature maps ({', '.join(features)}), and averages have none; drop one"
        )
    if features:
        hindrance = f"a loss needs its feature maps ({', '.join(features)}), which no cache holds"
    elif wanted is not False and varies(learned):
        hindrance = "the data set gives other pixels each time an item is read"
    elif not objective.needs_teacher:
        return with_cache(config, False), ""
    if wanted and hindrance:
        raise ConfigError(f"teacher.cache.enabled: {hindrance}; set it to false, or leave it out")
    if wanted is None and not hindrance and images < len(learned):
        hindrance = f"{images} images are asked for, fewer than there are"
    use = not hindrance if wanted is None else wanted
    return with_cache(config, use), hindrance or ("" if use else "teacher.cache.enabled is false")


def with_cache(config: Config, enabled: bool) -> Config:
    """The settings with the cache on or off."""
    return replace(config, teacher=replace(config.teacher, cache=replace(config.teacher.cache, enabled=enabled)))


def learned_from(splits: Splits) -> Dataset:
    """All images that the student sees: with labels, then without."""
    return splits.train + splits.unlabeled if splits.unlabeled else splits.train


def varies(dataset: Dataset) -> bool:
    """Whether a data set handed over augments by itself: some of its items differ when read again."""
    if not dataset.drawn:
        return False
    for index in np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(int).tolist():
        if pixel_hash(dataset.read(index)[0]) != pixel_hash(dataset.drawn(index)[0]):
            return True
    return False


def ask(run: Run, network: Asked, part: tuple[int, int] | None = None) -> CachedTargets:
    """The teacher's answers for all images that are learned from; asks for those that are not on disk.

    Args:
        run: what stages share.
        network: the teacher.
        part: number and count of the parts into which the work is split, to do one of them; all of it if not given.

    Raises:
        ConfigError: the folder holds another teacher's, they would be larger than allowed, or an image cannot be read.
        OSError: no space, or a folder that cannot be written.
        FloatingPointError: the teacher's logits are not finite; names the image.
        Stopped: the run was asked to stop; what is done is kept.
    """
    config, accelerator, wanted = run.config, run.accelerator, run.config.teacher.cache
    dataset = learned_from(run.splits)
    names = from_main(accelerator, lambda: known_by(dataset, config.data.image_size))
    folder = Path(wanted.dir) if wanted.dir else config.folder / CACHE
    made_with = from_main(accelerator, network.identity) | {"precision": accelerator.mixed_precision}
    cache = TeacherCache(folder, made_with, len(run.splits.classes), wanted.dtype, network.multilabel)
    on_all(accelerator, cache.open)
    for path in cache.damaged:
        run.say(f"{path}: is damaged; what it held is asked of the teacher again")
    if cache.rewritten:
        run.say(f"{folder / MANIFEST}: was damaged, and is written anew: the answers beside it are this teacher's")
    teacher = Teacher(network, run.precision)
    # Machines without a common disk may lack different ones, but must take part in the same exchanges.
    lacking = torch.tensor([any(missing_groups(names, cache.entries))], device=accelerator.device)
    if accelerator.gather(lacking).any():
        announce(run, cache, teacher, dataset, names)
        # Each group by one process; then, where machines have no common disk, by one of each machine what it lacks.
        rank, world = accelerator.process_index, accelerator.num_processes
        near, beside = accelerator.local_process_index, local_world(world)
        number, count = part or (0, 1)
        for share, of in ((rank, world), (near, beside)):
            groups = [g for n, g in missing_groups(names, cache.entries) if n % (of * count) == share * count + number]
            stopped = on_all(accelerator, partial(fill, run, cache, teacher, dataset, names, groups))
            if any(accelerator.gather(torch.tensor([stopped], device=accelerator.device)).tolist()):
                raise Stopped("stopped while the teacher was asked; rerun the same command to resume")
            on_all(accelerator, partial(cache.open, verify=False))
    if run.times:
        on_all(accelerator, partial(time_asking, run, AskingTimes(run.times / ASKING), cache, teacher, dataset))
    size = sum(np.prod(entry.shape) for entry in cache.entries.values()) / 1e6
    run.say(f"teacher  asked once for {len(set(names) & cache.entries.keys())} images: {size:.1f} MB in {folder}")
    return CachedTargets(cache, names)


def announce(run: Run, cache: TeacherCache, teacher: Teacher, dataset: Dataset, names: Sequence[str]) -> None:
    """Says how large the cache will be, before the teacher is asked for all of it.

    Raises:
        ConfigError: larger than allowed.
        OSError: larger than the space there is.
    """
    wanted = run.config.teacher.cache

    def measure() -> tuple[int, int]:
        indices = [index for _, group in missing_groups(names, cache.entries) for index in group]
        if not indices:  # it is another machine that lacks some
            return 0, 0
        first = indices[0]
        stored, _, lost = encoded(cache, teacher, dataset, first, run.config.kd.temperature)
        cells = np.prod(stored.shape[:2])
        if lost > NOTICEABLE:
            run.say(
                f"warning: {wanted.dtype} keeps the teacher's distribution over {cache.codec.classes} classes at "
                f"temperature {run.config.kd.temperature:g} only to a KL divergence of {lost:.2g}; set "
                f"teacher.cache.dtype float16 or a lower temperature"
            )
        height, width = dataset.size_of(first)
        pixels = sum(int(np.prod(dataset.size_of(index))) for index in indices)
        missing = int(pixels * cells / (height * width)) * cache.codec.width
        there = sum(int(np.prod(entry.shape)) for entry in cache.entries.values())
        if (there + missing) / 1e9 > wanted.max_gb:
            raise ConfigError(
                f"teacher.cache.max_gb: the answers for {len(indices)} images would make {(there + missing) / 1e9:.3g} "
                f"GB, more than {wanted.max_gb:g}; set it higher, or teacher.cache.enabled false"
            )
        with writing(cache.folder, missing):
            return len(indices), missing

    count, size = from_main(run.accelerator, measure)
    on_all(run.accelerator, cache.begin if run.accelerator.is_local_main_process else lambda: None)
    run.say(f"teacher  is asked once for each of {count} images: about {size / 1e6:.1f} MB in {cache.folder}")


def time_asking(run: Run, times: AskingTimes, cache: TeacherCache, teacher: Teacher, dataset: Dataset) -> None:
    """Asks about a few images once more, if all was answered before anybody looked at the clock."""
    if run.accelerator.is_main_process and times.per_image(cache.folder) is None:
        encoded(cache, teacher, dataset, 0)  # the first of all takes longer
        few = np.linspace(0, len(dataset) - 1, min(TIMED, len(dataset))).astype(int).tolist()
        began = time.perf_counter()
        for index in few:
            encoded(cache, teacher, dataset, index)
        times.add(cache.folder, len(few), time.perf_counter() - began)


def fill(
    run: Run, cache: TeacherCache, teacher: Teacher, dataset: Dataset, names: Sequence[str], groups: list[list[int]]
) -> bool:
    """Asks for the images of some groups, and writes each group; returns whether it was told to stop before the end."""
    bar = run.progress(total=sum(map(len, groups)), desc="asking the teacher", leave=False)
    times = AskingTimes(run.times / ASKING) if run.times else None
    for group in groups:
        maps, began = {}, time.perf_counter()
        for index in group:
            if run.stop():
                return True
            maps[names[index]] = encoded(cache, teacher, dataset, index)[:2]
            bar.update()
        cache.write(maps)
        if times:
            times.add(cache.folder, len(maps), time.perf_counter() - began)
    bar.close()
    return False


def encoded(
    cache: TeacherCache, teacher: Teacher, dataset: Dataset, index: int, temperature: float = 0
) -> tuple[np.ndarray, MapGeometry, float]:
    """The bytes of the map of one image, how its cells lie, and the divergence that keeping it costs.

    One image at a time, so that the bits do not depend on which images come together.

    Args:
        cache: what keeps it.
        teacher: who is asked.
        dataset: the images.
        index: of the image.
        temperature: at which KL(teacher‖kept) is measured, in nats, mean over the cells; 0 does not measure it.
    """
    image, mask = dataset.read(index)
    device = teacher.network.mean.device
    batch: Batch = collate([(image, mask, dataset.names[index], None)]).to(device)
    outputs: Outputs = teacher(batch)
    grid = (outputs.logits.shape[2], outputs.logits.shape[3])
    geometry = MapGeometry(grid, outputs.padded_size, outputs.align_corners, teacher.network.stride)
    rows, columns = geometry.needed(outputs.size)
    logits = outputs.logits[0, :, :rows, :columns].float().permute(1, 2, 0).cpu().numpy()
    stored, lost = np.ascontiguousarray(cache.codec.encode(logits)), 0.0
    if temperature:
        both = [torch.from_numpy(x) for x in (logits, cache.codec.decode(stored))]
        if cache.codec.multilabel:  # each logit z is of its own two classes, [0, z]
            both = [torch.stack([torch.zeros_like(z), z], -1) for z in both]
        t, kept = (soften(x.flatten(0, -2), temperature) for x in both)
        lost = float(divergence(kept, t, "forward_kl").mean())
    return stored, geometry, lost


def local_world(world: int) -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))
