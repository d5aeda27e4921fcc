"""Trains many students of one teacher and compares them: settings by hand, in a grid or drawn at random.

accelerate launch scripts/sweep.py configs/sweeps/search.yaml --config configs/camvid_cpu.yaml --data.root /data/camvid
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import sweep

    sys.exit(sweep(sys.argv[1:], "sweep.py"))
