"""Trains many students of one teacher and compares them: settings by hand, in a grid or drawn at random.

accelerate launch scripts/sweep.py configs/sweeps/search.yaml --config configs/camvid_cpu.yaml --data.root /data/camvid
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.training.launcher import follow

    follow()  # before anything takes its time
    from distill.sweep import command_line, sweep

    config, trials, configs = command_line(sys.argv[1:])
    from distill.pipeline import main  # only now: it imports torch

    sys.exit(main(config, lambda config: sweep(config, trials, configs)))
