"""Cases of FlashInfer's norms, rotary embeddings, pages, cascades and quantization: see registry.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from device import Tensor, empty
from registry import Results, case, half

HALF = 2e-3  # how far a number of half precision below 2 may be off: a step or two
EPSILON = 1e-5


def normed(x: np.ndarray) -> np.ndarray:
    """The rows divided by their root mean square."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + EPSILON)


NORM = ("norm.cu", "flashinfer_norm_binding.cu")


@case(*NORM)
def rmsnorm(module: Any) -> Results:
    x, weight, out = half(4, 1024), half(1024, seed=2), empty((4, 1024), np.float16)
    module.rmsnorm(out, Tensor(x), Tensor(weight), EPSILON, False)
    return {"out": (out, normed(x) * weight, HALF)}


@case(*NORM)
def rmsnorm_of_heads(module: Any) -> Results:
    x, weight, out = half(3, 5, 128), half(128, seed=2), empty((3, 5, 128), np.float16)
    module.rmsnorm(out, Tensor(x), Tensor(weight), EPSILON, False)
    return {"out": (out, normed(x) * weight, HALF)}


@case(*NORM)
def rmsnorm_quant(module: Any) -> Results:
    x, weight, out = half(4, 1024), half(1024, seed=2), empty((4, 1024), ml_dtypes.float8_e4m3fn)
    module.rmsnorm_quant(out, Tensor(x), Tensor(weight), Tensor(np.full(1, 0.5, np.float32)), EPSILON, False)
    return {"out": (out, normed(x) * weight * 2, 0.14)}


@case(*NORM)
def fused_add_rmsnorm(module: Any) -> Results:
    x, residual, weight = half(4, 1024), half(4, 1024, seed=2), half(1024, seed=3)
    out, summed = Tensor(x), Tensor(residual)
    module.fused_add_rmsnorm(out, summed, Tensor(weight), EPSILON, False)
    total = x.astype(np.float64) + residual
    return {"out": (out, normed(total) * weight, HALF), "residual": (summed, total, HALF)}


@case(*NORM)
def fused_add_rmsnorm_quant(module: Any) -> Results:
    x, residual, weight = half(4, 1024), half(4, 1024, seed=2), half(1024, seed=3)
    out, summed = empty((4, 1024), ml_dtypes.float8_e4m3fn), Tensor(residual)
    scale = Tensor(np.full(1, 0.5, np.float32))
    module.fused_add_rmsnorm_quant(out, Tensor(x), summed, Tensor(weight), scale, EPSILON, False)
    total = x.astype(np.float64) + residual
    return {"out": (out, normed(total) * weight * 2, 0.26), "residual": (summed, total, HALF)}


@case(*NORM)
def gemma_rmsnorm(module: Any) -> Results:
    x, weight, out = half(4, 1024), half(1024, seed=2), empty((4, 1024), np.float16)
    module.gemma_rmsnorm(out, Tensor(x), Tensor(weight), EPSILON, False)
    return {"out": (out, normed(x) * (1 + weight.astype(np.float64)), 2 * HALF)}


@case(*NORM)
def layernorm(module: Any) -> Results:
    x, out = half(4, 1024).astype(ml_dtypes.bfloat16), empty((4, 1024), ml_dtypes.bfloat16)
    gamma, beta = (half(1024, seed=seed).astype(np.float32) for seed in (2, 3))
    module.layernorm(out, Tensor(x), Tensor(gamma), Tensor(beta), EPSILON)
    wide = x.astype(np.float64)
    spread = wide - wide.mean(-1, keepdims=True)
    want = spread / np.sqrt((spread * spread).mean(-1, keepdims=True) + EPSILON) * gamma + beta
    return {"out": (out, want, 0.02)}


