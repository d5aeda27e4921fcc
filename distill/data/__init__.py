"""Images and masks: where they come from, how they are augmented, and in which order they come."""

from distill.data.contents import contents, contents_of
from distill.data.datasets import Dataset, Splits, open_splits
from distill.data.loader import train_batches, val_batches
from distill.data.own import as_dataset, own_splits
from distill.data.statistics import ChannelStatistics, channel_statistics, pixels_of
from distill.data.teacher_cache import CachedTargets, TeacherCache, known_by, missing_groups, pixel_hash
from distill.data.transforms import build_transform, save_preprocessing
from distill.data.verify import check_once, check_splits

__all__ = [
    "CachedTargets",
    "ChannelStatistics",
    "Dataset",
    "Splits",
    "TeacherCache",
    "as_dataset",
    "build_transform",
    "channel_statistics",
    "check_once",
    "check_splits",
    "contents",
    "contents_of",
    "known_by",
    "missing_groups",
    "open_splits",
    "own_splits",
    "pixel_hash",
    "pixels_of",
    "save_preprocessing",
    "train_batches",
    "val_batches",
]
