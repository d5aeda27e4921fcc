"""Settings of the networks: the teacher and how it is asked, and the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.losses.validation import Settings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN = "own"  # in place of a name: handed over in Python, see `distill.distill`


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
