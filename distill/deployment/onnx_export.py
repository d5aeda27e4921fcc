"""The student as one ONNX file that takes raw images of any size, published only once it is proven on real ones."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from PIL import Image
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError
from torch.onnx.ops import symbolic

from distill.batch import VOID, upsample
from distill.config.schema import ExportConfig
from distill.data import Dataset
from distill.deployment.onnx_ops import TRANSLATIONS, pad_to_stride
from distill.deployment.runtime import MULTILABEL
from distill.errors import ExportError
from distill.metrics import Comparison
from distill.models import FIXED_SIZE, Network, OwnNetwork, streamlined
from distill.storage import Record, sha256
from distill.visualize import resized

MIN_AGREEMENT = 0.9999
# Of the largest logit. Against float64, files were measured to be off by at most 4e-6 of it; torch in float32 by up to
# 5e-4: its GroupNorm of maps of one pixel, its places of pixels in large maps.
ROUNDING = 5e-5
OTHER_SIZES = ((1, 1), (97, 130), (480, 360), (720, 960))
OUTPUTS = ("mask", "logits", "confidence")


class Deployed(nn.Module):
    """A network from raw images to class ids: what the file holds."""

    def __init__(self, network: Network):
        """Wraps a network."""
        super().__init__()
        self.network = streamlined(network)
        self.pad = Network.pad if is_fixed(network) else pad_to_stride

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images `[N, H, W, C]` as stored: class ids uint8 `[N, H, W]`, logits `[N, C, H, W]`, and the confidence.

        That is the probability of the class, 0 to 1 `[N, H, W]`. With many labels a pixel, mask and confidence are
        `[N, C, H, W]`: 1 where a class is likelier than not, and how likely it is what the mask says.
        """
        height, width = image.shape[1:3]
        x = self.pad(self.normalize(image.permute(0, 3, 1, 2)), self.network.stride)
        outputs = self.network.outputs(x, (height, width))
        # Classes are found in the padding too: to cut it off 8-bit ids costs nothing, off float logits a copy.
        padded = upsample(outputs.logits, outputs.padded_size, outputs.padded_size, outputs.align_corners)
        size = symbolic("Shape", (image,), {"start": 1, "end": 3}, dtype=torch.int64, shape=(2,))

        def cut(whole: Tensor) -> Tensor:  # height and width at once: torch would cut and copy twice
            parts = (whole, torch.tensor([0, 0]), size, torch.tensor([-2, -1]))
            return symbolic("Slice", parts, dtype=whole.dtype, shape=(*whole.shape[:-2], height, width))

        if self.network.multilabel:
            logits = cut(padded)
            return cut((padded > 0).to(torch.uint8)), logits, logits.abs().sigmoid()
        mask, logits = cut(padded.argmax(1).to(torch.uint8)), cut(padded)
        confidence = 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)
        return mask, logits, confidence

    def normalize(self, image: Tensor) -> Tensor:
        """`Network.normalize` in one pass over the image."""
        mean, variance = self.network.mean.flatten(), self.network.std.flatten().square()
        image = image.to(mean.dtype)
        image = image if self.network.bands is None else image[:, self.network.bands]
        return F.batch_norm(image, mean, variance, eps=0.0)


@dataclass
class Proof(Record):
    """What the file was compared with the network on, and how they differ.

    Attributes:
        max_logit: largest absolute value of a logit, at least 1: the scale of what rounding may change.
        max_abs_diff: largest difference of two logits; to those of the network in float64, where float32 is too coarse.
        max_confidence_diff: largest difference of two confidences, if the file gives them.
        argmax_agreement: share of pixels with the same class.
        max_margin: largest lead of the network's class where the file says another.
        mean_iou: of the file on the whole validation set.
        mean_iou_diff: to that of the network.
        shapes: `[N, H, W]` of the images it was run on.
        pixels: how many pixels were compared.
    """

    max_logit: float = 0.0
    max_abs_diff: float = 0.0
    max_confidence_diff: float = 0.0
    argmax_agreement: float = 0.0
    max_margin: float = 0.0
    mean_iou: float = 0.0
    mean_iou_diff: float = 0.0
    shapes: list[list[int]] = field(default_factory=list)
    pixels: int = 0

    def faults(self) -> list[str]:
        """What is beyond its limit, in words."""
        rounding = ROUNDING * self.max_logit
        limits = (
            ("max_abs_diff", self.max_abs_diff, rounding),
            ("max_confidence_diff", self.max_confidence_diff, rounding),  # of a softmax: at most that of its logits
            # One of the two logits rises, the other falls. The mIoU needs no limit beside this, and has none that
            # fits: of a rare class, a single tied pixel changes it by 1e-3.
            ("max_margin", self.max_margin, 2 * rounding),
        )
        found = [f"{name} {value:.3g}, at most {limit:.3g}" for name, value, limit in limits if not value <= limit]
        if not self.argmax_agreement >= MIN_AGREEMENT:
            found.append(f"argmax_agreement {self.argmax_agreement:.6f}, at least {MIN_AGREEMENT}")
        return found


