"""The loop. Teacher, baseline and student run through it alike; only the objective and the teacher differ.

Everything random is a function of (seed, step) or (seed, epoch, index), so a run that is stopped and started again
ends with the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from distill.batch import Batch, Target, count_pixels
from distill.data import build_transform, train_batches
from distill.data.loader import StepSampler
from distill.errors import Stopped
from distill.models.network import Network
from distill.training.checkpoint import Checkpoints, State
from distill.training.context import Run
from distill.training.optim import schedule
from distill.training.qat import settle
from distill.training.state import Training, begin, facts, share_buffers, snapshot
from distill.training.teacher import Teacher
from distill.training.tracking import Tracker

PRECISE = {"mps": torch.float32}  # devices without float64


def train(
    run: Run, stage: str, settings: dict[str, Any], teacher: Teacher | None = None, start: Network | None = None
) -> tuple[Network, State]:
    """Trains the network of a stage, or goes on with it.

    Args:
        run: what the stages share.
        stage: `teacher`, `baseline`, `student` or `int8`.
        settings: the settings that alter the result, to refuse a state made with others.
        teacher: what the student learns from; None trains on labels alone.
        start: the network to be tuned for 8 bits; None starts from new weights.

    Returns:
        The network with the weights to keep, in eval mode, and the last state.

    Raises:
        FloatingPointError: a loss or gradient was not finite; names the step and the images. The update was not done.
        Stopped: `run.stop()` became true; the state is saved.
    """
    config, accelerator = run.config, run.accelerator
    wanted = config.teacher if stage == "teacher" else config.student
    steps, peak = wanted.max_train_steps, wanted.learning_rate
    checkpoints = Checkpoints(
        config.folder / "training" / stage,
        settings,
        facts(accelerator),
        config.checkpoints_total_limit,
        lambda line: run.say(f"{stage}: {line}"),
        config.allow_change,
    )
    training = begin(run, wanted, checkpoints, teacher.network if teacher else None, start)
    if teacher:
        teacher.features = training.distiller.objective.features
    state, optimizer = training.state, training.optimizer
    batches, global_batch = read_batches(run, state.step, teacher)
    tracker = Tracker(accelerator, stage, first_step=state.step + 1)
    bar = run.progress(total=steps, initial=state.step, desc=stage, dynamic_ncols=True)
    clock = Clock(state.step)

    for step in range(state.step, steps):
        torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step, steps, config.optimizer)
        training.distiller.objective.set_step(step, steps)
        micro_batches = [next(batches).to(accelerator.device) for _ in range(config.gradient_accumulation_steps)]
        logs, stop = update(run, stage, step, training, micro_batches, teacher)
        done = step + 1
        bar.update()

        if done % config.logging_steps == 0 or done == steps:
            values = {f"train/{name}": accelerator.reduce(value, "mean").item() for name, value in logs.items()}
            if config.optimizer.max_grad_norm:
                values["train/clipped_share"] = state.clipped / done
            values["train/images_per_second"] = clock.steps_per_second(done) * global_batch
            tracker.scalars(values | {"train/learning_rate": group["lr"]}, done)
            bar.set_postfix(
                loss=f"{values['train/loss']:.3f}",
                mIoU=f"{state.best.get('mean_iou', 0):.3f}",
                images_s=f"{values['train/images_per_second']:.0f}",
            )
        if done % config.eval_steps == 0 or done == steps:
            validate(run, stage, done, training, teacher, tracker)
            clock = Clock(done)
        if done % config.checkpointing_steps == 0 or done == steps or stop:
            snapshot(run, done, training)
            if accelerator.is_main_process:
                checkpoints.save(state)
            accelerator.wait_for_everyone()
        if stop and done < steps:
            tracker.close()
            raise Stopped(f"{stage}: stopped at step {done} of {steps}; the same command goes on from there")

    bar.close()
    tracker.close()
    accelerator.free_memory()
    training.student.load_state_dict(training.best)
    settle(training.student)
    return training.student.eval(), state


def read_batches(run: Run, start_step: int, teacher: Teacher | None) -> tuple[Iterator[Batch], int]:
    """This process's micro-batches from a step on, and the number of images in a step.

    Images without labels are among them where there is a teacher to learn from.
    """
    config, accelerator = run.config, run.accelerator
    batch, micro_batches = config.per_device_train_batch_size, config.gradient_accumulation_steps
    rank, world = accelerator.process_index, accelerator.num_processes
    dataset, more = run.splits.train, run.splits.unlabelled if teacher else None
    sampler = StepSampler(
        len(dataset),
        batch,
        micro_batches,
        config.seed,
        start_step,
        rank,
        world,
        len(more or ()),
        config.data.unlabelled_share,
    )
    transform = build_transform(config.data)
    pin_memory = accelerator.device.type == "cuda"
    workers, timeout = config.data.num_workers, config.timeout_seconds
    batches = train_batches(dataset + more if more else dataset, transform, sampler, workers, timeout, pin_memory)
    return batches, batch * micro_batches * world


def update(
    run: Run, stage: str, step: int, training: Training, micro_batches: list[Batch], teacher: Teacher | None
) -> tuple[dict[str, Tensor], bool]:
    """One optimizer step; returns what to log (each process's share) and whether the run was asked to stop."""
    config, accelerator, model = run.config, run.accelerator, training.model
    # A mean over pixels is one over those of all micro-batches and processes, so these are counted first.
    counts = torch.stack([torch.stack(count_pixels(batch.mask)) for batch in micro_batches]).sum(0)
    counts = accelerator.reduce(counts, "sum").clamp(min=1)
    labelled, valid = (counts.to(PRECISE.get(counts.device.type, torch.float64)) / accelerator.num_processes).unbind()

    norms = teacher is not None and (step + 1) % config.logging_steps == 0
    model.train()
    logs: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches, 1):
        with nullcontext() if i == len(micro_batches) else accelerator.no_sync(model):
            target = Target(batch.mask, labelled, valid, len(micro_batches))
            loss = model(batch.image, teacher(batch) if teacher else None, target, norms)
            accelerator.backward(loss.total)
        for name, value in {"loss": loss.total.detach(), **loss.values}.items():
            logs[name] = logs.get(name, 0) + value
    # How strongly each term pulls at the student's logits beside cross-entropy shows a weight that is far off.
    reference = loss.gradient_norms.pop("cross_entropy", None)
    if reference is not None:
        logs |= {f"pull/{name}": norm / reference for name, norm in loss.gradient_norms.items()}
    limit = config.optimizer.max_grad_norm or math.inf
    logs["gradient_norm"] = accelerator.clip_grad_norm_(model.parameters(), limit)

    # With fp16 a gradient that overflows is normal: its step is skipped and the scale lowered.
    watched = ("loss",) if accelerator.mixed_precision == "fp16" else ("loss", "gradient_norm")
    bad = not all(math.isfinite(logs[name]) for name in watched)
    votes = accelerator.reduce(torch.tensor([bad, run.stop()], dtype=torch.int64, device=accelerator.device), "sum")
    if votes[0]:
        seen = [name for batch in micro_batches for name in batch.names] if bad else []
        images = ", ".join(gather_object(seen))
        raise FloatingPointError(
            f"{stage}: the loss ({logs['loss']:.4g}) or gradient norm ({logs['gradient_norm']:.4g}) is not finite at "
            f"step {step + 1} on {images}; nothing was updated. Try a lower learning_rate"
        )
    training.state.clipped += bool(logs["gradient_norm"] > limit)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.ema:
        training.ema.update(training.student, step=step)
    return logs, bool(votes[1])


