"""The student as one ONNX file that takes raw images of any size, published only once it is proven on real ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from torch import Tensor, nn

from distill.batch import VOID
from distill.checkpoint import sha256
from distill.config import ExportConfig
from distill.data import Dataset
from distill.metrics import Scores, confusion_matrix
from distill.models import FIXED_SIZE, Network

MIN_AGREEMENT = 0.9999
MAX_ABS_DIFF = 1e-3
MAX_MARGIN = 1e-4
MAX_MEAN_IOU_DIFF = 1e-4
OTHER_SIZES = ((97, 130), (224, 160))


class ExportError(Exception):
    """The exported file does not do what the network does; says in what it differs."""


class Deployed(nn.Module):
    """A network from raw images to class ids: what the file holds."""

    def __init__(self, network: Network):
        """Wraps a network."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class ids uint8 `[N, H, W]` and logits `[N, C, H, W]` of images uint8 RGB `[N, H, W, 3]`."""
        logits = self.network(image.permute(0, 3, 1, 2)).upsampled()
        return logits.argmax(1).to(torch.uint8), logits


@dataclass
class Proof:
    """What the file was compared with the network on, and how they differ.

    Attributes:
        max_abs_diff: largest difference of two logits.
        argmax_agreement: share of pixels with the same class.
        max_margin: largest lead of the network's class where the file says another.
        mean_iou: of the file on the whole validation set.
        mean_iou_diff: to that of the network.
        shapes: `[N, H, W]` of the images it was run on.
        pixels: how many pixels were compared.
    """

    max_abs_diff: float = 0.0
    argmax_agreement: float = 0.0
    max_margin: float = 0.0
    mean_iou: float = 0.0
    mean_iou_diff: float = 0.0
    shapes: list[list[int]] = field(default_factory=list)
    pixels: int = 0


def export_onnx(
    network: Network, path: Path, dataset: Dataset, config: ExportConfig, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Writes the ONNX file and proves it; a file that fails is not published.

    Args:
        network: the student, on any device; it is moved to the CPU.
        path: where the file goes.
        dataset: real images with labels to prove it on, and whose size the trace takes.
        config: opset.
        metadata: goes into the file, as JSON.

    Returns:
        The proof as a dict.

    Raises:
        ExportError: the file and the network differ.
    """
    network = network.cpu().eval()
    height, width = dataset.read(0)[1].shape
    temporary = path.with_name(f".{path.name}.tmp")
    write_onnx(network, temporary, (height, width), config.opset, metadata)
    onnx.checker.check_model(str(temporary), full_check=True)
    sizes = () if is_fixed(network) else OTHER_SIZES
    proof = prove(network, temporary, dataset, sizes)
    faults = [
        f"{name} {value:.3g}, {limit}"
        for name, value, ok, limit in (
            ("max_abs_diff", proof.max_abs_diff, proof.max_abs_diff <= MAX_ABS_DIFF, f"at most {MAX_ABS_DIFF}"),
            ("agreement", proof.argmax_agreement, proof.argmax_agreement >= MIN_AGREEMENT, f"at least {MIN_AGREEMENT}"),
            ("max_margin", proof.max_margin, proof.max_margin <= MAX_MARGIN, f"at most {MAX_MARGIN}"),
            ("mIoU differs by", proof.mean_iou_diff, proof.mean_iou_diff <= MAX_MEAN_IOU_DIFF, f"{MAX_MEAN_IOU_DIFF}"),
        )
        if not ok
    ]
    if faults:
        temporary.unlink()
        raise ExportError(f"{path}: not published, it differs from the network: {'; '.join(faults)}")
    temporary.replace(path)
    return asdict(proof) | {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_onnx(network: Network, path: Path, size: Sequence[int], opset: int, metadata: dict[str, Any]) -> None:
    """One file without external data: image in, mask and logits out; any batch, height and width where possible."""
    free = {0: torch.export.Dim.DYNAMIC}
    if not is_fixed(network):
        free |= {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    image = torch.zeros(2, *size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        program = torch.onnx.export(
            Deployed(network),
            (image,),
            input_names=["image"],
            output_names=["mask", "logits"],
            dynamic_shapes={"image": free},
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for name, value in metadata.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(str(path))  # given the path, torch.onnx.export would split the weights off


def is_fixed(network: Network) -> bool:
    """Whether the file works for one image size only."""
    return type(network.model).__name__.lower() in FIXED_SIZE


def prove(network: Network, path: Path, dataset: Dataset, sizes: Sequence[tuple[int, int]]) -> Proof:
    """Runs network and file over the whole data set, and at other sizes over a few resized images.

    Raises:
        ExportError: one of them gives values that are not finite.
    """
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    classes = len(network.classes)
    proof = Proof()
    matrices = torch.zeros(2, classes, classes, dtype=torch.int64)
    equal = 0
    for image, mask in _proof_images(dataset, sizes):
        with torch.no_grad():
            expected = network(torch.from_numpy(image).permute(0, 3, 1, 2)).upsampled()
        found_mask, found = (torch.from_numpy(output) for output in session.run(["mask", "logits"], {"image": image}))
        if not (expected.isfinite().all() and found.isfinite().all()):
            raise ExportError(f"{path}: logits are not finite on images of shape {list(image.shape)}")
        top = expected.topk(min(2, classes), dim=1).values
        flipped = expected.argmax(1) != found_mask
        margin = (top[:, 0] - top[:, -1])[flipped].max().item() if flipped.any() else 0.0
        proof.max_abs_diff = max(proof.max_abs_diff, (expected - found).abs().max().item())
        proof.max_margin = max(proof.max_margin, margin)
        proof.pixels += flipped.numel()
        equal += int((~flipped).sum())
        for i, prediction in enumerate((expected.argmax(1), found_mask)):
            matrices[i] += confusion_matrix(prediction, torch.from_numpy(mask), classes)
        if list(image.shape[:3]) not in proof.shapes:
            proof.shapes.append(list(image.shape[:3]))
    before, after = (Scores(matrix).mean_iou for matrix in matrices)
    proof.argmax_agreement, proof.mean_iou, proof.mean_iou_diff = equal / proof.pixels, after, abs(after - before)
    return proof


def _proof_images(dataset: Dataset, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image as it is; then three at once at each of the other sizes, their masks all void."""
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        yield image[None], mask[None]
    for height, width in sizes:
        picked = [Image.fromarray(dataset.read(i % len(dataset))[0]).resize((width, height)) for i in range(3)]
        yield np.stack([np.asarray(image) for image in picked]), np.full((3, height, width), VOID, np.uint8)
