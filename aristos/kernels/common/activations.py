"""The activations of `config.ACTIVATIONS` on float32, one function for each. LLVM vectorises loops over them.

The functions use no libm call, no branch and no reassociation, so the bits of a result depend only on the argument, not
on its place in a vector. Results are accurate to a few units in the last place (tests compare with float64). A new
activation needs its rule in config.py, and functions of its name here and in _reference_parts.py.
"""

import math

import numpy as np

from kernel_cache.compile import jit

from ...config import ACTIVATIONS
from ...primitives import memory as mem
from .branches import implementations

LIMIT_SHIFT = 32  # an activation's word: code and flag in the low half, the limit's float32 bits in the high half
AFTER = 0x100  # the flag in an activation's word: the limit bounds the activation's value, not its argument

_f = np.float32
ZERO, ONE, TWO, HALF, INFINITY = _f(0), _f(1), _f(2), _f(0.5), _f(np.inf)
LOG2E = _f(1.4426950408889634)
LN2_HIGH, LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # Cody and Waite's split of ln 2
LEAST = _f(-87.0)  # below this x, logistic(x) is zero, so that x * logistic(x) goes to zero
MAGIC = _f(12582912.0)  # 1.5 * 2^23: adding it rounds a small float32 to an integer
E2, E3, E4, E5, E6, E7 = (_f(1 / math.factorial(i)) for i in range(2, 8))
A3, A5, A7, A9, A11, A13, A15 = (_f(1 / i) for i in range(3, 16, 2))  # coefficients of the series of atanh
SQRT_HALF = _f(math.sqrt(0.5))
OAI_SCALE = _f(1.702)
TANH_SCALE, TANH_CUBE = _f(math.sqrt(2 / math.pi)), _f(0.044715)
# erfc(z) = t * exp(-z^2 + P(t)), t = 1 / (1 + z / 2). The polynomial P is the Chebyshev fit of Numerical Recipes. The
# relative error is at most 1.2e-7.
C0, C1, C2, C3, C4, C5, C6, C7, C8, C9 = (
    _f(c)
    for c in (
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    )
)


@jit
def exp(x):
    """e^x for float32: 2^n times a polynomial of the remainder. x is clamped to [-87, 88]; e^-87 is 1.6e-38."""
    x = min(max(x, _f(-87.0)), _f(88.0))
    n = (x * LOG2E + MAGIC) - MAGIC
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * (E6 + r * E7))))))
    return p * mem.float_of_bits((np.int64(n) + 127) << 23)


@jit
def normal_cdf(x):
    """(1 + erf(x / sqrt 2)) / 2 for float32."""
    z = abs(x) * SQRT_HALF
    t = ONE / (ONE + HALF * z)
    p = C0 + t * (C1 + t * (C2 + t * (C3 + t * (C4 + t * (C5 + t * (C6 + t * (C7 + t * (C8 + t * C9))))))))
    tail = HALF * (t * exp(p - z * z))
    return ONE - tail if x > ZERO else tail


@jit
def logistic(x):
    """1 / (1 + e^-x) for float32."""
    return ONE / (ONE + exp(-x)) if x > LEAST else ZERO


@jit
def log1p(x):
    """log(1 + x) for float32 x in 0..1: 2 atanh(x / (2 + x)) as a series."""
    z = x / (TWO + x)
    q = z * z
    p = ONE + q * (A3 + q * (A5 + q * (A7 + q * (A9 + q * (A11 + q * (A13 + q * A15))))))
    return (z + z) * p


@jit
def softplus(x):
    """log(1 + e^x) for float32."""
    return max(x, ZERO) + log1p(exp(-abs(x)))


@jit
def relu(x):
    return max(x, ZERO)


@jit
def gelu(x):
    return x * normal_cdf(x)


@jit
def gelu_tanh(x):
    return x * logistic((x + TANH_CUBE * x * x * x) * (TANH_SCALE + TANH_SCALE))


@jit
def silu(x):
    return x * logistic(x)


@jit
def swiglu_oai(x):
    """The activation of the gate in gpt-oss's swiglu (openai/gpt-oss gpt_oss/torch/model.py)."""
    return x * logistic(OAI_SCALE * x)


@jit
def relu2(x):
    """relu(x)^2 (Primer, arXiv:2109.08668; Nemotron-H)."""
    return relu(x) * relu(x)


FUNCTIONS = implementations({name: rule.code for name, rule in ACTIVATIONS.items()}, globals())
SHIFTED = [rule for rule in ACTIVATIONS.values() if rule.shift]
if len(SHIFTED) != 1:
    raise ImportError(
        f"only one activation may have a shift, but config.ACTIVATIONS has {len(SHIFTED)}: extend shift_of"
    )
SHIFTED_CODE, SHIFT = SHIFTED[0].code, _f(SHIFTED[0].shift)


def word(activation: str, limit: float | None = None, after: bool = False) -> int:
    """An activation and its limit as one word of 64 bits, which kernels get.

    limit: None for no limit. after: whether the limit bounds the activation's value instead of its argument.
    """
    bits = np.array(np.inf if limit is None else limit, np.float32).view(np.uint32)
    return ACTIVATIONS[activation].code | (AFTER if after else 0) | int(bits) << LIMIT_SHIFT


@jit
def code_of(word):
    return word & 0xFF


@jit
def limit_of(word):
    return mem.float_of_bits(word >> LIMIT_SHIFT)


@jit
def limits(word):
    """(bound of the activation's argument, bound of its value). At least one of them is infinite."""
    limit = limit_of(word)
    return (INFINITY, limit) if word & AFTER != 0 else (limit, INFINITY)


@jit
def at_most(x, limit):
    return limit if x > limit else x  # a NaN is kept, because the comparison is false


@jit
def factor(x, limit, shift):
    """The number that multiplies the activated gate: x, a value of the up projection, bounded and shifted."""
    return (-limit if x < -limit else at_most(x, limit)) + shift


@jit
def shift_of(code):
    """The number that `factor` adds: 1 in gpt-oss's swiglu, else 0."""
    return SHIFT if code == SHIFTED_CODE else ZERO


@jit
def plain(word):
    """Whether `factor` returns its x unchanged."""
    return code_of(word) != SHIFTED_CODE and limit_of(word) == INFINITY
