"""What changes while a network is trained: built from the seed, put into a state that is saved, and taken out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import accelerate
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.checkpoint import Checkpoints, State
from distill.config import ConfigError, NetworkConfig
from distill.launch import from_main
from distill.models import Network, build, freeze_unused
from distill.objective import Distiller, build_objective
from distill.optim import build_optimizer
from distill.rounding import simulate
from distill.run import Run


@dataclass
class Training:
    """What changes while a network is trained.

    Attributes:
        student: the network; the objective's terms look at its outputs.
        distiller: the student with its objective, bare.
        model: the same as Accelerate prepared it.
        optimizer: prepared, too.
        ema: moving average of the student, or None; what is scored and kept if there is one.
        state: the last state saved or loaded.
        best: weights to keep so far.
    """

    student: Network
    distiller: Distiller
    model: nn.Module
    optimizer: Any
    ema: ModelEmaV3 | None
    state: State
    best: dict[str, Tensor]

    @property
    def scored(self) -> Network:
        """The network whose scores count."""
        return self.ema.module if self.ema else self.student


def begin(
    run: Run, wanted: NetworkConfig, checkpoints: Checkpoints, teacher: Network | None, start: Network | None = None
) -> Training:
    """Builds everything from the seed, then puts the last saved state into it.

    With a network to `start` from, its weights are learnt on, while they are rounded as 8 bits round them.

    Raises:
        ConfigError: the state does not fit, or has no steps left, once settings were allowed to change.
    """
    config, accelerator = run.config, run.accelerator
    torch.manual_seed(config.seed)
    student = build(wanted, run.splits.classes)
    distiller = Distiller(student, build_objective(config, student, teacher))
    freeze_unused(student, config.data.crop_size, distiller.objective.features)
    if start:
        student.load_state_dict(start.state_dict())
        simulate(student)
    if config.sync_batchnorm:
        convert_sync_batchnorm(distiller)  # timm's: torch's own would drop the activations that timm puts into norms
    model, optimizer = accelerator.prepare(distiller, build_optimizer(distiller, config.optimizer))
    ema = ModelEmaV3(student, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    state = from_main(accelerator, lambda: checkpoints.load(config.resume_from_checkpoint)) or State(0, {}, {})
    if state.changes and state.changes[-1]["step"] == state.step >= wanted.max_train_steps:
        raise ConfigError(f"{checkpoints.folder}: {state.step} steps are done; to go on set max_train_steps above that")
    if state.step:
        today = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        try:
            distiller.load_state_dict(state.tensors["model"])
            optimizer.load_state_dict(state.optimizer["optimizer"])
            if ema:
                ema.module.load_state_dict(state.tensors["ema"])
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(state.optimizer["scaler"])
            for group, settings in zip(optimizer.param_groups, today, strict=True):
                if settings.keys() - group.keys():
                    raise ValueError("it is of another optimizer")
                group.update(settings)  # they may have been allowed to change
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{checkpoints.folder}: the state of step {state.step} does not fit ({reason}); what decides its shape "
                f"cannot change on the way: set another --name"
            ) from error
        checkpoints.note(f"goes on from step {state.step}")
    return Training(student, distiller, model, optimizer, ema, state, state.tensors.get("best", {}))


def snapshot(run: Run, done: int, training: Training) -> None:
    """Puts everything that decides how the training goes on into its state."""
    share_buffers(training)
    state, scaler = training.state, run.accelerator.scaler
    state.step = done
    state.tensors = {"model": training.distiller.state_dict(), "best": training.best}
    if training.ema:
        state.tensors["ema"] = training.ema.module.state_dict()
    state.tensors = {name: group for name, group in state.tensors.items() if group}
    state.optimizer = {"optimizer": training.optimizer.state_dict()} | (
        {"scaler": scaler.state_dict()} if scaler else {}
    )


def share_buffers(training: Training) -> None:
    """BatchNorm statistics differ between processes; those of the first count, for scoring and saving alike."""
    average = training.ema.module.buffers() if training.ema else ()
    for buffer in (*training.distiller.buffers(), *average):
        broadcast(buffer)


def facts(accelerator: Accelerator) -> dict[str, Any]:
    """What the last bits of a result depend on besides the settings."""
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": accelerator.device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # ATEN_CPU_CAPABILITY, or the most there is
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL"),
        "mixed_precision": accelerator.mixed_precision,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }
