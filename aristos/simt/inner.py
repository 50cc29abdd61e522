"""`jit` for functions that only compiled functions call: compiled into their callers, never cached alone."""

from __future__ import annotations

import functools
from typing import Any

import numba

jit: Any = functools.partial(numba.njit, nogil=True, error_model="numpy")
