"""Three teachers of about one score, of three libraries, and what a small student learns from each.

    python checkpoints/results/camvid_foreign.py /path/to/camvid OUT_FOLDER    # writes OUT_FOLDER/camvid_foreign.json

A SegFormer of transformers, a DeepLabV3 of torchvision and an FPN of SMP are trained from random weights on CamVid's
labels by this project's loop. Each is saved as its own library saves networks, and then taken as a teacher from there.
"""

import json
import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torchvision
import transformers

import distill

root, out = sys.argv[1], Path(sys.argv[2])
CONFIG = distill.load_config(Path(__file__).parents[2] / "configs" / "camvid_cpu.yaml", {"data.root": root})
SPLITS = distill.open_data(CONFIG.data)
SHARED = {
    "data__augmentations": CONFIG.data.augmentations,
    "data__crop_size": [192, 256],
    "cross_entropy__class_weights": CONFIG.cross_entropy.class_weights,
    "per_device_train_batch_size": 8,
    "baseline__enabled": False,
    "export__enabled": False,
    "eval_steps": 1000,
    "keep": "last",
    "num_threads": 1,
}


class Pairs:
    """A split as pairs of arrays, as anybody's data set has them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset.read(index)


def train(name, network, steps, learning_rate, teacher, **settings):
    """A network on this data; with `kd__weight=0` on its labels alone."""
    settings = SHARED | {"classes": SPLITS.classes, "output_dir": out / name, "max_train_steps": steps} | settings
    pairs = {"train": Pairs(SPLITS.train), "val": Pairs(SPLITS.val)}
    return distill.distill(student=network, teacher=teacher, learning_rate=learning_rate, **pairs, **settings)


def segformer():
    """Of transformers, 3.5 M parameters."""
    sizes = {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 128}
    names = {
        "id2label": dict(enumerate(SPLITS.classes)),
        "label2id": {name: i for i, name in enumerate(SPLITS.classes)},
    }
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**sizes, **names))


def deeplab():
    """Of torchvision, 11 M parameters."""
    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    network = make(weights=None, weights_backbone=None, num_classes=len(SPLITS.classes))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # theirs, 0.01, averages over more steps than are taken here
    return network


def fpn(encoder, **options):
    """Of SMP."""
    return smp.FPN(encoder, encoder_weights=None, classes=len(SPLITS.classes), **options)


def student():
    """0.64 M parameters, as in camvid_cpu.yaml."""
    return fpn("tu-mobilenetv3_small_050", decoder_pyramid_channels=96, decoder_segmentation_channels=64)


def zeros(x):
    """Teaches nothing: the teachers, and the student without one, are trained on labels alone."""
    return x.new_zeros(len(x), len(SPLITS.classes), 1, 1)


def trained(name, make, steps, learning_rate):
    """A network with what it has learned from the labels, and its score."""
    torch.manual_seed(0)
    network = make()
    done = train(name, network, steps, learning_rate, zeros, kd__weight=0, teacher__allow_near_chance=True)
    network.load_state_dict(distill.load(out / name, module=network).network.model.state_dict())
    return network, done.student.mean_iou


teachers = {
    "transformers SegFormer": ("segformer", segformer, 1e-3),
    "torchvision DeepLabV3": ("deeplab", deeplab, 2e-3),
    "SMP FPN": ("fpn", lambda: fpn("resnet18"), 1e-3),
}
found = {"labels alone": {"student": trained("labels_alone", student, 200, 2e-3)[1]}}
for title, (name, make, learning_rate) in teachers.items():
    network, score = trained(name, make, 250, learning_rate)
    path, settings = out / f"{name}_saved", {}
    if name == "deeplab":
        path = path.with_suffix(".pth")
        torch.save(network.state_dict(), path)
        settings["teacher__arch"] = "torchvision/deeplabv3_mobilenet_v3_large"
    else:
        network.save_pretrained(path)
    torch.manual_seed(0)
    taught = train(f"student_of_{name}", student(), 200, 2e-3, path, kd__weight=1, **settings)
    found[title] = {
        "params": sum(weight.numel() for weight in network.parameters()),
        "its own library, trained": score,
        "as a teacher": taught.teacher.mean_iou,
        "student": taught.student.mean_iou,
    }
    (out / "camvid_foreign.json").write_text(json.dumps(found, indent=1))
print(json.dumps(found, indent=1))