def rotated(x: np.ndarray, positions: np.ndarray, base: float = 1e4) -> np.ndarray:
    """[rows, heads, size] whose halves are rotated by angles that grow with the position."""
    wide, size = x.astype(np.float64), x.shape[-1]
    angle = positions[:, None, None] * base ** (-np.arange(0, size, 2) / size)
    one, two = wide[..., : size // 2], wide[..., size // 2 :]
    return np.concatenate(
        [one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)], axis=-1
    )


ROPE = ("rope.cu", "flashinfer_rope_binding.cu")
POSITIONS = np.array([3, 4, 5, 0, 1], np.int32)


def rope(call: Callable[..., None], *given: Any) -> Results:
    """The results of a function that rotates 4 heads of q and 2 of k at POSITIONS. given: its other arguments."""
    q, k = half(5, 4, 128), half(5, 2, 128, seed=2)
    outs = empty(q.shape, np.float16), empty(k.shape, np.float16)
    call(Tensor(q), Tensor(k), *outs, *given)
    return {
        name: (out, rotated(x, POSITIONS.astype(float)), 2 * HALF) for name, out, x in zip(("q", "k"), outs, (q, k))
    }


@case(*ROPE)
def apply_rope(module: Any) -> Results:
    starts, offsets = (Tensor(np.array(values, np.int32)) for values in ((0, 3, 5), (3, 0)))
    return rope(module.apply_rope, starts, offsets, 128, False, 1.0, 1e4)


@case(*ROPE)
def apply_rope_pos_ids(module: Any) -> Results:
    return rope(module.apply_rope_pos_ids, Tensor(POSITIONS), 128, False, 1.0, 1e4)


@case(*ROPE)
def apply_rope_pos_ids_cos_sin_cache(module: Any) -> Results:
    angle = np.arange(8)[:, None] * 1e4 ** (-np.arange(0, 128, 2) / 128)
    cache = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return rope(module.apply_rope_pos_ids_cos_sin_cache, Tensor(cache), Tensor(POSITIONS), False)


PAGE = ("page.cu", "flashinfer_page_binding.cu")
BATCH = np.array([0, 0, 0, 1, 1], np.int32)  # the requests to which five new rows belong
PAGES = np.array([2, 0, 3], np.int32)  # pages of four rows: two of request 0, one of request 1
PAGE_STARTS, LAST_ROWS = np.array([0, 2, 3], np.int32), np.array([2, 2], np.int32)


