"""Functions of float32 x that return the value and the slope of an activation, one for each of `config.ACTIVATIONS`.

As in `activations.py`, the bits of a result depend on its argument alone, and LLVM vectorises loops over the functions.
If an activation has no function here, importing this module fails.
"""

import math

import numpy as np

from kernel_cache.compile import jit

from ...config import ACTIVATIONS
from .activations import (
    HALF,
    OAI_SCALE,
    ONE,
    TANH_CUBE,
    TANH_SCALE,
    TWO,
    ZERO,
    exp,
    logistic,
    normal_cdf,
)
from .branches import implementations

_f = np.float32
DENSITY = _f(1 / math.sqrt(2 * math.pi))
THREE, FLAT = _f(3), _f(16)  # FLAT: if |x| is larger, gelu_tanh is x or 0, and its slope is 1 or 0


@jit
def relu_and_slope(x):
    return max(x, ZERO), ONE if x > ZERO else ZERO


@jit
def gelu_and_slope(x):
    cdf = normal_cdf(x)
    return x * cdf, cdf + x * (DENSITY * exp(-HALF * x * x))


@jit
def gelu_tanh_and_slope(x):
    s = logistic((x + TANH_CUBE * x * x * x) * (TANH_SCALE + TANH_SCALE))
    z = min(max(x, -FLAT), FLAT)  # bounded, so that no square overflows
    return x * s, s + z * (s * (ONE - s)) * (TWO * TANH_SCALE * (ONE + THREE * TANH_CUBE * z * z))


@jit
def silu_and_slope(x):
    s = logistic(x)
    return x * s, s + x * (s * (ONE - s))


@jit
def swiglu_oai_and_slope(x):
    s = logistic(OAI_SCALE * x)
    return x * s, s + OAI_SCALE * x * (s * (ONE - s))


@jit
def relu2_and_slope(x):
    v = max(x, ZERO)
    return v * v, v + v


FUNCTIONS = implementations({f"{name}_and_slope": rule.code for name, rule in ACTIVATIONS.items()}, globals())
