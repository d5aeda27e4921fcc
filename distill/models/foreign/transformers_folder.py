"""Teachers in transformers' folders: semantic heads, and networks of queries (MaskFormer to OneFormer and EoMT)."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import ConfigError
from distill.models.foreign.contract import Kind
from distill.models.foreign.network import Found
from distill.models.foreign.source import Source
from distill.models.smp_files import read_object

ONE_SIZE = ("beit", "data2vec-vision", "eomt", "eomt_dinov3")  # made for `image_size` alone
QUERIES = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3")
TASK = "the task is semantic"  # what OneFormer is told beside the image
FINEST = 4  # pixels of a cell of the maps of queries, at most


class Semantic(nn.Module):
    """A network with one map of logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, K, h, w]`."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


class Queries(nn.Module):
    """A network of queries, each with a distribution over the classes (and none of them) and a mask.

    The score of a class is S_c = Σ_q softmax(class of q)_c · σ(mask of q). These are neither logits nor a
    distribution: their sum is below 1 where no query claims the pixel, and above 1 where several do. Cheng et al.,
    Per-Pixel Classification is Not All You Need for Semantic Segmentation, 2021, arXiv:2107.06278.

    Args:
        network: transformers' network.
        cell: pixels of a cell of the scores; coarser masks are upsampled to it, before σ.
        task: tokens that tell it what to do, `[1, n]`, if it wants some.
    """

    task: Tensor | None

    def __init__(self, network: nn.Module, cell: int = FINEST, task: Tensor | None = None):
        super().__init__()
        self.network, self.cell = network, cell
        self.register_buffer("task", task)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, float32 `[N, K, h, w]`."""
        more = {} if self.task is None else {"task_inputs": self.task.expand(len(x), -1)}
        outputs = self.network(pixel_values=x, **more)
        with torch.autocast(x.device.type, enabled=False):
            classes = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
            masks = outputs.masks_queries_logits.float()
            grid = [-(-n // self.cell) for n in x.shape[-2:]]
            if masks.shape[-2] < grid[0] or masks.shape[-1] < grid[1]:
                masks = F.interpolate(masks, grid, mode="bilinear", align_corners=False)
            return torch.einsum("nqc,nqhw->nchw", classes, masks.sigmoid())


def open_transformers(source: Source) -> Found:
    """The network in a folder.

    Raises:
        ConfigError: transformers is not installed; not a segmentation network; weights that do not fit; unlike images.
    """
    config = read_object(source.path / "config.json")
    architecture, model_type = _segmenter(source, config)
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f"teacher.checkpoint: {source.name} is a folder of transformers, which is not installed; "
            f"pip install 'distill[transformers]'"
        ) from None
    queries = model_type in QUERIES
    auto: Any = transformers.AutoModelForSemanticSegmentation
    if queries:
        auto = transformers.AutoModelForUniversalSegmentation
    if model_type == "maskformer":
        auto = transformers.MaskFormerForInstanceSegmentation  # its only class
    task = _task(source, config) if model_type == "oneformer" else None
    network = _loaded(auto, source, {} if task is None else {"is_training": False})  # else it wants texts, too
    labels = [str(network.config.id2label[i]) for i in sorted(network.config.id2label)]
    named = labels != [f"LABEL_{i}" for i in range(len(labels))]
    mean, std, bgr = _processor(source.path)
    single = not queries and len(labels) == 1  # a head trained with binary cross-entropy
    kind: Kind = "scores" if queries else "logits"
    return Found(
        Queries(network, task=task) if queries else Semantic(network),
        f"transformers {architecture}",
        2 if single else len(labels),
        kind,
        classes=(["background", *labels] if single else labels) if named else None,
        mean=mean,
        std=std,
        said_by="its processor" if mean else "teacher.mean, teacher.std",
        bgr=bgr,
        size=_only_size(network.config, model_type),
    )


def _segmenter(source: Source, config: dict[str, Any]) -> tuple[str, str]:
    """Architecture and model type, once it is sure that it is a segmentation network of a kind that is known here."""
    architectures, model_type = config.get("architectures"), str(config.get("model_type"))
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else model_type
    expected = "expected ...ForSemanticSegmentation, or MaskFormer, Mask2Former, OneFormer or EoMT"
    if not architecture.endswith("Segmentation"):
        what = "a detector" if "ObjectDetection" in architecture else "no segmentation network"
        raise ConfigError(f"teacher.checkpoint: {source.name} is {what} ({architecture}); {expected}")
    semantic = architecture.endswith("ForSemanticSegmentation")
    if not semantic and model_type not in QUERIES:
        raise ConfigError(f"teacher.checkpoint: {source.name} is a {architecture}, which is not read here; {expected}")
    return architecture, model_type


def _task(source: Source, config: dict[str, Any]) -> Tensor:
    """The tokens that tell OneFormer to segment by classes, `[1, n]`, as its own processor makes them."""
    import transformers

    length = config.get("task_seq_len", 77)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(source.path), local_files_only=True)
        tokens = tokenizer([TASK], padding="max_length", max_length=length, truncation=True)
    except Exception as error:  # transformers', tokenizers'
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"teacher.checkpoint: {source.name} is a OneFormer, which is told its task in words, and its tokenizer "
            f"cannot be loaded ({reason}); put its tokenizer.json, or vocab.json and merges.txt, into the folder"
        ) from error
    return torch.tensor(tokens["input_ids"]) * torch.tensor(tokens["attention_mask"])


def _loaded(auto: Any, source: Source, more: dict[str, Any]) -> Any:
    """The network, float32, every weight from the folder; nothing is downloaded and no code of the folder is run."""
    import transformers

    arguments = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False, **more}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            network, told = auto.from_pretrained(str(source.path), output_loading_info=True, **arguments)
    except Exception as error:  # transformers', torch's, safetensors'
        reason = " ".join(str(error).split())[:250]
        raise ConfigError(f"teacher.checkpoint: {source.name}: cannot be loaded: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if lacking := [str(name) for key in ("missing_keys", "mismatched_keys") for name in sorted(map(str, told[key]))]:
        raise ConfigError(
            f"teacher.checkpoint: {source.name}: has no fitting weights for {', '.join(lacking[:3])} "
            f"({len(lacking)} in all); a backbone alone is no teacher"
        )
    return network.eval()


def _only_size(config: Any, model_type: str) -> tuple[int, int] | None:
    """The only height and width that a network takes, if so: DPT without a backbone of another kind wants squares."""
    squares = model_type == "dpt" and (config.backbone_config is None or config.is_hybrid)
    size = getattr(config, "image_size", None)
    return (size, size) if (squares or model_type in ONE_SIZE) and isinstance(size, int) else None


def _processor(folder: Path) -> tuple[list[float] | None, list[float] | None, bool]:
    """Mean and std of RGB images in 0 to 1, and whether channels are swapped, as its image processor says."""
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_object(folder / name)
            settings |= found.get("image_processor", found)
    if not settings:
        return None, None, False
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not settings.get("do_normalize", mean is not None) or mean is None or std is None:
        mean, std = [0.0] * 3, [1.0] * 3
    per_channel = [value if isinstance(value, list) else [value] * 3 for value in (mean, std)]
    if any(len(value) != 3 for value in per_channel):
        raise ConfigError(f"{folder}: its image processor takes {len(per_channel[0])} channels; images here are RGB")
    white = 255 * factor  # what it makes of 255
    mean, std = ([n / white for n in value] for value in per_channel)
    return mean, std, bool(settings.get("do_flip_channel_order", False))
