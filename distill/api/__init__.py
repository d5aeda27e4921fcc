"""What a program can call. Thin: each function leads to the module that does the work, and imports it only then.

None of them exits, handles signals or leaves a setting of the process changed. Paths are `str` or `Path`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from distill.config.data import DataConfig
    from distill.config.schema import Config
    from distill.data import Dataset, Splits
    from distill.deployment.onnx_export import OnnxFile
    from distill.deployment.predict import Summary
    from distill.deployment.runtime import Segmenter
    from distill.reporting.results import Results

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Settings from a YAML file, with others over them.

    Args:
        path: the file; the defaults if not given.
        overrides: settings by dotted names (`{"kd.temperature": 2}`) or in sections (`{"kd": {"temperature": 2}}`).

    Raises:
        ConfigError: a file that cannot be read, an unknown setting or a value that it cannot have; names it.
    """
    from distill.config.parse import load_config

    return load_config(path, overrides)


def run(config: Config, stop: Callable[[], bool] = lambda: False) -> Results:
    """Trains, exports and reports, as `distill train` does. Called again, it goes on where it was.

    Args:
        config: the settings, see `load_config`.
        stop: asked at every step whether to save the state and raise `Stopped`.

    Returns:
        What `results.json` in the run's folder holds, as attributes; the student's folder is `results.student.path`,
        and `results.files.errors` says why a file is not published.

    Raises:
        ConfigError: bad input of any kind, in one line.
        ExportError: the student's architecture takes one size of images, and they have several.
        Stopped: `stop` said so.
        FloatingPointError: a loss was not finite; names the step and the images.
    """
    from distill.pipeline import distil

    return distil(config, stop)


