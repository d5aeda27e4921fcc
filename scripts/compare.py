"""Says what each of several settings gains over labels alone, and how surely: seeds, intervals, seconds.

accelerate launch scripts/compare.py configs/sweeps/compare.yaml --teacher.checkpoint checkpoints/default --equal_time
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import compare

    sys.exit(compare(sys.argv[1:], "compare.py"))