@dataclass(kw_only=True)
class OnnxFile(Proof):
    """A published ONNX file.

    Attributes:
        bytes: its size.
        sha256: of its content.
        fixed_size: `[H, W]` of the only images that it takes, if it is made for one size.
        made_from: what it depends on: the hash of the weights, and the settings of the export.
    """

    bytes: int
    sha256: str
    fixed_size: list[int] | None = None
    made_from: dict[str, Any] = field(default_factory=dict)


def export_onnx(
    network: Network,
    path: Path,
    dataset: Dataset,
    config: ExportConfig,
    metadata: dict[str, Any],
    sizes: Sequence[tuple[int, int]] = OTHER_SIZES,
) -> OnnxFile:
    """Writes the ONNX file and proves it; a file that fails is not published.

    Args:
        network: the student, on any device; it is moved to the CPU.
        path: where the file goes.
        dataset: real images with labels to prove it on, and whose size the trace takes.
        config: opset, and which output there is beside the mask.
        metadata: goes into the file, as JSON.
        sizes: `(height, width)` to which images are resized for the proof, beside their own.

    Returns:
        The file with its proof.

    Raises:
        ExportError: the file and the network differ, or it takes one size only and the images have several.
    """
    network = network.cpu().eval()
    height, width = dataset.read(0)[0].shape[:2]
    refuse_several_sizes(type(network.model).__name__, dataset)
    temporary, whole = (path.with_name(f".{path.name}.{part}.tmp") for part in ("file", "whole"))
    try:
        write_onnx(network, temporary, whole, (height, width), config, metadata)
        for file in (temporary, whole):
            onnx.checker.check_model(str(file), full_check=True)
        proof = prove(network, temporary, whole, dataset, () if is_fixed(network) else sizes)
        if faults := proof.faults():
            raise ExportError(f"{path}: not published, it differs from the network: {'; '.join(faults)}")
        temporary.replace(path)
    except (ExportError, OSError):
        raise
    except Exception as error:
        if not isinstance(network, OwnNetwork):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportError(f"{path}: {network.kind} cannot be exported ({reason})") from error
    finally:
        for file in (temporary, whole):
            file.unlink(missing_ok=True)
    fixed_size = [height, width] if is_fixed(network) else None
    return OnnxFile(**vars(proof), bytes=path.stat().st_size, sha256=sha256(path), fixed_size=fixed_size)


