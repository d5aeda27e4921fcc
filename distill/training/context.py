"""What the stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from distill.batch import Batch
from distill.config.schema import Config
from distill.data import CachedTargets, Dataset, Splits, build_transform, pixels_of, train_batches
from distill.data.sampler import StepSampler
from distill.errors import printable
from distill.evaluation.per_image import confusion_per_image
from distill.evaluation.scores import Evaluation, evaluate
from distill.models.asked import Asked
from distill.models.foreign import Opened


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        config: the settings.
        accelerator: devices and processes.
        splits: the data.
        stop: whether the run was asked to stop (a signal).
        compare: score the teacher, and the baseline, beside their student at every validation.
        checked: what was found out about the files of the data, to be remembered.
        own: modules handed over in Python, as `teacher` and `student`.
        foreign: the teacher that the settings name, if it is none of this project's, or of other classes.
        remembered: what teacher and baseline, which do not change, predict of the validation images, once they were
            asked.
        on_score: called on every process with the step and the mIoU of each validation of a training; what it raises
            ends that.
        times: folder in which the seconds of each training are kept; None keeps none.
    """

    config: Config
    accelerator: Accelerator
    splits: Splits
    stop: Callable[[], bool] = lambda: False
    compare: bool = True
    checked: dict[str, Any] | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    foreign: Opened | None = None
    remembered: dict[str, dict[int, bytes]] = field(default_factory=dict)
    times: Path | None = None
    on_score: Callable[[int, float], None] = lambda step, score: None

    @property
    def files(self) -> dict[str, str]:
        """Fingerprints of the data; none if it is drawn."""
        return dict((self.checked or {}).get("contents", {}))

    def say(self, line: str) -> None:
        """A line for the person who watches, once."""
        if self.accelerator.is_main_process:
            tqdm.write(printable(line, keep="\n"))

    def progress(self, items: Iterable | None = None, **options: Any) -> tqdm:
        """A progress bar, on the main process and only where somebody watches."""
        return tqdm(items, disable=None if self.accelerator.is_main_process else True, **options)

    @property
    def global_batch_size(self) -> int:
        """Images of an optimizer step, over its micro-batches and all processes."""
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def precision(self) -> torch.dtype | None:
        """The half precision that networks run in, if any."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)

    def train_batches(self, first_step: int, unlabeled: bool, targets: CachedTargets | None = None) -> Iterator[Batch]:
        """This process's micro-batches from a step on.

        Args:
            first_step: that step.
            unlabeled: whether images without labels are among them.
            targets: what the teacher said of the images, to come with them.
        """
        config, accelerator = self.config, self.accelerator
        dataset, more = self.splits.train, self.splits.unlabeled if unlabeled else None
        sampler = StepSampler(
            len(dataset),
            config.per_device_train_batch_size,
            config.gradient_accumulation_steps,
            config.seed,
            first_step,
            accelerator.process_index,
            accelerator.num_processes,
            len(more or ()),
            config.data.unlabeled_share,
        )
        return train_batches(
            dataset + more if more else dataset,
            build_transform(config.data, pixels_of(dataset)),
            sampler,
            config.data.num_workers,
            config.timeout_seconds,
            pin_memory=accelerator.device.type == "cuda",
            targets=targets,
        )

    @property
    def shown(self) -> list[int]:
        """The validation images that are shown as strips, evenly spread."""
        total = len(self.splits.val)
        count = min(self.config.num_sample_images, total)
        return list(range(0, total, max(1, total // max(1, count))))[:count]

    def evaluate(self, networks: Mapping[str, Asked], desc: str = "scoring", each_image: bool = False) -> Evaluation:
        """Scores networks on the validation images with all processes, if asked for each image by itself, too."""
        accelerator = self.accelerator
        return evaluate(
            networks,
            self.splits.val,
            self.config.per_device_eval_batch_size,
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
            lambda counts: accelerator.reduce(counts, "sum"),
            lambda items: self.progress(items, desc=desc, leave=False),
            self.remembered,
            each_image,
        )

    def confusion_per_image(self, network: Asked, dataset: Dataset, name: str) -> np.ndarray:
        """The confusion matrices of single images with all processes: int64 `[K, 3]` of image, cell and pixels."""
        accelerator = self.accelerator
        own = confusion_per_image(
            network,
            dataset,
            self.config.per_device_eval_batch_size,
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
            lambda items: self.progress(items, desc="scoring", leave=False),
            name,
        )
        cells = np.concatenate(gather_object([own]))
        return cells[np.lexsort((cells[:, 1], cells[:, 0]))]
