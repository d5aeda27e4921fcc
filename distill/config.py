"""Every setting, once: dataclasses with a line of help each, read from YAML and from dotted flags over it.

    python scripts/distill.py --config configs/camvid_cpu.yaml --kd.temperature 2 --data.root /data/camvid

Imports nothing heavy, so a typo ends before torch is loaded. Left out on purpose: config inheritance, interpolation,
names of Python objects in YAML.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

MAX_CONFIG_BYTES = 1_000_000


class ConfigError(Exception):
    """Bad input of any kind. Its text is one line that names the field or file, the value and the fix."""


@dataclass
class DataConfig:
    """Images and masks.

    Args:
        format: `synthetic` (drawn scenes, no files), `camvid` (`train/`, `trainannot/`, `val/`, `valannot/`) or
            `folders` (any two folders a split, matched by stem).
        root: folder of the data set; relative paths below start here.
        train_images: format `folders`: folder of the training images.
        train_masks: format `folders`: folder of the training masks (8-bit PNG, one class id a pixel).
        val_images: format `folders`: folder of the validation images.
        val_masks: format `folders`: folder of the validation masks.
        classes: class names in the order of their ids; `camvid` and `synthetic` bring their own.
        palette: one `[r, g, b]` a class for pictures; made up if not given.
        ignore_index: value of void in the mask files; never trained on, never scored.
        image_size: `[height, width]` to which images and masks are resized when read; as they are if not given.
        crop_size: `[height, width]` of the training crops; smaller images are padded with void.
        augmentations: albumentations transforms before the crop, each `{Name: {argument: value}}`.
        max_train_samples: use only that many training images.
        max_eval_samples: use only that many validation images.
        cache: keep decoded images in memory (once a worker).
        max_pixels: larger images are refused before they are decoded.
        check: what is looked at before the first step: `off`, `headers` (every file opened) or `full` (every file
            decoded, every label looked at).
        synthetic_train: format `synthetic`: number of training scenes.
        synthetic_val: format `synthetic`: number of validation scenes.
        synthetic_size: format `synthetic`: `[height, width]` of a scene.
        num_workers: processes that read and augment images, for each training process; 0 reads in the training
            process itself.
    """

    format: Literal["synthetic", "camvid", "folders"] = "synthetic"
    root: str = "."
    train_images: str = "train/images"
    train_masks: str = "train/masks"
    val_images: str = "val/images"
    val_masks: str = "val/masks"
    classes: list[str] | None = None
    palette: list[list[int]] | None = None
    ignore_index: int = 255
    image_size: list[int] | None = None
    crop_size: list[int] = field(default_factory=lambda: [96, 128])
    augmentations: list[dict[str, dict[str, Any]]] = field(
        default_factory=lambda: [
            {"RandomScale": {"scale_limit": [-0.25, 0.25], "p": 1.0}},
            {"HorizontalFlip": {"p": 0.5}},
            {"RandomBrightnessContrast": {"p": 0.5}},
        ]
    )
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    cache: bool = True
    max_pixels: int = 50_000_000
    check: Literal["off", "headers", "full"] = "full"
    synthetic_train: int = 400
    synthetic_val: int = 40
    synthetic_size: list[int] = field(default_factory=lambda: [128, 160])
    num_workers: int = 0


@dataclass
class NetworkConfig:
    """A network by the names of segmentation_models_pytorch, and how long it is trained.

    Args:
        arch: architecture: `unet`, `fpn`, `deeplabv3plus`, `segformer`, …
        encoder_name: encoder: any of SMP's, or any of timm's as `tu-<name>`.
        encoder_weights: pretrained encoder weights: null (from scratch) or a name such as `imagenet` (downloaded).
        options: further arguments of the architecture, such as `{decoder_pyramid_channels: 64}`.
        mean: mean of the RGB channels (images in 0 to 1) that the network's input is normalised with.
        std: standard deviation likewise.
        max_train_steps: optimizer steps.
        learning_rate: peak learning rate.
    """

    arch: str = "fpn"
    encoder_name: str = "resnet18"
    encoder_weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    max_train_steps: int = 400
    learning_rate: float = 1e-3


@dataclass
class TeacherConfig(NetworkConfig):
    """The large network.

    Args:
        checkpoint: folder written by SMP's `save_pretrained`, or a run of this project; trained here if not given.
    """

    checkpoint: str | None = None


@dataclass
class StudentConfig(NetworkConfig):
    """The compact network."""

    encoder_name: str = "tu-mobilenetv3_small_050"
    options: dict[str, Any] = field(
        default_factory=lambda: {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}
    )
    learning_rate: float = 2e-3


@dataclass
class BaselineConfig:
    """The student again, trained on the labels alone, so that the gain is a difference and not a hope.

    Args:
        enabled: train it.
    """

    enabled: bool = True


@dataclass
class CrossEntropyConfig:
    """What the labels teach.

    Args:
        weight: weight in the objective.
        class_weights: one factor a class; all 1 if not given.
        label_smoothing: 0 to 1.
    """

    weight: float = 1.0
    class_weights: list[float] | None = None
    label_smoothing: float = 0.0


@dataclass
class KDConfig:
    """What the teacher's per-pixel distribution teaches: T² · KL(teacher‖student) (Hinton et al. 2015).

    Args:
        weight: weight in the objective.
        temperature: T; both distributions are softmax(logits / T).
    """

    weight: float = 1.0
    temperature: float = 2.0


@dataclass
class OptimizerConfig:
    """How weights are updated; the same for every network.

    Args:
        name: `adamw` or `sgd` (momentum 0.9).
        weight_decay: applied to weights, not to biases and norms.
        warmup_steps: steps of linear warm-up.
        power: the learning rate falls as (1 - step / steps) ^ power.
        max_grad_norm: gradients are clipped to this norm; 0 switches clipping off.
        ema_decay: exponential moving average of the weights, which is then what is scored and exported; 0 is off.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-2
    warmup_steps: int = 20
    power: float = 0.9
    max_grad_norm: float = 5.0
    ema_decay: float = 0.0


