"""Every setting, once: dataclasses that check themselves, with a line of help each. This is the root of them.

Those of the data, of networks and of losses stand in `data`, `networks` and `distill.losses.sections`. None of these
imports anything heavy, so a typo is reported before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distill.config.data import DataConfig
from distill.config.networks import StudentConfig, TeacherConfig
from distill.losses.sections import TermsConfig
from distill.losses.validation import Settings


@dataclass
class BaselineConfig(Settings):
    """The student again, trained on the labels alone, so that the gain is a difference and not a hope.

    Args:
        enabled: train it.
    """

    enabled: bool = True


@dataclass
class OptimizerConfig(Settings):
    """How weights are updated; the same for every network.

    Args:
        name: `adamw` or `sgd` (momentum 0.9).
        weight_decay: applied to weights, not to biases and norms.
        warmup_steps: steps of linear warm-up.
        power: the learning rate falls as (1 - step / steps) ^ power.
        max_grad_norm: gradients are clipped to this norm; 0 switches clipping off. Distillation terms make gradients
            larger, so a limit clips the student in more steps than the baseline; the report says in how many.
        ema_decay: exponential moving average of the weights, which is then what is scored and exported; 0 is off.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-2
    warmup_steps: int = 20
    power: float = 0.9
    max_grad_norm: float = 5.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.not_negative("weight_decay", "warmup_steps", "power", "max_grad_norm", "ema_decay")
        self.require(self.ema_decay < 1, "ema_decay", "must be below 1")


@dataclass
class ExportConfig(Settings):
    """The student's files for others.

    Args:
        enabled: write the ONNX file and check it.
        opset: ONNX opset.
        output: what the files give beside the mask: `logits`, the `confidence` (probability of the class) or `none`.
        int8: also write a file in 8 bits, chosen and admitted by its score on the validation images.
        int8_max_lost: mIoU (0 to 1) that the 8-bit file may lose.
        int8_calibration_images: training images that its ranges are taken from.
        int8_finetune_steps: if rounding loses more than that, tune the student to it for so many steps, at a tenth of
            its learning rate (quantization-aware training with the teacher), and keep the better file; 0 only leaves
            layers in float.
        fp16: also write a file in half precision, for GPUs.
        benchmark: also measure how long teacher and student take for an image, on the CPU.
    """

    enabled: bool = True
    opset: int = 18
    output: Literal["logits", "confidence", "none"] = "logits"
    int8: bool = False
    int8_max_lost: float = 0.005
    int8_calibration_images: int = 64
    int8_finetune_steps: int = 0
    fp16: bool = False
    benchmark: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("int8_calibration_images")
        self.not_negative("int8_max_lost", "int8_finetune_steps")
        self.require(self.int8_max_lost < 1, "int8_max_lost", "must be below 1; half a point is 0.005")


@dataclass
class Config(TermsConfig):
    """A run.

    Args:
        name: name of the run.
        output_dir: where it goes; `checkpoints/<name>` if not given.
        seed: of weights, order, augmentation and dropout.
        data: images and masks.
        teacher: the large network.
        student: the compact network.
        baseline: the student on labels alone.
        optimizer: how weights are updated.
        export: the ONNX file.
        per_device_train_batch_size: images a process and micro-batch.
        per_device_eval_batch_size: images a process when scoring.
        gradient_accumulation_steps: micro-batches an optimizer step.
        mixed_precision: `no`, `bf16`, `fp16` (GPU only); null takes what the launcher says.
        sync_batchnorm: BatchNorm takes its statistics over the images of all processes, not each over its own (GPUs).
        compile_loss: let torch.compile fuse the loss of each pixel; needs a C++ compiler where it runs (Triton on a
            GPU), takes a minute at the start, and changes the last bits.
        eval_steps: score on the validation images every so many steps.
        keep: which weights a training ends with: those of the `best` validation score or of the `last` step.
        checkpointing_steps: save the training state every so many steps.
        checkpoints_total_limit: how many of them are kept.
        resume_from_checkpoint: `latest`, or the folder of one checkpoint.
        allow_change: settings (dotted names) that may differ from those that the run was started with; what is being
            trained goes on with the new values, what is finished stays as it is. Other data and another teacher are
            `data.train_files`, `data.val_files`, `data.unlabeled_files` and `teacher.files`.
        logging_steps: write losses every so many steps.
        num_sample_images: validation images shown as strips in TensorBoard and the report.
        num_processes: stop unless that many processes really run; null does not care.
        num_threads: threads a process on CPUs; null takes OMP_NUM_THREADS where you set it, or else shares the
            cores among the processes.
        push_to_hub: upload the student's folder to the Hugging Face Hub at the end; needs your token in HF_TOKEN.
        hub_model_id: where to: `user/name`; a repository that is new is private.
        timeout_seconds: a process or worker that makes the others wait longer ends the run.
    """

    name: str = "default"
    output_dir: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    sync_batchnorm: bool = False
    compile_loss: bool = False
    eval_steps: int = 100
    keep: Literal["best", "last"] = "best"
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str = "latest"
    allow_change: list[str] = field(default_factory=list)
    logging_steps: int = 10
    num_sample_images: int = 4
    num_processes: int | None = None
    num_threads: int | None = None
    timeout_seconds: int = 600
    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        self.above_zero("eval_steps", "checkpointing_steps", "checkpoints_total_limit", "logging_steps")
        self.above_zero("num_processes", "num_threads", "timeout_seconds")
        self.not_negative("seed", "num_sample_images")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("hub_model_id: push_to_hub needs the name of a repository there, such as user/name")
        folder = re.fullmatch(r"[\w.-]+", self.name) and self.name.strip(".")
        self.require(bool(folder), "name", "becomes a folder; use letters, digits, '_' and '-', and '.' beside them")

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        return Path(self.output_dir or Path("checkpoints") / self.name)


# Settings of earlier versions that are gone, with the value that means what is done now.
GONE = {"kd.reduction": "mean"}
RENAMED = {"data.unlabelled": "data.unlabeled", "data.unlabelled_share": "data.unlabeled_share"}  # old name → new name

# Settings that older versions did not have, with what these did, where it is not what the default does now.
ADDED = {"teacher.cache.enabled": False}

# Settings that may differ between the start of a run and its continuation: they do not change the result.
RUNTIME_SETTINGS = (
    "name",
    "output_dir",
    "data.root",
    "data.unpacked",
    "data.cache",
    "data.decoded_dir",
    "data.check",
    "data.allow_missing_classes",
    "data.max_void_share",
    "data.max_pixels",
    "data.num_workers",
    "data.palette",
    "teacher.allow_near_chance",
    "teacher.allow_untaught",
    "teacher.trusted",
    "teacher.cache.dir",
    "teacher.cache.max_gb",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "allow_change",
    "logging_steps",
    "num_sample_images",
    "num_processes",
    "num_threads",
    "timeout_seconds",
    "push_to_hub",
    "hub_model_id",
    "per_device_eval_batch_size",
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings as a flat dict of dotted names, as the flags are called."""
    flat: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def dump(config: Config) -> str:
    """The fully resolved settings as YAML; running with it repeats the run."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True, width=100)
