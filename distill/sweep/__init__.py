"""Many students of one teacher: `sweep` ranks them, `compare` says what each gains over labels alone, and how surely.

Both run through the same loop. A trial is a student's training with some settings changed. It is named after them and
its seed, stands beside the others in TensorBoard, and is skipped when it is there. A sweep that is started several
times shares its trials out.
"""

from distill.sweep.ranking import collect, sweep, table
from distill.sweep.search import command_line as search_line
from distill.sweep.search import search
from distill.sweep.trials import SECTIONS, Trial, command_line, read_trials

__all__ = ["SECTIONS", "Trial", "collect", "command_line", "read_trials", "search", "search_line", "sweep", "table"]
