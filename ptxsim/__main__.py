"""`python -m ptxsim ...` does the same as the command `ptxsim ...`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
