"""Runs `python -m aristos.kernels.cuda` with PTX that the tests keep, so that no kernel is compiled twice.

Only one process compiles: kernels share most of their device functions, which a second process would compile again.
"""

from __future__ import annotations

import sys

from kept_ptx import text

from aristos.kernels.cuda import build, compile_report
from aristos.kernels.cuda.__main__ import main

build.ptx = text  # each process of the report imports this file
compile_report.PROCESSES = 1

if __name__ == "__main__":
    sys.exit(main())
