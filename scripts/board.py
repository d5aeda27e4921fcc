"""Prints the board of faults: tests/faults/README.md says what is measured, and how to run it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests" / "faults")
    from board import main

    sys.exit(main())
