"""Kernels for CPU cores. Importing the package registers the lowerings of the primitives; it compiles nothing."""

from . import llvm as llvm
from . import lowering as lowering
