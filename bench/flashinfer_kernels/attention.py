"""Cases of FlashInfer's attention: see registry.py. Caches have pages of 16 rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from device import TO_DEVICE, Tensor, empty
from registry import Results, case, half

HEADS, SHARED, SIZE = 8, 2, 128  # heads of queries; of keys and values; numbers in a head
SCALE = SIZE**-0.5
NONE, CAUSAL, BY_ROWS = 0, 1, 0  # FlashInfer's numbers of masks, and of the layout [rows, heads, size]
NUMBERS = (0.0, SCALE, 1.0, 1.0)  # no soft cap; the scale of scores; two numbers of rotary embeddings, which are off
NO_WINDOW = -1
ERROR = 2e-3
PAGE = 16
LENGTHS, PAGES = (33, 70), np.array([4, 0, 6, 1, 7, 3, 2, 5], np.int32)  # rows of two requests, and their pages
PAGE_STARTS = np.array([0, 3, 8], np.int32)
LAST_ROWS = np.array([1, 6], np.int32)
Pair = tuple[np.ndarray, np.ndarray]


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool, scale: float = SCALE) -> Pair:
    """Attention of q [rows, heads, size] to k and v [rows, shared heads, size], and the sums' logarithms, base 2."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * scale
    if causal:
        later = np.arange(len(k))[None, :] > np.arange(len(q))[:, None] + len(k) - len(q)
        scores = np.where(later, -np.inf, scores)
    top = scores.max(-1, keepdims=True)
    weight = np.exp(scores - top)
    total = weight.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weight / total, v), ((top + np.log(total))[..., 0] / np.log(2)).T


