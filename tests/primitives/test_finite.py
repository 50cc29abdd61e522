"""`primitives.finite` finds NaN, infinity and values that a narrower type cannot hold, by the numbers' bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from aristos.primitives import finite

TYPES = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_limit_is_that_of_rounding(given, dtype):
    """A number is bad if rounding to `dtype` makes it infinite or NaN.

    Numbers are all 16-bit patterns, and float32 numbers near the limits.
    """
    if given == "float32":
        limits = [float(ml_dtypes.finfo(name).max) for name in TYPES] + [65520.0, 2.0**128 * (1 - 2.0**-9)]
        near = np.array([np.float32(min(limit, 3.4028235e38)) for limit in limits]).view(np.uint32)
        bits = (near[:, None] + np.arange(-3, 4)[None]).astype(np.uint32).reshape(-1)
        numbers = np.concatenate([bits, bits | 1 << 31, [0x7FC00001, 0xFFC00001]]).astype(np.uint32).view(np.float32)
    else:
        numbers = np.arange(1 << 16, dtype=np.uint16).view(given)
    with np.errstate(over="ignore", invalid="ignore"):
        want = ~np.isfinite(numbers.astype(np.float32).astype(dtype).astype(np.float32))
    got = [finite.first(numbers[i : i + 1], dtype) is not None for i in range(0, len(numbers), 7)]
    assert got == want[::7].tolist()
    assert want.any()


def test_the_first_entry_is_named():
    x = np.ones((3, 4), np.float32)
    assert finite.problem("x", x) is None
    assert finite.problem("x", x[:0]) is None
    x[1, 2], x[2, 0] = -7e4, np.nan
    assert finite.problem("x", x) == "x[2, 0] must be finite, got nan"
    assert finite.problem("x", x.T) == "x[0, 2] must be finite, got nan"
    assert finite.problem("x", x, "float16") == (
        "x[1, 2] must be at most 65504 in magnitude, the most that float16 holds, got -70000.0"
    )
