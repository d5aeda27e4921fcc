"""Segments images and videos with an ONNX file, an SMP folder or a run.

python scripts/predict.py checkpoints/default/student/model.onnx photos/ ride.mp4 --overlay 0.5
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import predict

    sys.exit(predict(sys.argv[1:], "predict.py"))
