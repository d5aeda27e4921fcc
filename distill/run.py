"""What the stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from distill.config import Config
from distill.data import Splits
from distill.evaluate import Evaluation, evaluate
from distill.models import Network
from distill.text import printable


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        config: the settings.
        accelerator: devices and processes.
        splits: the data.
        stop: whether the run was asked to stop (a signal).
        compare: score the teacher beside its student at every validation.
        checked: what was found out about the files of the data, to be remembered.
    """

    config: Config
    accelerator: Accelerator
    splits: Splits
    stop: Callable[[], bool] = lambda: False
    compare: bool = True
    checked: dict[str, Any] | None = None

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

    def evaluate(self, networks: dict[str, Network], desc: str = "scoring") -> Evaluation:
        """Scores networks on the validation images with all processes."""
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
        )


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""
