"""Compiled functions: calls with different constants share code."""

from __future__ import annotations

from numba import int64
from numba.core.caching import NullCache

from aristos.primitives.compile import jit


@jit
def scaled(value, factor, add):
    return value * factor + (1 if add else 0)


@jit
def with_constants(value):
    return scaled(value, 2, True) + scaled(value, 3, False) + scaled(value, value, value > 0)


def test_calls_with_different_constants_share_code():
    for function in (scaled, with_constants):
        function._cache = NullCache()
    with_constants.compile((int64,))
    assert len(scaled.signatures) == 1
    assert with_constants(5) == 11 + 15 + 26
