"""The names of Numba-CUDA that this folder uses. Other modules of the folder import the compiler from here only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ...errors import EnvironmentProblem

try:
    import_module("numba_cuda")
except ImportError as error:
    raise EnvironmentProblem(
        f"CUDA kernels need numba-cuda 0.30: pip install 'aristos[cuda12]', or 'aristos[simt]' without a GPU ({error})"
    ) from error
if not hasattr(np, "row_stack"):
    raise EnvironmentProblem(
        f"numba-cuda 0.30 needs numpy<2.5, and {np.__version__} is installed: pip install 'numpy<2.5', or without a"
        " network use the kit that `make gpu-kit` makes, which brings a fitting NumPy"
    )

cuda: Any = import_module("numba.cuda")  # untyped: Numba creates its names at run time
types: Any = import_module("numba.cuda.types")
intrinsic: Any = import_module("numba.cuda.extending").intrinsic
overload: Any = import_module("numba.cuda.extending").overload
carray: Any = import_module("numba.cuda.np.numpy_support").carray
make_array: Any = import_module("numba.cuda.np.arrayobj").make_array


def forget_other_targets(functions: list[Any]) -> None:
    """Let Numba-CUDA see only its own overloads of these functions.

    Otherwise it would inline a CPU overload that was compiled first for the same types.
    """
    context = import_module("numba.cuda.descriptor").cuda_target.typing_context
    context.refresh()
    for function in functions:
        found = context._lookup_global(function)
        ours = tuple(t for t in found.templates if getattr(t, "metadata", {}).get("target") == "cuda")
        context._remove_global(function)
        context._insert_global(function, types.Function(ours[0]))
