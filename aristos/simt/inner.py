"""Functions that only other compiled functions call: never kept on disk by themselves, always compiled into a unit."""

from __future__ import annotations

import functools
from typing import Any

import numba

jit: Any = functools.partial(numba.njit, nogil=True, error_model="numpy")