def placed(rows: np.ndarray, pages: int) -> np.ndarray:
    """Zeroed pages of four rows, with rows at POSITIONS of their requests."""
    made = np.zeros((pages, 4, *rows.shape[1:]), np.float16)
    for row, request, position in zip(rows, BATCH, POSITIONS):
        made[PAGES[PAGE_STARTS[request] + position // 4], position % 4] = row
    return made


@case(*PAGE)
def append_paged_kv_cache(module: Any) -> Results:
    new = half(5, 2, 128), half(5, 2, 128, seed=2)
    caches = [Tensor(np.zeros((4, 4, 2, 128), np.float16)) for _ in new]
    given = [Tensor(values) for values in (*new, BATCH, POSITIONS)]
    table = [Tensor(values) for values in (PAGES, PAGE_STARTS, LAST_ROWS)]
    module.append_paged_kv_cache(*given, *caches, *table, 0)
    return {name: (cache, placed(rows, 4), 0) for name, cache, rows in zip(("k", "v"), caches, new)}


@case(*PAGE)
def append_paged_mla_kv_cache(module: Any) -> Results:
    new = half(5, 512), half(5, 64, seed=2)
    caches = [Tensor(np.zeros((4, 4, rows.shape[1]), np.float16)) for rows in new]
    given = [Tensor(values) for values in (*new, BATCH, POSITIONS)]
    table = [Tensor(values) for values in (PAGES, PAGE_STARTS, LAST_ROWS)]
    module.append_paged_mla_kv_cache(*given, *caches, *table)
    return {name: (cache, placed(rows, 4), 0) for name, cache, rows in zip(("ckv", "kpe"), caches, new)}


CASCADE = ("cascade.cu", "flashinfer_cascade_binding.cu")


def merged(v: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention states [rows, states, heads, size] and their logarithms to base 2, merged to one state a row."""
    weight = 2.0**s
    total = weight.sum(1)
    return (v.astype(np.float64) * weight[..., None]).sum(1) / total[..., None], np.log2(total)


def states(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` attention states of 3 rows of 4 heads of 128 numbers."""
    return half(3, count, 4, 128), 4 * half(3, count, 4, seed=2).astype(np.float32)


@case(*CASCADE)
def merge_state(module: Any) -> Results:
    v, s = states(2)
    outs = empty((3, 4, 128), np.float16), empty((3, 4), np.float32)
    module.merge_state(Tensor(v[:, 0]), Tensor(s[:, 0]), Tensor(v[:, 1]), Tensor(s[:, 1]), *outs)
    return {name: (out, want, HALF) for name, out, want in zip(("v", "s"), outs, merged(v, s))}


@case(*CASCADE)
def merge_state_in_place(module: Any) -> Results:
    v, s = states(2)
    outs = Tensor(v[:, 0]), Tensor(s[:, 0])
    module.merge_state_in_place(*outs, Tensor(v[:, 1]), Tensor(s[:, 1]), None)
    return {name: (out, want, HALF) for name, out, want in zip(("v", "s"), outs, merged(v, s))}


def merge_many(module: Any, count: int) -> Results:
    """The results of merge_states."""
    v, s = states(count)
    outs = empty((3, 4, 128), np.float16), empty((3, 4), np.float32)
    module.merge_states(Tensor(v), Tensor(s), *outs)
    return {name: (out, want, HALF) for name, out, want in zip(("v", "s"), outs, merged(v, s))}


@case(*CASCADE)
def merge_states(module: Any) -> Results:
    return merge_many(module, 2)


@case(*CASCADE)
def merge_states_of_many(module: Any) -> Results:
    return merge_many(module, 42)


QUANTIZATION = ("quantization.cu", "csf_scales.cu", "flashinfer_quantization_binding.cu")


@case(*QUANTIZATION)
def packbits(module: Any) -> Results:
    bits = np.random.default_rng(1).random(1000) < 0.5
    out = empty(125, np.uint8)
    module.packbits(Tensor(bits), "big", out)
    return {"out": (out, np.packbits(bits), 0)}


@case(*QUANTIZATION)
def segment_packbits(module: Any) -> Results:
    bits, starts = np.random.default_rng(1).random(150) < 0.5, np.array([0, 37, 150], np.int32)
    parts = [np.packbits(bits[start:end], bitorder="little") for start, end in itertools.pairwise(starts)]
    out, places = empty(20, np.uint8), np.array([0, 5, 20], np.int32)
    module.segment_packbits(Tensor(bits), Tensor(starts), Tensor(places), "little", out)
    return {"out": (out, np.concatenate(parts), 0)}


@case(*QUANTIZATION)
def per_token_group_quant_8bit(module: Any) -> Results:
    x, out, scales = half(6, 512), empty((6, 512), np.int8), empty((6, 4), np.float32)
    module.per_token_group_quant_8bit(Tensor(x), out, scales, 1e-10, 128, 4, 1, False, False)
    groups = x.reshape(6, 4, 128).astype(np.float32)
    want = abs(groups).max(-1) / 127
    return {"scales": (scales, want, 1e-9), "out": (out, (groups / want[..., None]).round().reshape(6, 512), 1)}


@case("concat_mla.cu")
def concat_mla_k(module: Any) -> Results:
    nope, rope_part, out = half(2, 128, 128), half(2, 1, 64, seed=2), empty((2, 128, 192), np.float16)
    module.concat_mla_k(out, Tensor(nope), Tensor(rope_part))
    return {"k": (out, np.concatenate([nope, np.broadcast_to(rope_part, (2, 128, 64))], axis=-1), 0)}
