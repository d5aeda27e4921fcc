"""Scores an ONNX file, an SMP folder or a run on any data set.

python scripts/evaluate.py checkpoints/camvid_cpu --teacher checkpoints/camvid_cpu/teacher
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import evaluate

    sys.exit(evaluate(sys.argv[1:], "evaluate.py"))