def write_onnx(
    network: Network,
    path: Path,
    whole: Path,
    size: Sequence[int],
    config: ExportConfig,
    metadata: dict[str, Any],
) -> None:
    """One file without external data, with the outputs that are wanted; and the same graph with all outputs.

    Batch, height and width are free where the architecture allows it.
    """
    free = {0: torch.export.Dim.DYNAMIC}
    if not is_fixed(network):
        free |= {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    image = torch.zeros(2, *size, network.image.channels, dtype=getattr(torch, network.image.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        try:
            program = torch.onnx.export(
                Deployed(network),
                (image,),
                input_names=["image"],
                output_names=list(OUTPUTS),
                dynamic_shapes={"image": free},
                opset_version=config.opset,
                dynamo=True,
                verbose=False,
                custom_translation_table=TRANSLATIONS,
            )
        except OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
            name = getattr(network.model, "name", type(network.model).__name__)
            raise ExportError(f"{path}: torch.onnx cannot export {name} ({reason}); take another encoder") from error
    assert program is not None
    model = ClearMetadataAndDocStringPass()(program.model).model  # where in the sources each node comes from
    many = {MULTILABEL: True} if network.multilabel else {}
    for name, value in (metadata | many).items():
        model.metadata_props[name] = json.dumps(value)
    onnx_ir.save(model, str(whole))  # given the path, torch.onnx.export would split the weights off
    outputs = model.graph.outputs
    outputs[:] = [value for value in outputs if value.name in ("mask", config.output)]
    onnx_ir.save(RemoveUnusedNodesPass()(model).model, str(path))


def is_fixed(network: Network) -> bool:
    """Whether the file works for one image size only."""
    return getattr(network, "fixed_size", type(network.model).__name__.lower() in FIXED_SIZE)


def refuse_several_sizes(arch: str, dataset: Dataset) -> None:
    """Raises ExportError if files of an architecture work for one image size only, and the images have several."""
    if arch.lower() not in FIXED_SIZE:
        return
    first, *others = (list(dataset.read(i)[0].shape[:2]) for i in range(len(dataset)))
    if other := next((size for size in others if size != first), None):
        raise ExportError(
            f"{arch} is exported for one size; the validation images have {first} and {other}: set data.image_size, "
            f"take another architecture, or set export.enabled to false"
        )


def open_session(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from images `[N, H, W, C]` to all outputs of a file by name."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))


@torch.no_grad()
def prove(network: Network, path: Path, whole: Path, dataset: Dataset, sizes: Sequence[tuple[int, int]]) -> Proof:
    """Runs network and file over the whole data set, and at other sizes and in batches over a few resized images.

    Args:
        network: what the file is to do.
        path: the file.
        whole: the same graph with its logits, for a file that gives none.
        dataset: real images with labels.
        sizes: `(height, width)` of the resized images.

    Raises:
        ExportError: one of them gives values that are not finite, or the file takes no images of that size.
    """
    run, run_whole = open_session(path), open_session(whole)
    exact = copy.deepcopy(network).double()
    proof, masks = Proof(), Comparison(len(network.classes), network.multilabel)
    refused: list[list[int]] = []  # sizes
    for image, mask in _proof_images(dataset, sizes):
        shape = list(image.shape[:3])
        if shape[1:] in refused:
            continue
        x = torch.tensor(image).permute(0, 3, 1, 2)
        try:
            logits = network(x).upsampled()
        except (ValueError, RuntimeError) as error:
            # torch's group norm refuses one image whose map is one pixel, modules of somebody's own refuse other sizes:
            # nothing to compare with.
            if isinstance(error, RuntimeError) and not isinstance(network, OwnNetwork):
                raise
            if (mask != VOID).any():
                raise
            refused.append(shape[1:])
            continue
        found = {name: torch.from_numpy(value) for name, value in run(image).items()}
        found_logits = found.get("logits", torch.from_numpy(run_whole(image)["logits"]))
        # Looked at before argmax hides them.
        if not (logits.isfinite().all() and all(t.isfinite().all() for t in (found_logits, *found.values()))):
            raise ExportError(f"{path}: values are not finite on images of shape {list(image.shape)}")
        scale = max(1.0, logits.abs().max().item())
        differ = (logits - found_logits).abs().max() > ROUNDING * scale
        if differ or (network.decide(logits) != found["mask"]).any():  # it may be the network that float32 rounds
            logits = exact(x).upsampled()
        guess = network.decide(logits)
        flipped = guess != found["mask"]
        if flipped.any():
            lead = logits.abs() if network.multilabel else logits.amax(1) - _at(logits, found["mask"])
            proof.max_margin = max(proof.max_margin, lead[flipped].max().item())
        if "confidence" in found:
            difference = (network.confidence(logits) - found["confidence"]).abs().max().item()
            proof.max_confidence_diff = max(proof.max_confidence_diff, difference)
        proof.max_logit = max(proof.max_logit, scale)
        proof.max_abs_diff = max(proof.max_abs_diff, (logits - found_logits).abs().max().item())
        masks.add(guess, found["mask"], torch.from_numpy(mask))
        if shape not in proof.shapes:
            proof.shapes.append(shape)
    proof.pixels, proof.argmax_agreement, proof.mean_iou = masks.pixels, masks.agreement, masks.mean_iou
    proof.mean_iou_diff = abs(masks.mean_iou - masks.reference_mean_iou)
    return proof


def _at(logits: Tensor, mask: Tensor) -> Tensor:
    """The logit `[N, H, W]` of each pixel's class."""
    return logits.gather(1, mask.long()[:, None])[:, 0]


def _proof_images(dataset: Dataset, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image as it is; then, their masks all void, three at once, and one and three at each of the other sizes."""
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        yield image[None], mask[None]
    some = [dataset.read(i % len(dataset))[0] for i in range(3)]
    own, planes = some[0].shape[:2], dataset.read(0)[1].shape[:-2]
    for count, (height, width) in ((3, own), *((count, size) for size in sizes for count in (1, 3))):
        picked = [resized(image, height, width, Image.Resampling.BICUBIC) for image in some[:count]]
        yield np.stack(picked), np.full((count, *planes, height, width), VOID, np.uint8)
