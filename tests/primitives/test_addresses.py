"""`address` of every kind of array that a caller may pass."""

import ml_dtypes
import numpy as np
import pytest

from aristos.primitives.arrays import address


def read_only(array):
    """Make the array read-only. Returns it."""
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.float16),
        np.zeros((3, 4), ml_dtypes.bfloat16),
        np.zeros((3, 8), ml_dtypes.bfloat16)[:, ::2],
        np.zeros((3, 8), np.int64)[1:, 2:],
        np.zeros((3, 8), np.float32).T,
        np.zeros((0, 4), np.float32),
        read_only(np.zeros((3, 4), np.float32)),
        read_only(np.zeros((3, 4), ml_dtypes.bfloat16)),
    ],
    ids=["float32", "float16", "bfloat16", "steps", "part", "turned", "empty", "read-only", "read-only bfloat16"],
)
def test_the_address_of_any_array(array):
    assert address(array) == array.ctypes.data
