"""The loop. Teacher, baseline and student run through it alike; only the objective and the teacher differ.

Everything random is a function of (seed, step) or (seed, epoch, index), so a run that is stopped and started again
ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor

from distill.batch import Batch, Target, count_pixels
from distill.errors import ConfigError, Stopped
from distill.models import Network, build, freeze_unused
from distill.training.beside import Beside
from distill.training.checkpoint import Checkpoints
from distill.training.context import Run
from distill.training.distributed import from_main
from distill.training.objective import Distiller, build_objective
from distill.training.optim import build_optimizer, schedule
from distill.training.qat import insert_fake_quant, remove_fake_quant
from distill.training.stage import Stage
from distill.training.state import TrainState, environment
from distill.training.teacher import CachedTeacher, Teacher
from distill.training.times import Stopwatch
from distill.training.tracking import Clock, Tracker

PRECISE = {"mps": torch.float32}  # devices without float64


class Trainer:
    """Trains the network of a stage: built from the seed, resumed from the last state if there is one.

    Args:
        run: what the stages share.
        stage: what is trained.
        settings: the settings that alter the result, to refuse a state made with others.
        teacher: what the student learns from; None trains on labels alone.
        init: the network whose weights are learned on; None starts from new weights.
        baseline: the same network on labels alone, to be compared with.

    Attributes:
        student: the network; the objective's terms look at its outputs.
        distiller: the student with its objective, bare: what is saved.
        model: the same as Accelerate prepared it: what is trained.
        ema: moving average of the student, or None; what is scored and kept if there is one.
        step: optimizer steps done.
        best, best_weights: validation mIoU and step of the weights to keep so far, and these.
        clipped, changes: as in `TrainState`.
        watch: how long its steps take.

    Raises:
        ConfigError: the state does not fit, or has no steps left, once settings were allowed to change.
    """

    tracker: Tracker

    def __init__(
        self,
        run: Run,
        stage: Stage,
        settings: Mapping[str, Any],
        teacher: Teacher | CachedTeacher | None = None,
        init: Network | None = None,
        baseline: Network | None = None,
    ):
        self.run, self.stage, self.teacher = run, stage, teacher
        self.config, self.accelerator = config, accelerator = run.config, run.accelerator
        network = stage.network(config)
        self.steps, self.peak = network.max_train_steps, network.learning_rate
        beside = {"teacher": teacher.network if teacher else None, "baseline": baseline}
        self.beside = Beside(run, {n: found for n, found in beside.items() if teacher and found}, self.steps)

        torch.manual_seed(config.seed)
        self.student = build(network, run.splits.classes, run.own.get(stage.section), run.splits.image)
        objective = build_objective(config, self.student, teacher.network if teacher else None)
        self.distiller = Distiller(self.student, objective)
        freeze_unused(self.student, config.data.crop_size, objective.features)
        if init:
            self.student.load_state_dict(init.state_dict())
        if stage.quantized:
            insert_fake_quant(self.student)
        if config.sync_batchnorm:
            convert_sync_batchnorm(self.distiller)  # timm's: torch's own would drop the activations in timm's norms
        self.model, self.optimizer = accelerator.prepare(
            self.distiller, build_optimizer(self.distiller, config.optimizer)
        )
        self.ema = ModelEmaV3(self.student, config.optimizer.ema_decay) if config.optimizer.ema_decay else None

        self.step, self.clipped = 0, 0
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.changes: list[dict[str, Any]] = []
        self.watch = Stopwatch(run.times / f"{stage.name}.json" if run.times else None)
        self.checkpoints = Checkpoints(
            config.folder / "training" / stage.name,
            settings,
            environment(accelerator),
            config.checkpoints_total_limit,
            lambda line: run.say(f"{stage.name}: {line}"),
            config.allow_change,
        )
        state = from_main(accelerator, lambda: self.checkpoints.load(config.resume_from_checkpoint))
        if state:
            self.restore(state)

    @property
    def scored(self) -> Network:
        """The network whose scores count."""
        return self.ema.module if self.ema else self.student

    def train(self) -> Network:
        """Runs the steps that are left.

        Returns:
            The network with the weights to keep, in eval mode.

        Raises:
            FloatingPointError: a loss or gradient was not finite; names the step and the images. The update was not
                done.
            Stopped: `run.stop()` became true; the state is saved.
        """
        run, config, accelerator, name = self.run, self.config, self.accelerator, self.stage.name
        targets = self.teacher.targets if self.teacher else None
        batches = run.train_batches(self.step, unlabeled=self.teacher is not None, targets=targets)
        self.tracker = Tracker(accelerator, name, first_step=self.step + 1)
        if self.teacher:
            self.tracker.layout(run.splits.classes)
        bar = run.progress(total=self.steps, initial=self.step, desc=name, dynamic_ncols=True)
        clock = Clock(self.step)

        for step in range(self.step, self.steps):
            self.watch.start()
            torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * schedule(step, self.steps, config.optimizer)
            self.distiller.objective.set_step(step, self.steps)
            micro_batches = [next(batches).to(accelerator.device) for _ in range(config.gradient_accumulation_steps)]
            logs, stop = self.train_step(step, micro_batches)
            self.step = done = step + 1
            self.watch.stop()
            last = done == self.steps
            bar.update()

            if done % config.logging_steps == 0 or last:
                bar.set_postfix(self.log(logs, clock.steps_per_second(done) * run.global_batch_size))
            if done % config.eval_steps == 0 or last:
                self.validate()
                clock = Clock(done)
            if done % config.checkpointing_steps == 0 or last or stop:
                self.save()
            if stop and not last:
                self.tracker.close()
                raise Stopped(f"{name}: stopped at step {done} of {self.steps}; rerun the same command to resume")

        bar.close()
        self.tracker.close()
        accelerator.free_memory()
        self.student.load_state_dict(self.best_weights)
        remove_fake_quant(self.student)
        return self.student.eval()

    def train_step(self, step: int, micro_batches: Sequence[Batch]) -> tuple[dict[str, Tensor], bool]:
        """One optimizer step; returns what to log (each process's share) and whether the run was asked to stop."""
        accelerator, model, teacher = self.accelerator, self.model, self.teacher
        features = self.distiller.objective.features
        labeled, valid = self.global_counts(micro_batches)
        norms = teacher is not None and (step + 1) % self.config.logging_steps == 0

        model.train()
        logs: dict[str, Tensor] = {}
        for i, batch in enumerate(micro_batches, 1):
            with nullcontext() if i == len(micro_batches) else accelerator.no_sync(model):
                target = Target(batch.mask, labeled, valid, len(micro_batches))
                asked = teacher(batch, features) if teacher and self.distiller.objective.needs_teacher else None
                loss = model(batch.image, asked, target, norms)
                accelerator.backward(loss.total)
            for name, value in {"loss": loss.total.detach(), **loss.values}.items():
                logs[name] = logs.get(name, 0) + value
        # How strongly each term pulls at the student's logits beside cross-entropy shows a weight that is far off.
        reference = loss.gradient_norms.pop("cross_entropy", None)
        if reference is not None:
            logs |= {f"pull/{name}": norm / reference for name, norm in loss.gradient_norms.items()}

        limit = self.config.optimizer.max_grad_norm or math.inf
        logs["gradient_norm"] = accelerator.clip_grad_norm_(model.parameters(), limit)
        stop = self.vote(step, logs, micro_batches)
        self.clipped += bool(logs["gradient_norm"] > limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.student, step=step)
        return logs, stop

    def global_counts(self, micro_batches: Sequence[Batch]) -> tuple[Tensor, ...]:
        """Labeled and valid pixels of a step, each process's mean share.

        A mean over pixels is one over those of all micro-batches and processes, so these are counted first.
        """
        counts = torch.stack([torch.stack(count_pixels(batch.mask)) for batch in micro_batches]).sum(0)
        counts = self.accelerator.reduce(counts, "sum").clamp(min=1)
        precise = PRECISE.get(counts.device.type, torch.float64)
        return (counts.to(precise) / self.accelerator.num_processes).unbind()

    def vote(self, step: int, logs: Mapping[str, Tensor], micro_batches: Sequence[Batch]) -> bool:
        """Whether a process was asked to stop, once all have found that the update can be done.

        Raises:
            FloatingPointError: the loss or a gradient is not finite on one of them; names the step and the images.
        """
        accelerator = self.accelerator
        # With fp16 a gradient that overflows is normal: its step is skipped and the scale lowered.
        watched = ("loss",) if accelerator.mixed_precision == "fp16" else ("loss", "gradient_norm")
        bad = not all(math.isfinite(logs[name]) for name in watched)
        own = torch.tensor([bad, self.run.stop()], dtype=torch.int64, device=accelerator.device)
        votes = accelerator.reduce(own, "sum")
        if votes[0]:
            seen = [name for batch in micro_batches for name in batch.names] if bad else []
            images = ", ".join(gather_object(seen))
            raise FloatingPointError(
                f"{self.stage.name}: the loss ({logs['loss']:.4g}) or gradient norm ({logs['gradient_norm']:.4g}) is "
                f"not finite at step {step + 1} on {images}; nothing was updated. Try a lower learning_rate"
            )
        return bool(votes[1])

    def log(self, logs: Mapping[str, Tensor], images_per_second: float) -> dict[str, str]:
        """Writes what the last step gave, as means over the processes; returns what the progress bar shows of it."""
        values = {f"train/{name}": self.accelerator.reduce(value, "mean").item() for name, value in logs.items()}
        if self.config.optimizer.max_grad_norm:
            values["train/clipped_share"] = self.clipped / self.step
        values["train/images_per_second"] = images_per_second
        self.tracker.scalars(values | {"train/learning_rate": self.optimizer.param_groups[-1]["lr"]}, self.step)
        return {
            "loss": f"{values['train/loss']:.3f}",
            "mIoU": f"{self.best.get('mean_iou', 0):.3f}",
            "images_s": f"{images_per_second:.0f}",
        }

    def validate(self) -> None:
        """Scores the network, beside its teacher if it has one, and keeps its weights if they are the best so far."""
        run, name = self.run, self.stage.name
        self.sync_buffers()
        evaluation = run.evaluate({name: self.scored} | self.beside.networks)
        scores = evaluation.scores[name]
        if self.config.keep == "last" or scores.mean_iou > self.best.get("mean_iou", -1):
            self.best = {"mean_iou": scores.mean_iou, "step": self.step}
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.scored.state_dict().items()}
        self.tracker.scores(scores, run.splits.classes, self.step)
        self.beside.write(self.tracker, name, self.scored, evaluation, self.step)
        best = f"(best {100 * self.best['mean_iou']:.2f} at {self.best['step']})"
        score = f"mIoU {100 * scores.mean_iou:5.2f} {best}" if scores.present else "done"
        run.say(f"{name:8} step {self.step:5}  {score}")
        run.on_score(self.step, scores.mean_iou)

    def save(self) -> None:
        """Writes the state of now, on the main process."""
        state = self.capture()
        if self.accelerator.is_main_process:
            self.watch.save(self.step)
            self.checkpoints.save(state)
        self.accelerator.wait_for_everyone()

    def capture(self) -> TrainState:
        """Everything that decides how the training goes on."""
        self.sync_buffers()
        tensors = {"model": self.distiller.state_dict(), "best": self.best_weights}
        if self.ema:
            tensors["ema"] = self.ema.module.state_dict()
        tensors = {name: group for name, group in tensors.items() if group}
        scaler = self.accelerator.scaler
        optimizer = {"optimizer": self.optimizer.state_dict()} | ({"scaler": scaler.state_dict()} if scaler else {})
        return TrainState(self.step, tensors, optimizer, self.best, self.clipped, self.changes)

    def restore(self, state: TrainState) -> None:
        """Puts a captured state back.

        Raises:
            ConfigError: it does not fit, or has no steps left, once settings were allowed to change.
        """
        folder, optimizer, scaler = self.checkpoints.folder, self.optimizer, self.accelerator.scaler
        if state.changes and state.changes[-1]["step"] == state.step >= self.steps:
            raise ConfigError(f"{folder}: {state.step} steps are done; to go on set max_train_steps above that")
        today = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        try:
            self.distiller.load_state_dict(state.tensors["model"])
            optimizer.load_state_dict(state.optimizer["optimizer"])
            if self.ema:
                self.ema.module.load_state_dict(state.tensors["ema"])
            if scaler:
                scaler.load_state_dict(state.optimizer["scaler"])
            for group, settings in zip(optimizer.param_groups, today, strict=True):
                if settings.keys() - group.keys():
                    raise ValueError("it is of another optimizer")
                group.update(settings)  # they may have been allowed to change
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{folder}: the state of step {state.step} does not fit ({reason}); what decides its shape cannot "
                f"change on the way: set another --name"
            ) from error
        self.step, self.best, self.clipped, self.changes = state.step, state.best, state.clipped, state.changes
        self.best_weights = state.tensors.get("best", {})
        self.watch.resume(self.step)
        self.checkpoints.note(f"resumes from step {state.step}")

    def sync_buffers(self) -> None:
        """BatchNorm statistics differ between processes; those of the first count, for scoring and saving alike."""
        average = self.ema.module.buffers() if self.ema else ()
        for buffer in (*self.distiller.buffers(), *average):
            broadcast(buffer)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout and the like in a step of a process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
