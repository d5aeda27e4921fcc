"""Asks a teacher once for every image, so that students are trained without it.

python scripts/cache_teacher.py --config configs/camvid_cpu.yaml --data.root /data/camvid --shard 3/16
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path, and there distill.py would hide the package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distill.cli import cache

    sys.exit(cache(sys.argv[1:], "cache_teacher.py"))
