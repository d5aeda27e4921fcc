"""Every setting, once: dataclasses that check themselves, with a line of help each; those of a loss stand in `losses`.

Imports nothing heavy, so a typo is reported before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distill.losses.sections import TermsConfig
from distill.losses.validation import Settings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMED_BY_SETTINGS = ("folders", "csv", "mmseg", "hf")  # formats whose classes `data.classes` names
OWN = "own"  # in place of a name: handed over in Python, see `distill.distill`


@dataclass
class DataConfig(Settings):
    """Images and masks.

    Args:
        format: `synthetic` (drawn scenes, no files), `folders` (two folders a split, matched by stem, with all below
            them), `csv` (lists of an image and a mask a line), `mmseg` (`img_dir`, `ann_dir`), `hf` (a folder of
            Hugging Face's save_to_disk, or of Parquet files), or a public data set as it is unpacked: `camvid`, `voc`,
            `cityscapes`, `ade20k`, `coco_stuff`; `own` in Python only.
        root: folder of the data set; relative paths below start here.
        in_channels: channels of the images; null reads any file of 8 bits as RGB; 1 reads gray (color of 8 bits is made
            gray); n reads files of n channels. With a number, PNG, TIFF and `.npy` of 16 bits or floats are read as
            they are, all of one type.
        train_images: format `folders`: folder of the training images.
        train_masks: format `folders`: folder of the training masks (8-bit PNG, one class id a pixel); null for images
            without labels.
        train_list: format `csv`: file of the training images.
        unlabeled: folder of images without masks; the student learns from what the teacher says of them.
        unlabeled_share: share of a step's images that come from there, between 0 and 1.
        val_images: format `folders`: folder of the validation images.
        val_masks: format `folders`: folder of the validation masks; null only where `train_masks` is.
        val_list: format `csv`: file of the validation images.
        image_column: format `hf`: column of the images; `image` if not given.
        mask_column: format `hf`: column of the masks; `label`, `annotation` or `mask` if not given.
        unpacked: format `hf`: folder into which its images are unpacked once; `unpacked` in `root` if not given.
        val_fraction: share of the training images, chosen by their names, that is set aside for validation; 0 takes
            the data set's own.
        val_group: regular expression that is searched for in an image's name with its folders: images for which its
            first group (or all that it matches) is the same, such as frames of one video, stay on one side.
        leave_out: regular expression: training images in whose names with their folders it is found (one drive, one
            hospital) are not trained on, `unlabeled` ones neither, and are the validation images.
        image_suffix: formats `folders` and `mmseg`: end of an image's name, without `.jpg`, that its mask's lacks.
        mask_suffix: formats `folders` and `mmseg`: end of a mask's name that its image's lacks, such as `_mask`; both
            may then lie in one folder.
        classes: class names in the order of their ids; public data sets and `synthetic` bring their own. A single name
            is that of the foreground, in masks of 0 and 1.
        multilabel: a pixel may have any number of the classes: `synthetic`; or `folders` whose masks are a folder of
            PNGs for each class (`train/masks/<class>/`), or files of a plane for each (`.npy`, TIFF). They hold 0, 1
            and void; with 0 and 255, set `labels: {255: foreground}`.
        labels: changes of the labels: `{name or value in the masks: name of a class, or ignore}`: merges, renames, and
            gives values that are not numbers of the list a class, such as `{255: lane}`; `'*'` stands for all that is
            not named, as in `{car: car, '*': background}`.
        mask_colors: format `folders`, `mmseg`, `csv` and `hf`: masks are pictures, with one `[r, g, b]` a class in the
            order of `classes`; further colors are void. `palette` takes those of `palette`.
        reduce_zero_label: label 0 is void, and class ids start at 1.
        palette: one `[r, g, b]` a class for pictures; made up if not given.
        ignore_index: value of void in the mask files; never trained on, never scored.
        image_size: `[height, width]` to which images and masks are resized when read; as they are if not given.
        windows: `[height, width]`: larger images are taken for windows of this size, each an image of its own: those to
            learn from overlap by a third, those to score on do not, so that each pixel counts once.
        decoded_dir: folder where images and masks are kept as decoded, a byte a value, and mapped into memory: each
            file is decoded once, not each time. What is in it may be removed at any time.
        crop_size: `[height, width]` of the training crops; smaller images are padded with void.
        augmentations: albumentations transforms before the crop, each `{Name: {argument: value}}`.
        label_share: share of the training images, spread evenly over them, that is trained on; `unlabeled` may name
            the folder of them all.
        max_train_samples: use only that many training images.
        max_eval_samples: use only that many validation images.
        cache: keep decoded images in memory (once a worker), but neither windows nor what `decoded_dir` holds.
        max_pixels: larger images are refused before they are decoded.
        check: what is looked at before the first step: `off`, `headers` (every file opened) or `full` (every file
            decoded, every label looked at); not again in the same output folder as long as no file changes.
        allow_missing_classes: go on if no training mask shows a pixel of some class.
        max_void_share: go on up to this share of void pixels in the training masks, 0 to 1.
        synthetic_train: format `synthetic`: number of training scenes.
        synthetic_val: format `synthetic`: number of validation scenes.
        synthetic_size: format `synthetic`: `[height, width]` of a scene.
        synthetic_channels: format `synthetic`: channels of a scene; 3 are red, green and blue.
        synthetic_depth: format `synthetic`: type of its values.
        num_workers: processes that read and augment images, for each training process; 0 reads in the training
            process itself.
    """

    format: Literal[
        "synthetic", "camvid", "folders", "csv", "mmseg", "hf", "voc", "cityscapes", "ade20k", "coco_stuff", "own"
    ] = "synthetic"
    root: str = "."
    in_channels: int | None = None
    train_images: str = "train/images"
    train_masks: str | None = "train/masks"
    train_list: str = "train.csv"
    unlabeled: str | None = None
    unlabeled_share: float = 0.5
    val_images: str = "val/images"
    val_masks: str | None = "val/masks"
    val_list: str = "val.csv"
    image_column: str | None = None
    mask_column: str | None = None
    unpacked: str | None = None
    val_fraction: float = 0.0
    val_group: str | None = None
    leave_out: str | None = None
    image_suffix: str = ""
    mask_suffix: str = ""
    classes: list[str] | None = None
    multilabel: bool = False
    labels: dict[str | int, str] | None = None
    mask_colors: list[list[int]] | Literal["palette"] | None = None
    reduce_zero_label: bool = False
    palette: list[list[int]] | None = None
    ignore_index: int = 255
    image_size: list[int] | None = None
    windows: list[int] | None = None
    decoded_dir: str | None = None
    crop_size: list[int] = field(default_factory=lambda: [96, 128])
    augmentations: list[dict[str, dict[str, Any]]] = field(
        default_factory=lambda: [
            {"RandomScale": {"scale_limit": [-0.25, 0.25], "p": 1.0}},
            {"HorizontalFlip": {"p": 0.5}},
            {"RandomBrightnessContrast": {"p": 0.5}},
        ]
    )
    label_share: float = 1.0
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    cache: bool = True
    max_pixels: int = 50_000_000
    check: Literal["off", "headers", "full"] = "full"
    allow_missing_classes: bool = False
    max_void_share: float = 0.5
    synthetic_train: int = 400
    synthetic_val: int = 40
    synthetic_size: list[int] = field(default_factory=lambda: [128, 160])
    synthetic_channels: int = 3
    synthetic_depth: Literal["uint8", "uint16"] = "uint8"
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("image_size", "windows", "crop_size", "max_train_samples", "max_eval_samples", "max_pixels")
        self.above_zero("synthetic_train", "synthetic_val", "synthetic_size", "synthetic_channels", "in_channels")
        self.not_negative("ignore_index", "num_workers")
        for name in ("in_channels", "synthetic_channels"):
            self.require((getattr(self, name) or 1) <= 512, name, "must be at most 512")
        self.require(0 <= self.val_fraction < 1, "val_fraction", "must be from 0 to below 1")
        for name in ("val_group", "leave_out"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                text = getattr(self, name)
                raise ValueError(f"{name}: {text!r} is no regular expression ({error}); correct it") from None
        self.require(not (self.val_fraction and self.leave_out), "leave_out", "set this or val_fraction, not both")
        self.zero_to_one("max_void_share")
        self.require(0 < self.label_share <= 1, "label_share", "must be above 0 and at most 1")
        self.require(0 < self.unlabeled_share < 1, "unlabeled_share", "must be above 0 and below 1")
        for name in ("image_size", "windows", "crop_size", "synthetic_size"):
            size = getattr(self, name)
            self.require(size is None or len(size) == 2, name, "must be [height, width]")
        fits = self.windows is None or self.image_size is None
        self.require(fits, "windows", "are of images as they are; leave them or image_size out")
        fits = all(a >= b for a, b in zip(self.windows or self.crop_size, self.crop_size, strict=True))
        self.require(fits, "windows", f"must be at least as large as crop_size {self.crop_size}")

    @property
    def val_from_train(self) -> bool:
        """Whether the validation images are taken from the training images."""
        return bool(self.val_fraction or self.leave_out)


@dataclass
class NetworkConfig(Settings):
    """A network by the names of segmentation_models_pytorch, and how long it is trained.

    Args:
        arch: `unet`, `fpn`, `deeplabv3plus`, `segformer`, `fcn`, `cnn` (which has its own encoder), …; `own` in Python
            only, for a network that is handed over.
        encoder_name: encoder: any of SMP's, or any of timm's as `tu-<name>`.
        encoder_weights: pretrained encoder weights: null (from scratch), a name such as `imagenet` (downloaded), or a
            `.safetensors` file with timm's names.
        options: further arguments of the architecture, such as `{decoder_pyramid_channels: 64}`.
        head: `softmax`, a channel for each class; or `sigmoid`, one channel for two classes, which says how likely
            each pixel is of the second. Either kind can teach the other. `multilabel` goes with `data.multilabel`: a
            channel for each class, which says how likely it is, whatever the others are.
        channels: which channels of the images it takes, counted from 0, such as `[0, 1, 2]`; all if not given.
        mean: of each channel, which the network's input is normalized with; of images of 8 bits in 0 to 1, else in the
            images' own units. Of other images than RGB of 8 bits it is measured if not given.
        std: standard deviation likewise.
        max_train_steps: optimizer steps.
        learning_rate: peak learning rate.
    """

    arch: str = "fpn"
    encoder_name: str = "resnet18"
    encoder_weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    head: Literal["softmax", "sigmoid", "multilabel"] = "softmax"
    channels: list[int] | None = None
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    max_train_steps: int = 400
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("max_train_steps", "learning_rate", "std")
        self.not_negative("channels")
        self.require(self.channels is None or bool(self.channels), "channels", "must hold at least one")

    @property
    def weights_file(self) -> Path | None:
        """The file that the encoder's weights are read from, if it is one."""
        name = self.encoder_weights or ""
        return Path(name) if name.endswith(".safetensors") else None


@dataclass
class CacheConfig(Settings):
    """The teacher's answers on disk: it is asked once for each whole image, not at every step.

    Args:
        enabled: use it; null does where it can be used, and where the teacher would be asked more often without it. It
            cannot be used where a loss needs feature maps of the teacher, or where a data set of your own gives other
            pixels each time.
        dtype: how logits are kept: `int8` (a byte a class; the 20 likeliest of more than 40 classes) or `float16`.
        dir: folder of the answers; `teacher_cache` in the run's folder if not given. Runs may share one.
        max_gb: larger ones are refused before the teacher is asked.
    """

    enabled: bool | None = None
    dtype: Literal["int8", "float16"] = "int8"
    dir: str | None = None
    max_gb: float = 20.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("max_gb")


@dataclass
class TTAConfig(Settings):
    """Test-time augmentation of the teacher: each image asked several times, and its probabilities averaged.

    Args:
        scales: factors by which images are resized, 1 among them.
        flip: ask for the mirror image too.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("scales")
        self.require(1.0 in self.scales, "scales", "must hold 1, the size of the image itself")


@dataclass
class TeacherConfig(NetworkConfig):
    """The large network.

    Args:
        checkpoint: a run; SMP's or transformers' folder, or its id on the Hub; `torchvision/<name>[:<weights>]`; an
            `.onnx` or `.pt2` file; or weights alone (`.safetensors`, `.pth`, `.ckpt`) of the network that `arch` and
            `encoder_name` say. Trained here if not given.
        python: `path.py:function`: a Python file whose function gives the teacher, a module; its code is run.
        class_names: names of the teacher's outputs, in their order, where it does not say them itself.
        classes: what a class of the teacher is called in the data: `{rider: person}`; null leaves it out. Other classes
            are matched by name, whatever its case, spaces and punctuation.
        allow_untaught: go on with classes of the data that no class of the teacher stands for.
        output: what its outputs are: `logits`, `probabilities`, `scores` (not negative, of any sum), `sigmoid` or
            `labels`; found out if `auto`.
        label_smoothing: share of probability that a teacher of labels alone leaves for the other classes.
        bgr: it takes images as BGR.
        window: `[height, width]` of windows in which it sees larger images, overlapping and blended; for teachers of
            one size it is that size.
        trusted: run an `.onnx` or `.pt2` file without limits on what it may do; a `.pt2` file can run any code.
        allow_near_chance: go on with a teacher whose predictions are hardly better than chance.
        more: further teachers, folders as for `checkpoint`, whose probabilities are averaged with those of the first.
        weights: how much each teacher counts, the first and then those of `more`; all the same if not given.
        tta: each image asked several times.
        cache: its answers on disk.
    """

    checkpoint: str | None = None
    python: str | None = None
    class_names: list[str] | None = None
    classes: dict[str, str | None] | None = None
    allow_untaught: bool = False
    output: Literal["auto", "logits", "probabilities", "scores", "sigmoid", "labels"] = "auto"
    label_smoothing: float = 0.1
    bgr: bool = False
    window: list[int] | None = None
    trusted: bool = False
    allow_near_chance: bool = False
    more: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    tta: TTAConfig = field(default_factory=TTAConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("weights", "window")
        for name in ("class_names", "classes", "window"):
            wanted = getattr(self, name) is None or self.source is not None
            self.require(wanted, name, "is for a teacher that checkpoint or python names; leave it out")
        self.require(self.window is None or len(self.window) == 2, "window", "must be [height, width]")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "must be at least 0 and below 1")
        self.require(
            not (self.python and self.checkpoint), "python", "names a teacher, and so does checkpoint; drop one"
        )
        count = len(self.more) + 1
        fits = self.weights is None or len(self.weights) == count
        self.require(fits, "weights", f"must hold {count} numbers, one for each teacher")

    @property
    def source(self) -> str | None:
        """What is named as the teacher; None if it is trained here, or handed over."""
        return self.checkpoint or self.python

    @property
    def is_ensemble(self) -> bool:
        """Whether its answer is an average of several."""
        return bool(self.more or self.tta.flip or self.tta.scales != [1.0])


@dataclass
class StudentConfig(NetworkConfig):
    """The compact network."""

    encoder_name: str = "tu-mobilenetv3_small_050"
    options: dict[str, Any] = field(
        default_factory=lambda: {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}
    )
    max_train_steps: int = 800
    learning_rate: float = 3e-3


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
