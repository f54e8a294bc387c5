"""`python -m lm_power` is the command `lm-power`."""

import sys

from lm_power.cli import main

if __name__ == "__main__":
    sys.exit(main())
