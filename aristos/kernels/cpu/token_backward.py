"""Backward arithmetic of whole tokens, in float32: gradients of router scores, sums over choices, sums over tokens.

Every value of a token depends on that token alone. A sum over tokens is one chain in order of tokens.
"""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives.arithmetic import CombineToken, Product
from ...primitives.buffers import FLOAT
from ..common.score_slopes import score_slopes
from .convert import FLOAT32
from .expert_backward import MOST_ROWS, dot
from .gemm import packed_bytes, product
from .outer import MOST_OUTER, add_outer, add_rows, outer_bytes
from .tokens import combine_token


@jit
def logit_gradients(count, logits, columns, ids, dw, k, code, renormalize, scale, out):
    """Add the gradients of the router scores of `count` tokens to out[count, columns].

    logits, ids, dw, out: the addresses of contiguous arrays. logits: the scores. ids: the chosen experts, int64.
    dw[count, k]: the gradients of the combine weights.
    """
    for t in range(count):
        row, into = mem.floats(logits + FLOAT * columns * t, columns), mem.floats(out + FLOAT * columns * t, columns)
        chosen, back = mem.words(ids + 8 * k * t, k), mem.floats(dw + FLOAT * k * t, k)
        score_slopes(code, row, columns, renormalize, chosen, back, k, scale, into)


@jit
def combine_rows(count, y, stride, k, factors, rows, hidden):
    """Set y[t] to the sum over j < k of factors[t, j] * row [t, j], in order of j.

    stride: bytes between rows of y. rows: the address of [count, k] row addresses; an address is 0 if there is no row.
    """
    for t in range(count):
        weights, addresses = factors + FLOAT * k * t, rows + 8 * k * t
        combine_token(
            FLOAT32,
            CombineToken(y=y + stride * t, k=k, weights=weights, rows=addresses, hidden=hidden, scratch=0),
        )


@jit
def row_dots(count, a, b, n, out):
    """Set out[i] to the dot product of rows i of a and b, of n float32. a, b: addresses of arrays of row addresses."""
    sums = mem.floats(out, count)
    for i in range(count):
        sums[i] = dot(mem.load(a + 8 * i), mem.load(b + 8 * i), n)


def product_bytes(depth):
    """Bytes of scratch of `product_rows`."""
    return packed_bytes(MOST_ROWS, depth)


@jit
def product_rows(count, x, depth, panels, columns, y, scratch):
    """Compute y = x W for any number of rows. The other arguments are those of a Product."""
    for i in range(0, count, MOST_ROWS):
        rows = min(MOST_ROWS, count - i)
        part = Product(
            rows=rows, x=x + 8 * i, depth=depth, panels=panels, columns=columns, y=y + 8 * i, scratch=scratch
        )
        product(part)


def outer_sums_bytes(widest):
    """Bytes of scratch of `add_outer_sums`. widest: the larger number of columns of x and b."""
    return outer_bytes(MOST_OUTER, widest)


@jit
def add_outer_sums(count, x, rows, b, columns, out, sums, scratch):
    """Add the sum over tokens of x[t]^T b[t] to out[rows, columns], and the sum of b[t] to sums[columns].

    sums: the address of `columns` float32, or 0 if the sum of b[t] is not wanted. x, b: the addresses of arrays of row
    addresses. A row of out has space for `columns` float32, rounded up to whole vectors. scratch: the address of
    `outer_sums_bytes(the larger of rows and columns)` bytes.
    """
    for i in range(0, count, MOST_OUTER):
        m = min(MOST_OUTER, count - i)
        add_outer(m, x + 8 * i, 0, rows, b + 8 * i, 0, columns, out, 1, False, scratch)
        if sums != 0:
            add_rows(m, b + 8 * i, 0, columns, sums, 1)
