"""`python -m lm_power.distill`, `accelerate launch -m lm_power.distill`."""

from __future__ import annotations

import sys

from lm_power.distill.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
