"""Trains a teacher (or loads one), distils a student, exports it to ONNX and reports on all of it.

accelerate launch scripts/distill.py --config configs/camvid_cpu.yaml --data.root /data/camvid
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import train

    sys.exit(train(sys.argv[1:], "distill.py"))
