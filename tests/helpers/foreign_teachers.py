"""Tiny teachers of every foreign kind, with random weights, written as their libraries write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

NAMES = ["background", "car", "Tree-Top", "road"]
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
    "sr_ratios": [8, 4, 2, 1],
}
PROCESSOR = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
HEADS = ("decode_head", "class_predictor", "mask_embedder", "mask_head", "quer")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def labels(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def sharpened(network: torch.nn.Module, factor: float = 5.0) -> torch.nn.Module:
    """Random weights of transformers are so small that all classes are alike; larger ones have opinions."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and any(part in name for part in HEADS):
            parameter.data *= factor
    return network.eval()


def written(network: Any, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    """A folder of save_pretrained, with what its image processor says."""
    network.save_pretrained(str(folder))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def segformer(folder: Path, names: list[str] = NAMES, processor: dict[str, Any] | None = None) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.SegformerConfig(**SEGFORMER, **labels(names))
    network = sharpened(transformers.SegformerForSemanticSegmentation(config), 20.0)
    about = PROCESSOR | {"image_mean": MEAN, "image_std": STD} if processor is None else processor
    return written(network, folder, about)


def eomt(folder: Path, names: list[str] = NAMES, size: int = 64) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=8,
        num_blocks=1,
        num_queries=6,
        num_register_tokens=1,
        num_upscale_blocks=1,
        **labels(names),
    )
    network = sharpened(transformers.EomtForUniversalSegmentation(config))
    return written(network, folder, PROCESSOR | {"image_mean": MEAN, "image_std": STD})


def mask2former(folder: Path, names: list[str] = NAMES) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        **labels(names),
    )
    return written(sharpened(transformers.Mask2FormerForUniversalSegmentation(config)), folder)


def maskformer(folder: Path, names: list[str] = NAMES) -> Path:
    import transformers

    torch.manual_seed(0)
    decoder = transformers.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
    )
    config = transformers.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=swin(), decoder_config=decoder, **labels(names)
    )
    return written(sharpened(transformers.MaskFormerForInstanceSegmentation(config)), folder)


def oneformer(folder: Path, names: list[str] = NAMES) -> Path:
    """As the Hub has them: made for training, with a tokenizer (here, one that spells) in two files."""
    import transformers

    torch.manual_seed(0)
    config = transformers.OneFormerConfig(
        backbone_config=swin(),
        num_queries=6,
        hidden_dim=32,
        mask_dim=32,
        conv_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        query_dec_layers=1,
        task_seq_len=24,
        text_encoder_width=64,
        text_encoder_num_layers=1,
        text_encoder_context_length=24,
        text_encoder_vocab_size=54,
        text_encoder_n_ctx=2,
        is_training=True,
        **labels(names),
    )
    written(sharpened(transformers.OneFormerForUniversalSegmentation(config)), folder)
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


def swin() -> Any:
    import transformers

    return transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def onnx_file(
    path: Path,
    weight: np.ndarray,
    *,
    last: bool = False,
    dtype: int = TensorProto.FLOAT,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    ending: str = "",
    metadata: dict[str, str] | None = None,
) -> Path:
    """A 1×1 convolution as an ONNX file: of any layout, type and size, with any ending.

    Args:
        path: where it goes.
        weight: `[K, channels]`.
        last: channels come last.
        dtype: of the images.
        size: the only one that it takes.
        batch: the only number of images that it takes.
        ending: operator after it: `Softmax`, `Sigmoid`, `ArgMax` or none.
        metadata: what it says of itself.
    """
    (height, width), channels = size or ("height", "width"), weight.shape[1]
    float_type = TensorProto.FLOAT16 if dtype == TensorProto.FLOAT16 else TensorProto.FLOAT
    shape = [batch or "batch", *((height, width, channels) if last else (channels, height, width))]
    kernel = weight[:, :, None, None].astype(np.float16 if float_type == TensorProto.FLOAT16 else np.float32)
    nodes, name = [], "image"

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{kind}{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    if dtype == TensorProto.UINT8:
        name = add("Cast", [name], to=float_type)
    if last:
        name = add("Transpose", [name], perm=[0, 3, 1, 2])
    name = add("Conv", [name, "kernel"])
    count: Any = len(weight)
    result = float_type
    if ending == "ArgMax":
        name, count, result = add("ArgMax", [name], axis=1, keepdims=0), None, TensorProto.INT64
    elif ending:
        name = add(ending, [name], **({"axis": 1} if ending == "Softmax" else {}))
    if last and ending != "ArgMax":
        name = add("Transpose", [name], perm=[0, 2, 3, 1])
    nodes[-1].output[0] = "answer"
    axes = (height, width, count) if last else (count, height, width)
    output = [batch or "batch", *(axis for axis in axes if axis is not None)]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("answer", result, output)],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path
