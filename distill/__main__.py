"""`python -m distill`, which `accelerate launch -m distill train …` starts, too."""

import sys

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
