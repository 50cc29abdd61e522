"""Steps of optimizers on rows of float32, in place and in one pass over memory, and sums of squares.

Every operation is rounded to float32, in the order of the source, so an entry's bits depend on that entry alone.
"""

import math

import numpy as np

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from ...trainable import AdamScales, MomentumScales

ADAM, MOMENTUM = len(AdamScales._fields), len(MomentumScales._fields)  # how many float32 each step reads at `scales`


@jit
def adam_rows(rows, n, w, g, pitch, mean, square, scales):
    """Do a step of AdamW on [rows, n] float32 at the addresses w, mean and square.

    g: the address of the gradients, whose rows lie `pitch` bytes apart. scales: the address of AdamScales in float32.
    """
    s = mem.floats(scales, ADAM)  # in the order of the fields
    by, keep, first, new, second, fresh, past, eps, rate = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8]
    for i in range(rows):
        at = FLOAT * n * i
        gradient, weights = mem.floats(g + pitch * i, n), mem.floats(w + at, n)
        m, v = mem.floats(mean + at, n), mem.floats(square + at, n)
        for j in range(n):
            value = by * gradient[j]
            m[j] = m[j] * first + new * value
            v[j] = v[j] * second + fresh * (value * value)
            weights[j] = weights[j] * keep - rate * (m[j] / (math.sqrt(v[j] / past) + eps))


@jit
def momentum_rows(rows, n, w, g, pitch, velocity, scales):
    """Do a step v = momentum v + by g, w = keep w - rate v, on [rows, n] float32. velocity: the address of v.

    scales: the address of MomentumScales in float32. The other arguments are those of `adam_rows`.
    """
    s = mem.floats(scales, MOMENTUM)  # in the order of the fields
    by, keep, momentum, rate = s[0], s[1], s[2], s[3]
    for i in range(rows):
        at = FLOAT * n * i
        gradient, weights, v = mem.floats(g + pitch * i, n), mem.floats(w + at, n), mem.floats(velocity + at, n)
        for j in range(n):
            v[j] = v[j] * momentum + by * gradient[j]
            weights[j] = weights[j] * keep - rate * v[j]


@jit
def square_sum(rows, n, x, pitch):
    """The sum of squares of [rows, n] float32, computed in float64.

    x: the address of the rows, which lie `pitch` bytes apart. The sum of a row has eight chains, which are added in
    pairs.
    """
    total = np.float64(0)
    whole = n // 8 * 8
    for i in range(rows):
        row = mem.floats(x + pitch * i, n)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float64(0)
        for j in range(0, whole, 8):
            s0 += np.float64(row[j]) * np.float64(row[j])
            s1 += np.float64(row[j + 1]) * np.float64(row[j + 1])
            s2 += np.float64(row[j + 2]) * np.float64(row[j + 2])
            s3 += np.float64(row[j + 3]) * np.float64(row[j + 3])
            s4 += np.float64(row[j + 4]) * np.float64(row[j + 4])
            s5 += np.float64(row[j + 5]) * np.float64(row[j + 5])
            s6 += np.float64(row[j + 6]) * np.float64(row[j + 6])
            s7 += np.float64(row[j + 7]) * np.float64(row[j + 7])
        total += ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
        for j in range(whole, n):
            total += np.float64(row[j]) * np.float64(row[j])
    return total
