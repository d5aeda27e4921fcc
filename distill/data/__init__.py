"""Images and masks: where they come from, how they are augmented, and in which order they come."""

from distill.data.checks import check_once, check_splits
from distill.data.contents import contents
from distill.data.datasets import Dataset, Splits, open_splits
from distill.data.loading import train_batches, val_batches
from distill.data.transforms import build_transform, save_preprocessing

__all__ = [
    "Dataset",
    "Splits",
    "build_transform",
    "check_once",
    "check_splits",
    "contents",
    "open_splits",
    "save_preprocessing",
    "train_batches",
    "val_batches",
]
