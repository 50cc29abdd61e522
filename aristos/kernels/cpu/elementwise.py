"""Activations and gates on arrays of float32, in place: loops that LLVM vectorises."""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ..common.activations import AFTER, FUNCTIONS, INFINITY, at_most, code_of, factor, limit_of, plain, shift_of
from ..common.branches import unrolled

apply = jit(unrolled("apply", "v, n", "for i in range(n):\n    v[i] = case(v[i])", FUNCTIONS, globals()))


@jit
def activate(word, addr, n):
    """Apply an activation in place to n float32 at `addr`. word: the result of `activations.word`."""
    v = mem.floats(addr, n)
    limit = limit_of(word)
    bounded, after = limit < INFINITY, word & AFTER != 0
    if bounded and not after:
        bound(v, n, limit)
    apply(code_of(word), v, n)
    if bounded and after:
        bound(v, n, limit)


@jit
def bound(v, n, limit):
    """Clamp v[n] to at most `limit`."""
    for i in range(n):
        v[i] = at_most(v[i], limit)


@jit
def multiply(word, addr, by, n):
    """Bound and shift n float32 at `addr` by the activation's rule, and multiply them by the gate's values at `by`.

    word: the result of `activations.word`.
    """
    v, w = mem.floats(addr, n), mem.floats(by, n)
    if not plain(word):
        limit, shift = limit_of(word), shift_of(code_of(word))
        for i in range(n):
            v[i] = factor(v[i], limit, shift)
    for i in range(n):
        v[i] = v[i] * w[i]
