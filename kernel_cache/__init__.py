"""Compiled kernels on disk, and other code that Aristos and ptxsim share in order to compile; see docs/architecture.md.

This package imports neither of the two, nor MPI. Importing it does no work.
"""

from pathlib import Path

from . import packages

packages.register("kernel_cache", Path(__file__).parent)
