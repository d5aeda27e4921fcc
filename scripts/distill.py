"""Trains a teacher (or loads one), distils a student, exports it to ONNX and reports on all of it.

accelerate launch scripts/distill.py --config configs/camvid_cpu.yaml --data.root /data/camvid
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there this file would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.training.launcher import follow

    follow()  # before anything takes its time
    from distill.config.parse import parse

    config = parse()
    from distill.pipeline import main  # only now: it imports torch

    sys.exit(main(config))
