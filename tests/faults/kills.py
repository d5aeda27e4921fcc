"""kill -9 at random moments, during saves too: started again, a run ends with the bits of an uninterrupted one."""

import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from harness import Figure, Launch, distil, draw_camvid, everything, run
from known_graphs import SMALL, quick_exports

from distill.reporting import artifacts
from distill.reporting.results import ExportResults

# Everything that holds state: dropout, BatchNorm, a moving average, the best weights so far, a schedule with warm-up.
SETTINGS = {
    "baseline__enabled": "false",
    "export__enabled": "false",
    "optimizer__ema_decay": 0.8,
    "optimizer__warmup_steps": 3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 1,
    "num_sample_images": 1,
    "timeout_seconds": 60,
    "student__options": {
        "decoder_pyramid_channels": 16,
        "decoder_segmentation_channels": 32,
        "decoder_dropout": 0.5,
    },
}
# What a run can do besides: a baseline, images without labels, and an ONNX file in 8 bits, for which it is tuned.
JOB = SETTINGS | {
    "baseline__enabled": "true",
    "export__enabled": "true",
    "export__int8": "true",
    "export__int8_calibration_images": 2,
    "export__int8_finetune_steps": 3,
    "data__format": "camvid",
    "data__unlabeled": "more",
    "data__allow_missing_classes": "true",  # scenes have one less than CamVid
}


def whole_job(folder: Path, settings: dict[str, Any], graphs: Path | None = None) -> int:
    """A run whose 8-bit file counts as losing too much, whatever it loses, so that it is tuned; exit code.

    Its ONNX file is proven at the images' own size and a small one, which takes seconds, and made by torch's exporter
    unless there is a folder for known graphs.
    """
    ExportResults.int8_loses_too_much = True
    if graphs:
        quick_exports(graphs)
    else:
        artifacts.export_onnx = functools.partial(artifacts.export_onnx, sizes=SMALL)
    return distil(folder, settings)


def kills(count: int, world: int, folder: Path, seed: int = 0, workers: int = 0, job: bool = False) -> Figure:
    """Kills runs at `count` random moments, each run up to three times, and compares all files that they end with.

    One kill in three is aimed at a save: it comes within a millisecond of a temporary folder's appearance. With
    several ranks either all of them are killed or one; the others then have to end by themselves. A `job` is all that
    a run can do, and not the training of two networks alone.
    """
    rng = random.Random(seed * 100 + world)
    settings = (JOB | {"data__root": str(folder / "data")} if job else SETTINGS) | {"data__num_workers": workers}
    folder.mkdir(parents=True, exist_ok=True)
    if job:
        draw_camvid(folder / "data", unlabeled=4)
    run(print, ("warm",), 1, folder / "warm.log")  # else the imports count
    start, place = time.monotonic(), folder / "run"  # one place for all, which some files name
    function = whole_job if job else distil
    run(function, (place, settings), world, folder / "whole.log")
    seconds, whole = time.monotonic() - start, everything(place)
    done = trials = identical = saves = refused = 0
    failures = []
    while done < count:
        shutil.rmtree(place)
        trials += 1
        name = f"{trials:03}"
        log = folder / f"{name}.log"
        for _ in range(min(rng.randint(1, 3), count - done)):
            launch = Launch(function, (place, settings), world, log)
            _wait_for_the_moment(launch, place, rng, seconds)
            if not launch.running:
                break  # it was faster
            launch.kill(rng.choice([None, [rng.randrange(world)]]))
            saves += any(place.rglob(".*.tmp"))
            done += 1
            try:
                launch.wait(90)
            except TimeoutError as error:
                failures.append(f"{name}: {error}")
        try:
            printed = run(function, (place, settings), world, log)
            refused += printed.count("refused")
            found = everything(place)
            identical += found == whole
            others = [key for key in sorted(found.keys() | whole.keys()) if found.get(key) != whole.get(key)]
            failures += [f"{name}: other bits: {', '.join(others)}"] if others else []
        except (RuntimeError, TimeoutError) as error:
            failures.append(f"{name}: {error}")
    what = "kill -9 at random moments of a whole job" if job else "kill -9 at random moments"
    return Figure(
        f"{what}, {world} process(es): resumed to identical files",
        f"{count} / {count}",
        f"{done - len(failures)} / {done}",
        not failures and identical == trials,
        failures,
        {"runs": trials, "runs_identical": identical, "kills_during_a_save": saves, "states_refused": refused}
        | {"files": sum(":" not in name for name in whole)},
    )


def _wait_for_the_moment(launch: Launch, folder: Path, rng: random.Random, seconds: float) -> None:
    if rng.random() < 2 / 3:
        time.sleep(rng.uniform(0, seconds))
        return
    end = time.monotonic() + rng.uniform(0, seconds)
    while launch.running and time.monotonic() < end:
        time.sleep(0.005)  # not to take its processor from it
    stages = ("training/teacher", "training/baseline", "training/student", "training/int8", "student", ".")
    while launch.running:
        if any(any((folder / stage).glob(".*.tmp")) for stage in stages):
            time.sleep(rng.uniform(0, 0.001))
            return


def tuning_that_dies(folder: Path, settings: dict[str, Any], graphs: Path) -> None:
    """A run that is killed while the network that was tuned for 8 bits is made a file."""
    quantize = artifacts.quantize_onnx

    def die(*arguments: Any, reference: Path | None = None, **others: Any) -> Any:
        if reference:
            os.kill(os.getpid(), signal.SIGKILL)
        return quantize(*arguments, reference=reference, **others)

    artifacts.quantize_onnx = die
    whole_job(folder, settings, graphs)
