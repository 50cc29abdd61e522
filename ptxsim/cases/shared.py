"""Cases of shared memory: barriers of a block or of a warp that are missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .run import Case, Setting


def rounds(setting: Setting) -> Callable[[], bool]:
    """A block of 96 threads counts keys in three rounds."""
    keys = setting.a.array(np.arange(96, dtype=np.int32) * 5, "keys")
    out = setting.fresh(96, "out", np.int32)
    setting.launch("histogram_rounds", 1, 96, keys, out)
    return lambda: True


def tokens(setting: Setting) -> Callable[[], bool]:
    """A block of 128 threads normalises three tokens."""
    x = np.linspace(1, 2, 384, dtype=np.float32)
    y = setting.fresh(384, "y")
    setting.launch("norm_of_tokens", 1, 128, setting.a.array(x, "x"), y)
    rows = x.reshape(3, 128)
    want = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    return lambda: bool(np.allclose(y._view().reshape(3, 128), want, rtol=1e-4))


def tiles(setting: Setting) -> Callable[[], bool]:
    """A block of 64 threads gathers three tiles of rows."""
    ids = np.arange(192, dtype=np.int32)[::-1].copy()
    x = np.arange(192, dtype=np.float32)
    y = setting.fresh(192, "y")
    setting.launch("rows_of_tiles", 1, 64, setting.a.array(ids, "ids"), setting.a.array(x, "x"), y)
    want = x[ids.reshape(3, 64)[:, ::-1]].ravel()
    return lambda: bool(np.array_equal(y._view(), want))


def reduced(setting: Setting, kernel: str, block: int, count: int, results: int, want: Any) -> Callable[[], bool]:
    """A block reduces `count` ones to `results` numbers."""
    x, y = setting.a.array(np.ones(count, np.float32), "x"), setting.fresh(results, "y")
    setting.launch(kernel, 1, block, x, y)
    return lambda: bool((y._view() == want).all())


CASES = [
    Case(
        "histogram", "flashinfer-ai/flashinfer#3529", "https://github.com/flashinfer-ai/flashinfer/pull/3529",
        "a histogram was cleared for the next round while threads still read its counts; repaired by __syncthreads",
        "shared.cu", ("histogram_rounds",), rounds,
    ),
    Case(
        "norm_of_tokens", "gittensor-ai-lab/sparkinfer#665", "https://github.com/gittensor-ai-lab/sparkinfer/pull/665",
        "partial sums of the next token overwrote the factor of the last; repaired by __syncthreads",
        "shared.cu", ("norm_of_tokens",), tokens,
    ),
    Case(
        "rows_of_tiles", "ggml-org/llama.cpp#13294", "https://github.com/ggml-org/llama.cpp/pull/13294",
        "a list of rows was loaded again while threads used it; repaired by __syncthreads",
        "shared.cu", ("rows_of_tiles",), tiles,
    ),
    Case(
        "warp_result", "kokkos/kokkos#6630", "https://github.com/kokkos/kokkos/pull/6630",
        "lanes read a result that one lane wrote; repaired by __syncwarp",
        "shared.cu", ("warp_result",), partial(reduced, kernel="warp_result", block=32, count=2, results=32, want=2),
    ),
    Case(
        "warp_tree", "OP-DSL/OP2-Common#185", "https://github.com/OP-DSL/OP2-Common/issues/185",
        "a tree of sums in one warp had no __syncwarp between its levels",
        "shared.cu", ("warp_tree",), partial(reduced, kernel="warp_tree", block=32, count=64, results=1, want=64),
    ),
    Case(
        "last_levels", "UoB-HPC/CloverLeaf#16", "https://github.com/UoB-HPC/CloverLeaf/issues/16",
        "__syncthreads was left out for the last levels of a sum, those of one warp",
        "shared.cu", ("last_levels",),
        partial(reduced, kernel="last_levels", block=128, count=128, results=1, want=128),
    ),
    Case(
        "absent_lanes", "NVIDIA/cuda-samples#398", "https://github.com/NVIDIA/cuda-samples/issues/398",
        "the first lanes added sums by shuffles that read lanes outside the mask; repaired here by all lanes",
        "shared.cu", ("absent_lanes",),
        partial(reduced, kernel="absent_lanes", block=128, count=128, results=1, want=128),
    ),
]  # fmt: skip
