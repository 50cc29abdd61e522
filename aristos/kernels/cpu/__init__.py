"""Kernels for CPU cores. Importing the package registers the lowerings of `memory.py`; nothing is compiled yet."""

from . import llvm as llvm
