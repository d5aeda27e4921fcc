"""The stages of a run that train a network: which settings make it, whom it learns from, what it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distill.config.networks import NetworkConfig
from distill.config.schema import Config
from distill.losses import TERMS

DISTILLATION = tuple(f"{name}." for name, term in TERMS.items() if term.needs_teacher)


@dataclass(frozen=True)
class Stage:
    """A training within a run.

    Attributes:
        name: its folder, and its run in TensorBoard.
        section: section of the settings that describes its network, `teacher` or `student`.
        teacher: name of the stage that it learns from; None learns from labels alone.
        init: name of the stage whose weights it starts from; None starts from new weights.
        quantized: learns while its weights and maps are rounded as INT8 rounds them (quantization-aware training).
        irrelevant: settings that do not reach it, by the beginning of their names.
    """

    name: str
    section: str = "student"
    teacher: str | None = None
    init: str | None = None
    quantized: bool = False
    irrelevant: tuple[str, ...] = ("baseline.", "export.")

    def network(self, config: Config) -> NetworkConfig:
        """The settings of its network."""
        network: NetworkConfig = getattr(config, self.section)
        return network

    def configured(self, config: Config) -> Config:
        """The settings as this stage trains with them: rounding is learned in a few small steps of its own number."""
        if not self.quantized:
            return config
        steps, rate = config.export.int8_finetune_steps, config.student.learning_rate / 10
        return replace(config, student=replace(config.student, max_train_steps=steps, learning_rate=rate))


TEACHER = Stage(
    "teacher",
    section="teacher",
    irrelevant=(
        *("student.", "baseline.", "export.", "teacher.checkpoint", "data.unlabeled"),
        *("teacher.cache.", "teacher.tta.", "teacher.more", "teacher.weights"),
        *("teacher.python", "teacher.class", "teacher.output", "teacher.label_smoothing", "teacher.bgr"),
        "teacher.window",
        *DISTILLATION,
    ),
)
BASELINE = Stage("baseline", irrelevant=("teacher.", "baseline.", "export.", "data.unlabeled", *DISTILLATION))
STUDENT = Stage("student", teacher="teacher")
INT8 = Stage("int8", teacher="teacher", init="student", quantized=True)
STAGES = {stage.name: stage for stage in (TEACHER, BASELINE, STUDENT, INT8)}