def made(rows: int, others: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k and v."""
    return half(rows, HEADS, SIZE), half(others, SHARED, SIZE, seed=2), half(others, SHARED, SIZE, seed=3)


def found(outs: tuple[Tensor, Tensor], o: np.ndarray, lse: np.ndarray) -> Results:
    """The results of a call that wrote outs."""
    return {"o": (outs[0], o, ERROR), "lse": (outs[1], lse, ERROR)}


def outputs(rows: int) -> tuple[Tensor, Tensor]:
    """Arrays for attention and the logarithms."""
    return empty((rows, HEADS, SIZE), np.float16), empty((rows, HEADS), np.float32)


@case("single_decode")
def single_decode(module: Any) -> Results:
    q, k, v = made(1, 77)
    flat = empty((HEADS, SIZE), np.float16), empty(HEADS, np.float32)
    module.run(
        Tensor(q[0]), Tensor(k), Tensor(v), empty(1 << 16, np.float16), *flat, BY_ROWS, NO_WINDOW, None, *NUMBERS
    )
    o, lse = attended(q, k, v, False)
    return found(flat, o[0], lse[0])


def prefill(module: Any, rows: int, others: int, mask: int) -> Results:
    """The results of single_prefill."""
    q, k, v = made(rows, others)
    outs = outputs(rows)
    given = (Tensor(q), Tensor(k), Tensor(v), empty(1 << 16, np.float16), *outs, mask, BY_ROWS, NO_WINDOW)
    module.run(*given, None, None, None, None, *NUMBERS)
    return found(outs, *attended(q, k, v, mask == CAUSAL))


@case("single_prefill")
def single_prefill(module: Any) -> Results:
    return prefill(module, 20, 50, NONE)


@case("single_prefill")
def single_prefill_causal(module: Any) -> Results:
    return prefill(module, 20, 50, CAUSAL)


@case("single_prefill")
def single_prefill_of_few(module: Any) -> Results:
    return prefill(module, 3, 50, CAUSAL)


def workspaces() -> tuple[Tensor, Tensor, Tensor]:
    """Memory for partial results, for plans, and for plans on the host."""
    return empty(1 << 22, np.uint8), empty(1 << 20, np.uint8), Tensor(np.zeros(1 << 20, np.uint8), on_host=True)


def on_host(values: Any) -> Tensor:
    """Integers on the host."""
    return Tensor(np.array(values, np.int32), on_host=True)


def paged(rows: list[np.ndarray]) -> Tensor:
    """A cache of pages with the rows of each request. Rows that belong to none are 0."""
    cache = np.zeros((len(PAGES), PAGE, *rows[0].shape[1:]), np.float16)
    for request, own in enumerate(rows):
        for position, row in enumerate(own):
            cache[PAGES[PAGE_STARTS[request] + position // PAGE], position % PAGE] = row
    return Tensor(cache)


@case("batch_decode")
def batch_decode(module: Any) -> Results:
    k, v = ([half(n, SHARED, SIZE, seed=seed + n) for n in LENGTHS] for seed in (2, 3))
    q, outs, (floats, integers, pinned) = half(2, HEADS, SIZE), outputs(2), workspaces()
    kinds = empty(1, np.float16), empty(1, np.float16)
    plan = module.plan(
        floats,
        integers,
        pinned,
        on_host(PAGE_STARTS),
        2,
        HEADS,
        SHARED,
        PAGE,
        False,
        NO_WINDOW,
        0.0,
        SIZE,
        SIZE,
        *kinds,
    )
    table = Tensor(PAGE_STARTS), Tensor(PAGES), Tensor(LAST_ROWS)
    module.run(
        floats, integers, plan, Tensor(q), paged(k), paged(v), *table, *outs, BY_ROWS, NO_WINDOW, False, None, *NUMBERS
    )
    parts = [attended(q[at : at + 1], k[at], v[at], False) for at in range(2)]
    return found(outs, *map(np.concatenate, zip(*parts)))


def planned(module: Any, rows: tuple[int, int], pages: list[int], page: int) -> tuple[tuple[Tensor, Tensor], Any]:
    """The workspaces and the plan of batch_prefill for two requests."""
    floats, integers, pinned = workspaces()
    starts = np.cumsum([0, *rows])
    plan = module.plan(
        floats,
        integers,
        pinned,
        on_host(starts),
        on_host(pages),
        on_host(LENGTHS),
        sum(rows),
        2,
        HEADS,
        SHARED,
        page,
        False,
        SIZE,
        SIZE,
        True,
        NO_WINDOW,
        -1,
        False,
        0,
        0,
        False,
    )
    return (floats, integers), plan


def batches(rows: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
    """Queries, keys and values of two requests, and what causal attention makes of them."""
    q = half(sum(rows), HEADS, SIZE)
    k, v = ([half(n, SHARED, SIZE, seed=seed + n) for n in LENGTHS] for seed in (2, 3))
    parts = [attended(part, *pair, True) for part, *pair in zip(np.split(q, [rows[0]]), k, v)]
    return q, k, v, *map(np.concatenate, zip(*parts))


@case("batch_prefill")
def batch_prefill_ragged(module: Any) -> Results:
    rows = (9, 21)
    q, k, v, *want = batches(rows)
    starts, others = np.cumsum([0, *rows]).astype(np.int32), np.cumsum([0, *LENGTHS]).astype(np.int32)
    spaces, plan = planned(module, rows, list(others), 1)
    outs = outputs(sum(rows))
    given = (Tensor(q), Tensor(np.concatenate(k)), Tensor(np.concatenate(v)), Tensor(starts), Tensor(others))
    module.ragged_run(*spaces, plan, *given, *outs, CAUSAL, BY_ROWS, NO_WINDOW, False, None, None, None, *NUMBERS)
    return found(outs, *want)


@case("batch_prefill")
def batch_prefill_paged(module: Any) -> Results:
    rows = (9, 21)
    q, k, v, *want = batches(rows)
    spaces, plan = planned(module, rows, list(PAGE_STARTS), PAGE)
    outs = outputs(sum(rows))
    starts = Tensor(np.cumsum([0, *rows]).astype(np.int32))
    table = Tensor(PAGE_STARTS), Tensor(PAGES), Tensor(LAST_ROWS)
    module.paged_run(
        *spaces,
        plan,
        Tensor(q),
        paged(k),
        paged(v),
        starts,
        *table,
        *outs,
        CAUSAL,
        BY_ROWS,
        NO_WINDOW,
        False,
        None,
        None,
        None,
        *NUMBERS,
    )
    return found(outs, *want)


@case("batch_mla")
def batch_mla(module: Any) -> Results:
    heads, wide, narrow, scale = 16, 512, 64, 192**-0.5
    q, q_pe = half(2, heads, wide), half(2, heads, narrow, seed=2)
    ckv, kpe = ([half(n, size, seed=size + n) for n in LENGTHS] for size in (wide, narrow))
    floats, integers, pinned = workspaces()
    plan, staged = module.plan(
        floats, integers, pinned, on_host([0, 1, 2]), on_host(PAGE_STARTS), on_host(LENGTHS), heads, wide, False
    )
    integers.values[:staged] = pinned.values[:staged]
    integers.copy(TO_DEVICE)
    outs = empty((2, heads, wide), np.float16), empty((2, heads), np.float32)
    module.run(
        floats,
        integers,
        plan,
        Tensor(q),
        Tensor(q_pe),
        paged(ckv),
        paged(kpe),
        Tensor(PAGES),
        *outs,
        NONE,
        heads,
        PAGE,
        scale,
        False,
        1.0,
        1.0,
        None,
    )
    both = np.concatenate([q, q_pe], axis=-1)
    parts = [
        attended(both[at : at + 1], np.concatenate([c, p], 1)[:, None], c[:, None], False, scale)
        for at, (c, p) in enumerate(zip(ckv, kpe))
    ]
    return found(outs, *map(np.concatenate, zip(*parts)))