def validate(run: Run, stage: str, done: int, training: Training, teacher: Teacher | None, tracker: Tracker) -> None:
    """Scores the network, beside its teacher if it has one, and remembers its weights if they are the ones to keep."""
    share_buffers(training)
    compared = {"teacher": teacher.network} if teacher and run.compare else {}
    evaluation = run.evaluate({stage: training.scored} | compared)
    scores = evaluation.scores[stage]
    state = training.state
    if run.config.keep == "last" or scores.mean_iou > state.best.get("mean_iou", -1):
        state.best = {"mean_iou": scores.mean_iou, "step": done}
        training.best = {k: v.detach().cpu().clone() for k, v in training.scored.state_dict().items()}
    tracker.scores(scores, run.splits.classes, done)
    if compared:
        gap = evaluation.scores["teacher"].mean_iou - scores.mean_iou
        tracker.scalars({"compare/gap_mIoU": gap, "compare/agreement": evaluation.agreement[stage]}, done)
    best = f"(best {100 * state.best['mean_iou']:.2f} at {state.best['step']})"
    run.say(f"{stage:8} step {done:5}  mIoU {100 * scores.mean_iou:5.2f} {best}")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and the like in a step of a process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


class Clock:
    """Speed since the last question."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Steps a second since the last call."""
        now = time.perf_counter()
        speed = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return speed
