"""The student's model card, `README.md` of its folder, and the way to the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData

from distill.config.data import NAMED_BY_SETTINGS
from distill.config.schema import Config
from distill.deployment.onnx_export import OnnxFile
from distill.errors import ConfigError, cell, printable
from distill.losses import TERMS
from distill.reporting.report import about_files, percent, summary, table
from distill.reporting.results import ExportResults, NetworkResults, Results
from distill.training.provenance import RECORD, as_made

PUBLISHED = ("*.md", "*.json", "*.onnx", "model.safetensors")
PRIVATE = ("stage.json", "*/*")  # settings with paths of this machine; a folder in there is none of ours
READ_IMAGE = """image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")  # as viewers show it
image = np.asarray(image)[None]  # uint8 [N, H, W, 3]"""


def write_card(folder: Path, config: Config, results: Results) -> None:
    """Writes the card: what the student is, how good, how it was trained, how it is used.

    Args:
        folder: the student's.
        config: of the run.
        results: of the run.
    """
    student, teacher, classes, onnx = results.student, results.teacher, results.classes, results.files.onnx
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    made = as_made(config, record["settings"])  # a setting may have changed since
    many = made.student.head == "multilabel"
    named = config.data.format not in NAMED_BY_SETTINGS
    data = config.data.format if named else printable(Path(config.data.root).resolve().name)
    scored = EvalResult(
        task_type="image-segmentation",
        dataset_type=data,
        dataset_name=f"{data}, {results.val_images} validation images",
        metric_type="mean_iou",
        metric_name="mIoU",
        metric_value=round(student.mean_iou, 4),
    )
    header = ModelCardData(
        library_name="pytorch" if student.module else "segmentation-models-pytorch",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", *(["onnx"] if isinstance(onnx, OnnxFile) else [])],
        datasets=[data],
        base_model=f"{config.name}/teacher",
        model_name=config.name,
        metrics=["mean_iou"],
        eval_results=[scored],
    )
    per_class = [("IoU", "student", "teacher")]
    per_class += [(name, percent(student.iou[name]), percent(teacher.iou[name])) for name in classes]
    text = f"""---
{header.to_yaml()}
---
# {config.name}: distilled student

Semantic segmentation into {len(classes)} classes{", any number of them at a pixel," * many}
with a {_network(folder, student)} of {student.params / 1e6:.2f} M
parameters ({student.flops / 1e9:.2f} GFLOPs an image of {"×".join(map(str, results.image_size))}), distilled
from a {_network(folder.parent / "teacher", teacher)}{_million(teacher)}.

## Results

On {results.val_images} validation images ({cell(data)}), void left out:

{summary(results)}

{table(per_class)}
{_details(results.files)}
## Use
{_with_onnxruntime(onnx, many) if isinstance(onnx, OnnxFile) else ""}
With PyTorch, from this folder:

```python
{_with_own_module(student.module) if student.module else _with_smp(config)}
```

Ids and names are in `id2label.json`.

## Training

{made.student.max_train_steps} steps of {record["settings"]["global_batch_size"]}
images, crops of {"×".join(map(str, made.data.crop_size))}, learning rate
{made.student.learning_rate:g}, seed {made.seed}. The loss, each term a mean over pixels that are not void:
{_objective(made)}. The weights are those of the {_kept(made)}.{_changes(record["changes"])}

## Limits

Trained and scored on one data set; what other cameras, places or seasons cost was not measured.
{_limit(many)} Rare classes are the weak ones: see their IoU.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def push(folder: Path, repo_id: str) -> str:
    """Uploads a student's folder to the Hub, to a repository that is private if it is new; returns its address.

    Raises:
        ConfigError: there is no token, or the Hub refused.
    """
    try:
        api = HfApi()
        url = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(PUBLISHED),
            ignore_patterns=list(PRIVATE),
            commit_message="A distilled student",
        )
    except Exception as error:  # the library has many kinds
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"hub_model_id: {repo_id} was not uploaded ({reason}); is HF_TOKEN set, and may it write there? "
            f"The same command tries again"
        ) from error
    return str(url)


def _network(folder: Path, numbers: NetworkResults) -> str:
    if numbers.module:
        return f"`{cell(numbers.module)}`"
    made_of = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return f"{made_of['_model_class']} on {made_of['encoder_name'].removeprefix('tu-')}"


def _million(numbers: NetworkResults) -> str:
    """Its size, where it is known."""
    return f" of {numbers.params / 1e6:.2f} M" if numbers.params else ""


def _small_map(config: Config) -> str:
    """A line of code for heads told to give another size than the image's: upsampled twice, maps differ."""
    if "upsampling" not in config.student.options:
        return ""
    return "model.segmentation_head[1] = torch.nn.Identity()  # it would upsample to another size\n"


def _limit(many: bool) -> str:
    if many:
        return "Each class is decided by itself, at a probability of a half."
    return "Every pixel gets one of the classes above, also where none of them is there."


def _with_smp(config: Config) -> str:
    many = config.student.head == "multilabel"
    decided = "(logits > 0)" if many else "logits.argmax(1)"
    return f"""import albumentations as A, numpy as np, segmentation_models_pytorch as smp, torch
from PIL import Image, ImageOps

{READ_IMAGE}
model, preprocess = smp.from_pretrained("."), A.Compose.from_pretrained(".")
x = preprocess(image=image[0])["image"].transpose(2, 0, 1)[None]  # padded at the bottom and right
{_small_map(config)}logits = model(torch.from_numpy(x))
logits = torch.nn.functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
mask = {decided}[0, {":, " * many}: image.shape[1], : image.shape[2]]"""


def _with_own_module(name: str) -> str:
    return f"""import distill, numpy as np
from PIL import Image, ImageOps

{READ_IMAGE}
mask = distill.load(".", module={printable(name)}(…)).mask(image[0])  # the module that was trained"""


def _with_onnxruntime(onnx: OnnxFile, many: bool) -> str:
    holds = "uint8 [C, H, W], 1 where a class is" if many else "uint8 [H, W], class ids"
    return f"""
With onnxruntime alone; scaling, normalization and padding are in the file, images {_sizes(onnx)}:

```python
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
{READ_IMAGE}
mask = session.run(["mask"], {{"image": image}})[0][0]  # {holds}
```
"""


def _sizes(onnx: OnnxFile) -> str:
    if onnx.fixed_size:
        return f"have to be {onnx.fixed_size[1]} wide and {onnx.fixed_size[0]} high"
    return "may have any size"


def _objective(config: Config) -> str:
    used = {name: getattr(config, name).weight for name in TERMS}
    return " + ".join(f"{weight:g} {name}" for name, weight in used.items() if weight)


def _kept(config: Config) -> str:
    if config.keep == "last":
        return "last step, so nothing was selected on the validation images"
    return "best of several scores on these same validation images, which flatters them a little"


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    """What was allowed to change while the student was trained, a sentence a setting."""
    told = ((change["step"], name, *values) for change in changes for name, values in change["settings"].items())
    return "".join(
        f"\nUp to step {step}, `{name}` was {before!r}, then {after!r}." for step, name, before, after in told
    )


def _details(files: ExportResults) -> str:
    return "\n".join(["", *about_files(files)])