def distill(
    *,
    student: nn.Module,
    teacher: nn.Module | Callable[[Any], Any] | str | Path,
    train: Any,
    val: Any,
    classes: Sequence[str],
    output_dir: str | Path,
    max_train_steps: int = 500,
    learning_rate: float = 1e-3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    ignore_index: int = 255,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Results:
    """Distills a network of yours from a network of yours, on data of yours: `run`, with all of these handed over.

    The same loop, baseline, check of the teacher, scores, report and ONNX file. Called again with the same arguments it
    goes on where it was, to the bit. The modules are copied, and stay as they are; the trained weights are in
    `<output_dir>/student/model.safetensors`, and `load(output_dir, module=student)` reads them.

    Args:
        student: from normalized float images `[N, 3, H, W]` to logits `[N, C, h, w]`: a tensor, the first of a tuple,
            or the `out` or `logits` of a dict or an object. Logits of a smaller map are upsampled. Sizes are padded to
            multiples of 32 (`student__options={"stride": 1}` for another number).
        teacher: likewise; or a function from such images to logits; or the folder of a run, or anything else that
            `teacher.checkpoint` takes. Of a function nothing is known, so another one is not noticed when a run
            resumes.
        train: a data set with `len()` and, by index, pairs of an image and a mask (or dicts of `image` and `mask`).
            Images: PIL's, or RGB arrays or tensors, uint8 or floats from 0 to 1, not normalized. Masks: a class id for
            each pixel. It may augment with the generators of Python, NumPy and torch: they are seeded for each item.
        val: likewise, to score on.
        classes: names in the order of the ids.
        output_dir: where the run goes.
        max_train_steps: the student's optimizer steps.
        learning_rate: its peak learning rate (AdamW).
        mean: of the RGB channels (images in 0 to 1) that the networks' input is normalized with, ImageNet's by default,
            as for networks of SMP, timm and torchvision; `teacher__mean` if the teacher's is another.
        std: standard deviation likewise. `mean=[0] * 3, std=[1] * 3` gives images in 0 to 1, `std=[1 / 255] * 3` in 0
            to 255.
        ignore_index: label in the masks that does not count; may be negative.
        stop: asked at every step whether to save the state and raise `Stopped`.
        settings: any other setting, with `__` for the dot: `per_device_train_batch_size=16, kd__temperature=2`, or a
            section: `kd={"temperature": 2}`. Crops have the size of the first training image, unless
            `data__crop_size` is given.

    Returns:
        What `results.json` in `output_dir` holds; if the student cannot be exported, `results.files.errors` says why.

    Raises:
        ConfigError: bad input of any kind, in one line.
        Stopped: `stop` said so.
        FloatingPointError: a loss was not finite; names the step and the images.
    """
    from distill.api.handover import distil_own

    flat: dict[str, Any] = {"student.max_train_steps": max_train_steps, "student.learning_rate": learning_rate}
    flat |= {f"{who}.{key}": list(x) for who in ("teacher", "student") for key, x in (("mean", mean), ("std", std))}
    flat |= {name.replace("__", "."): value for name, value in settings.items()}
    flat |= {"output_dir": str(output_dir), "data.classes": list(classes)}
    return distil_own(student, teacher, train, val, flat, ignore_index, stop)


def load(
    path: str | Path,
    module: nn.Module | None = None,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    num_threads: int = 0,
    trusted: bool = False,
) -> Segmenter:
    """A finished network, with `.mask(image)`, `.logits(image)`, `.classes` and `.palette`.

    Args:
        path: an ONNX file, a folder written by SMP's `save_pretrained`, or a run (its student, as ONNX if exported).
        module: the module that the weights in the folder belong to, if it was one of yours; it is copied.
        mean: for such a module, if the folder does not say.
        std: likewise.
        num_threads: that an ONNX file runs on; 0 leaves it to onnxruntime.
        trusted: run an ONNX file in this process, without limits on memory and time.

    Raises:
        ConfigError: none of these, or one that cannot be used.
    """
    if module is None:
        from distill.deployment.runtime import open_model

        return open_model(path, num_threads, trusted)
    from distill import models
    from distill.deployment.torch_runtime import TorchSegmenter

    folder = Path(path) / "student" if (Path(path) / "student").is_dir() else Path(path)
    return TorchSegmenter(models.load(folder, None, mean, std, module), str(folder))


def open_data(config: Config | DataConfig) -> Splits:
    """The data sets that settings name: `.train`, `.val`, `.classes`, `.palette`; reads no image yet.

    Raises:
        ConfigError: a missing folder, an image without mask, an empty split, no or too many classes.
    """
    from distill.config.schema import Config
    from distill.data import open_splits

    return open_splits(config.data if isinstance(config, Config) else config)


def evaluate(
    model: Segmenter | str | Path,
    data: Any,
    *,
    split: str = "val",
    teacher: Segmenter | str | Path | None = None,
    window: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    ignore_index: int = 255,
) -> dict[str, Any]:
    """Scores a finished network: mIoU, boundary IoU, calibration, agreement with a teacher, each image.

    Args:
        model: see `load`.
        data: settings (`Config`), a data set of `open_data`, or one of yours, as for `distill`.
        split: of settings: `train` or `val`.
        teacher: another network, to agree with.
        window: `(height, width)` of windows that slide over large images.
        scales: sizes at which each image is looked at.
        flip: also look at the mirrored image.
        ignore_index: of data of yours: label that does not count.

    Returns:
        The numbers: `mean_iou`, `iou` by class, `boundary_iou`, `calibration_error`, `agreement`, `images`, …

    Raises:
        ConfigError: a network or data that cannot be used, or that have other classes.
        FloatingPointError: values that are not finite; names the image.
    """
    from distill.deployment.tiles import Tiled
    from distill.evaluation import detailed

    network = load(model) if isinstance(model, (str, Path)) else model
    other = load(teacher) if isinstance(teacher, (str, Path)) else teacher
    dataset, classes = _dataset(data, split, network.classes, ignore_index, network.multilabel)
    many = dataset.read(0)[1].ndim == 3
    for name, one in (("model", network), ("teacher", other)):
        if one:
            detailed.check_classes(Path(model if isinstance(model, (str, Path)) else name), one, classes, many)
    probabilities: detailed.Probabilities = detailed.plain(network)
    if window:
        probabilities = detailed.Sliding(probabilities, window)
        other = other and Tiled(other, window)
    if flip or list(scales) != [1.0]:
        probabilities = detailed.augmented(probabilities, scales, flip)
    found = detailed.assess(len(classes), probabilities, dataset, other)
    return detailed.results(found, classes, dataset.names)


def predict(
    model: Segmenter | str | Path,
    inputs: str | Path | Sequence[str | Path],
    output_dir: str | Path = "predictions",
    *,
    overlay: float | None = None,
    teacher: Segmenter | str | Path | None = None,
    window: Sequence[int] | None = None,
    longest_side: int | None = None,
    max_pixels: int | None = None,
    workers: int = 1,
) -> Summary:
    """Segments images and videos, and writes their masks; for one image in memory see `load(…).mask(image)`.

    Args:
        model: see `load`.
        inputs: images, videos, folders (with all folders in them), globs.
        output_dir: where `masks/`, `overlays/`, … go.
        overlay: opacity of overlays that are written, too, 0 to 1.
        teacher: another network, to be shown beside the first.
        window: `(height, width)` of windows that slide over large images, overlaps blended.
        longest_side: larger images are made smaller for the network.
        max_pixels: of an image.
        workers: images at once.

    Returns:
        Counts: `.done`, `.skipped` (a line each), `.pixels` by class, `.seconds`.

    Raises:
        ConfigError: a network or input that cannot be used.
        OSError: the results cannot be written.
    """
    from distill.deployment import media
    from distill.deployment.predict import predict
    from distill.deployment.tiles import Shrunk, Tiled

    def opened(one: Segmenter | str | Path) -> Segmenter:
        network = load(one) if isinstance(one, (str, Path)) else one
        network = Tiled(network, window) if window else network
        return Shrunk(network, longest_side) if longest_side else network

    folder = Path(output_dir)
    files = media.find([str(one) for one in ([inputs] if isinstance(inputs, (str, Path)) else inputs)], folder)
    other = opened(teacher) if teacher is not None else None
    return predict(opened(model), files, folder, overlay, other, workers, max_pixels or media.MAX_PIXELS)


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    output: str = "logits",
    opset: int = 18,
    ignore_index: int = 255,
    multilabel: bool = False,
) -> OnnxFile:
    """Writes a network as one ONNX file that takes raw images, and proves it on real ones.

    Args:
        model: a module of yours, as for `distill`; a folder written by SMP's `save_pretrained`; or a run.
        path: where the file goes.
        data: images with labels to prove it on; see `evaluate`.
        classes: names in the order of the ids, for a module or a folder without names.
        mean: see `distill`; for a module, or a folder that does not say.
        std: likewise.
        output: what the file gives beside the mask: `logits`, the `confidence` or `none`.
        opset: ONNX opset.
        ignore_index: of data of yours: label that does not count.
        multilabel: for a module: its classes do not exclude each other; a folder says so itself.

    Returns:
        The file with its proof: largest differences, agreement, mIoU, sizes, bytes.

    Raises:
        ConfigError: a network or data that cannot be used.
        ExportError: it cannot be exported, or the file does not do what the network does.
    """
    from dataclasses import replace

    from distill import models
    from distill.config.networks import OWN, NetworkConfig
    from distill.config.schema import ExportConfig
    from distill.data.datasets import check_classes
    from distill.deployment.onnx_export import export_onnx
    from distill.errors import ConfigError
    from distill.reporting.artifacts import about

    if output not in ("logits", "confidence", "none"):
        raise ConfigError(f"output: {output!r} is not one of logits, confidence, none")
    if isinstance(model, (str, Path)):
        folder = Path(model) / "student" if (Path(model) / "student").is_dir() else Path(model)
        network = models.load(folder, classes, mean, std)
    elif classes is None:
        raise ConfigError("classes: name them, in the order of their ids; a module does not know them")
    else:
        head: Literal["softmax", "multilabel"] = "multilabel" if multilabel else "softmax"
        settings = NetworkConfig(arch=OWN, options={}, mean=list(mean), std=list(std), head=head)
        network = models.build(settings, classes, model)
    dataset, _ = _dataset(data, "val", network.classes, ignore_index, network.multilabel)
    config = replace(ExportConfig(), opset=opset, output=output)  # type: ignore[arg-type]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return export_onnx(network, Path(path), dataset, config, about(network, check_classes(network.classes, None)[1]))


def _dataset(
    data: Any, split: str, classes: list[str], void: int, multilabel: bool = False
) -> tuple[Dataset, list[str]]:
    """A data set, from whatever says which, and the names of its classes; those of the network if it has none."""
    from dataclasses import replace

    from distill.config.data import DataConfig
    from distill.config.schema import Config
    from distill.data import Dataset, Splits, as_dataset, open_splits
    from distill.errors import ConfigError

    if split not in ("train", "val"):
        raise ConfigError(f"split: {split!r} is not one of train, val")
    if isinstance(data, (Config, DataConfig)):
        section = data.data if isinstance(data, Config) else data
        data = open_splits(replace(section, classes=section.classes or classes))
    if isinstance(data, Splits):
        return getattr(data, split), data.classes
    if not isinstance(data, Dataset):
        data = as_dataset(data, split, len(classes), void, multilabel=multilabel)
    return data, classes
