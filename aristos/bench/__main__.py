"""`python -m aristos.bench`."""

import sys

from ..cli._ending import exit_code
from .main import main

if __name__ == "__main__":
    sys.exit(exit_code("python -m aristos.bench", main))
