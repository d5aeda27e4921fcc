"""How some PyTorch operators are written in ONNX: padding to a stride, bilinear upsampling, group norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from torch import Tensor

from distill.models.network import Network

op: Any = opset18  # its types know no Python numbers


@torch.library.custom_op("distill::pad_to_stride", mutates_args=())
def pad_to_stride(x: Tensor, stride: int) -> Tensor:
    """`Network.pad`, of which the exporter only learns that sizes become multiples of the stride.

    Sizes rounded up and halved again and again are more than it can simplify: it takes minutes, or never ends.
    """
    return Network.pad(x, stride).clone()


@pad_to_stride.register_fake
def _some_multiple(x: Tensor, stride: int) -> Tensor:
    # At least 2, since networks may not be traced for maps of one pixel; that these work, too, is proven afterwards.
    height, width = (stride * torch.library.get_ctx().new_dynamic_size(min=2) for _ in range(2))
    return x.new_empty(x.shape[0], x.shape[1], height, width)


def bilinear(x: Any, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None) -> Any:
    """ONNX operators for `aten::upsample_bilinear2d`: along the width a product, along the height Resize.

    The product is with what Resize makes of the identity matrix. Then whole rows are mixed, which onnxruntime does for
    all their pixels at once if they are the channels of a map in NHWC that is one pixel wide. Resize of a map in NCHW
    goes pixel by pixel and takes more than twice as long.
    """

    def resize(value: Any, axis: int, place: int) -> Any:
        mode = "align_corners" if align_corners else "half_pixel"
        how = {"mode": "linear", "coordinate_transformation_mode": mode, "axes": [axis]}
        if scale_factors is not None:
            return op.Resize(value, None, op.Constant(value_floats=[scale_factors[place]]), None, **how)
        return op.Resize(value, None, None, op.Slice(output_size, [place], [place + 1]), **how)

    width, single = op.Shape(x, start=3), op.Constant(value_ints=[1])
    identity = op.EyeLike(op.ConstantOfShape(op.Concat(width, width, axis=0)))
    wide = op.MatMul(x, resize(identity, 1, 1))
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(x, start=2, end=3), single, op.Shape(wide, start=3), axis=0)
    tall = resize(op.Reshape(wide, rows), 1, 0)
    size = op.Concat(op.Shape(x, end=2), op.Shape(tall, start=1, end=2), op.Shape(tall, start=3), axis=0)
    return op.Reshape(tall, size)


def group_norm(x: Any, groups: int, weight: Any, bias: Any, epsilon: float, _: bool = True) -> Any:
    """ONNX operators for `aten::group_norm`; scale and shift in one pass, as a batch norm of mean 0 and variance 1."""
    ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
    rows = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    normed = op.Reshape(op.InstanceNormalization(rows, ones, zeros, epsilon=epsilon), op.Shape(x))
    ones, zeros = (op.Expand(op.Constant(value_floats=[value]), op.Shape(weight)) for value in (1.0, 0.0))
    return op.BatchNormalization(normed, weight, bias, zeros, ones, epsilon=0.0)


def padding(x: Any, stride: int) -> Any:
    """ONNX operators for `pad_to_stride`."""
    missing = op.Mod(op.Neg(op.Shape(x, start=2)), op.Constant(value_ints=[stride]))
    return op.Pad(x, op.Concat(op.Constant(value_ints=[0] * 6), missing, axis=0))


TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.distill.pad_to_stride.default: padding,
    torch.ops.aten.upsample_bilinear2d.vec: bilinear,
    torch.ops.aten.group_norm.default: group_norm,
}
