"""Images and masks: where they come from, how they are augmented, and in which order they come."""

from distill.data.contents import contents
from distill.data.datasets import Dataset, Splits, open_splits
from distill.data.loader import train_batches, val_batches
from distill.data.own import as_dataset, own_splits
from distill.data.transforms import build_transform, save_preprocessing
from distill.data.verify import check_once, check_splits

__all__ = [
    "Dataset",
    "Splits",
    "as_dataset",
    "build_transform",
    "check_once",
    "check_splits",
    "contents",
    "open_splits",
    "own_splits",
    "save_preprocessing",
    "train_batches",
    "val_batches",
]
