"""Compiled kernels on disk, and what else Aristos and ptxsim share to compile: docs/architecture.md.

It imports neither of them, nor MPI. Importing this package does no work.
"""

from pathlib import Path

from . import packages

packages.register("kernel_cache", Path(__file__).parent)
