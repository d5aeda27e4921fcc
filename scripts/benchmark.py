"""Measures what the README claims: the losses, the training step, the exported files.

python scripts/benchmark.py inference checkpoints/camvid_cpu
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import benchmark

    sys.exit(benchmark(sys.argv[1:], "benchmark.py"))