@dataclass
class ExportConfig:
    """The student's ONNX file.

    Args:
        enabled: write and check it.
        opset: ONNX opset.
    """

    enabled: bool = True
    opset: int = 18


@dataclass
class Config:
    """A run.

    Args:
        name: name of the run.
        output_dir: where it goes; `checkpoints/<name>` if not given.
        seed: of weights, order, augmentation and dropout.
        data: images and masks.
        teacher: the large network.
        student: the compact network.
        baseline: the student on labels alone.
        cross_entropy: what the labels teach.
        kd: what the teacher teaches.
        optimizer: how weights are updated.
        export: the ONNX file.
        per_device_train_batch_size: images a process and micro-batch.
        per_device_eval_batch_size: images a process when scoring.
        gradient_accumulation_steps: micro-batches an optimizer step.
        mixed_precision: `no`, `bf16`, `fp16` (GPU only); null takes what the launcher says.
        eval_steps: score on the validation images every so many steps.
        keep: which weights a training ends with: those of the `best` validation score or of the `last` step.
        checkpointing_steps: save the training state every so many steps.
        checkpoints_total_limit: how many of them are kept.
        resume_from_checkpoint: `latest`, or the folder of one checkpoint.
        logging_steps: write losses every so many steps.
        num_sample_images: validation images shown as strips in TensorBoard and the report.
        num_processes: stop unless that many processes really run; null does not care.
        num_threads: threads a process on CPUs; null shares the cores among the processes.
        timeout_seconds: a process or worker that makes the others wait longer ends the run.
    """

    name: str = "default"
    output_dir: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    cross_entropy: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    kd: KDConfig = field(default_factory=KDConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    eval_steps: int = 100
    keep: Literal["best", "last"] = "best"
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str = "latest"
    logging_steps: int = 10
    num_sample_images: int = 4
    num_processes: int | None = None
    num_threads: int | None = None
    timeout_seconds: int = 600

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        return Path(self.output_dir or Path("checkpoints") / self.name)


# Settings that may differ between the start of a run and its continuation: they do not change the result.
HARMLESS = (
    "name",
    "output_dir",
    "data.root",
    "data.cache",
    "data.check",
    "data.max_pixels",
    "data.num_workers",
    "data.palette",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "logging_steps",
    "num_sample_images",
    "num_processes",
    "num_threads",
    "timeout_seconds",
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


class _Loader(yaml.SafeLoader):
    """Safe YAML with `5e-4` a number and `no` a word, and without aliases and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise ValueError(f"line {line}: YAML aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key '{key.value}' stands twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PLAIN = {
    "tag:yaml.org,2002:float": r"[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9]\d*)",
    "tag:yaml.org,2002:bool": r"true|True|false|False",
    "tag:yaml.org,2002:null": r"null|~|",
}
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), None)


def _load_yaml(text: str) -> Any:
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"{len(text)} bytes; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse(args: Sequence[str] | None = None) -> Config:
    """Settings from the command line; on bad ones, prints one line and exits with code 2."""
    jsonargparse.set_loader("yaml", _load_yaml, exceptions=(ValueError,))
    parser = jsonargparse.ArgumentParser(
        prog="distill.py",
        description="Train a teacher (or load one), distil a student, export it to ONNX and report on all of it.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action="config", help="YAML file; flags after it win.")
    parser.add_class_arguments(Config)
    args = list(sys.argv[1:] if args is None else args)
    try:
        settings = parser.parse_args(args)
        settings.pop("config")
        config: Config = _instantiate(Config, settings)
        check(config)
    except (jsonargparse.ArgumentError, ConfigError) as error:
        files = [v for k, v in itertools.pairwise(args) if k in ("-c", "--config")]
        where = f" (in {', '.join(files)} or the flags)" if files else ""
        print(f"distill: error: {_one_line(str(error))}{where}", file=sys.stderr)
        sys.exit(2)
    return config


def _instantiate(cls: type, settings: Any) -> Any:
    values = {}
    for f in fields(cls):
        value = getattr(settings, f.name)
        section = f.default_factory if isinstance(f.default_factory, type) and is_dataclass(f.default_factory) else None
        values[f.name] = _instantiate(section, value) if section else value
    return cls(**values)


def _one_line(message: str) -> str:
    """The parser's message on one line, with the nearest known setting if a name was wrong."""
    line = " ".join(message.split())
    wrong = re.search(r"(?:unrecognized arguments: --|not accept option '|Option ')([\w.]+)", line)
    if not wrong:
        return line
    section = re.search(r"Group '([\w.]+)'", line)
    name = f"{section[1]}.{wrong[1]}" if section else wrong[1]
    near = difflib.get_close_matches(name, list(flatten(Config())), 1)
    return line + (f" (did you mean '{near[0]}'?)" if near else " (--help lists every setting)")


def check(config: Config) -> None:
    """Raises ConfigError for values that no run can have."""
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: {value} is not finite")
    positive = [
        k
        for k in flat
        if k.endswith(("_steps", "_size", "learning_rate", "temperature", "max_pixels", "_limit"))
        and not k.endswith("warmup_steps")
    ] + ["data.synthetic_train", "data.synthetic_val", "timeout_seconds"]
    for key in positive:
        numbers = flat[key] if isinstance(flat[key], list) else [] if flat[key] is None else [flat[key]]
        if any(n <= 0 for n in numbers):
            raise ConfigError(f"{key}: {flat[key]} must be above 0")
    for key in (
        "cross_entropy.weight",
        "kd.weight",
        "optimizer.weight_decay",
        "optimizer.warmup_steps",
        "optimizer.max_grad_norm",
        "data.num_workers",
        "num_sample_images",
        "seed",
    ):
        if flat[key] < 0:
            raise ConfigError(f"{key}: {flat[key]} must not be negative")
    for key in ("data.image_size", "data.crop_size", "data.synthetic_size"):
        if flat[key] is not None and len(flat[key]) != 2:
            raise ConfigError(f"{key}: {flat[key]} must be [height, width]")
    for key in ("teacher.mean", "teacher.std", "student.mean", "student.std"):
        if len(flat[key]) != 3:
            raise ConfigError(f"{key}: {flat[key]} must hold three numbers, for R, G and B")
    if not 0 <= config.optimizer.ema_decay < 1:
        raise ConfigError(f"optimizer.ema_decay: {config.optimizer.ema_decay} must be in [0, 1)")
    if not 0 <= config.cross_entropy.label_smoothing < 1:
        raise ConfigError(f"cross_entropy.label_smoothing: {config.cross_entropy.label_smoothing} must be in [0, 1)")
    if config.cross_entropy.weight == 0 and config.kd.weight == 0:
        raise ConfigError("cross_entropy.weight, kd.weight: both are 0, nothing would be learnt; set one above 0")
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ConfigError(f"name: {config.name!r} becomes a folder; use letters, digits, '_', '-' and '.'")
