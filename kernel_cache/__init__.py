"""Keeps compiled kernels on disk, and holds other code that Aristos and ptxsim share; see docs/architecture.md.

This package imports neither Aristos nor ptxsim nor MPI. Importing it does no work.
"""

from pathlib import Path

from . import packages

packages.register("kernel_cache", Path(__file__).parent)
