"""An unfused layer on one GPU, the fused layer's rival: route, gather, two cuBLAS products per expert, scatter.

Its launches follow each other on one stream, in a CUDA graph. Route and place are this package's own kernels; a gather
copies rows into the packed order; each expert has two cuBLAS products with the activation between them; a last kernel
computes the weighted sums. Two things favour the chain: the rows of each expert are fixed when it is made, since the
host would have to wait for the GPU to learn them, and gate and up projections are one product. Its weights are a copy
of the layer's, as rows. Routing from outside is checked, as in the layer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ...engine import words
from ...kernels.common import activations
from ...kernels.common.scores import rule
from ...kernels.cuda import ptx, router
from ...kernels.cuda.catalogue import Kernel, route_kernels
from ...kernels.cuda.combine import FLOATS, ZERO, parts
from ...kernels.cuda.compiler import cuda, types
from ...kernels.cuda.epilogue import activated, gated_product
from ...kernels.cuda.memory_lowering import WARP
from ...kernels.cuda.pack import INTERLEAVE
from ...kernels.cuda.tile import BYTES
from ...primitives import memory as mem
from .unpack import unpacked_copy

THREADS, BLOCKS_A_SM = 256, 8


@cuda.jit
def gather(rows, x, token, count, row_bytes):
    """rows[i] = x[token[i]]; one warp per row."""
    for i in range(cuda.blockIdx.x * mem.warps() + mem.warp(), count, cuda.gridDim.x * mem.warps()):
        mem.copy_row(rows + row_bytes * i, x + row_bytes * mem.load(token + 8 * i), row_bytes)


@cache
def activate(kind: str) -> Kernel:
    """h = act(u + bias), or act(g + bias) * (u + bias), 8 columns of g after each 8 of u; four outputs per thread."""
    four, put = parts(kind)
    size = BYTES[kind]

    @cuda.jit(device=True)
    def biased(address, bias, column):
        v, at = four(address + size * column), bias + 4 * column
        return (v[0] + ptx.load_float(at), v[1] + ptx.load_float(at + 4), v[2] + ptx.load_float(at + 8),
                v[3] + ptx.load_float(at + 12))  # fmt: skip

    def kernel(h, h_bytes, u, u_bytes, bias, count, width, word, gated):
        groups = (width + FLOATS - 1) // FLOATS
        for i in range(cuda.grid(1), count * groups, cuda.gridsize(1)):
            row, column = i // groups, i % groups * FLOATS
            from_row = u + u_bytes * row
            if gated != 0:
                at = (column & -INTERLEAVE) * 2 + (column & INTERLEAVE - 1)
                v, g = biased(from_row, bias, at), biased(from_row, bias, at + INTERLEAVE)
                a, b = gated_product(word, g[0], v[0]), gated_product(word, g[1], v[1])
                c, d = gated_product(word, g[2], v[2]), gated_product(word, g[3], v[3])
            else:
                v, code = biased(from_row, bias, column), activations.code_of(word)
                a, b, c, d = activated(code, v[0]), activated(code, v[1]), activated(code, v[2]), activated(code, v[3])
            put(h + h_bytes * row + size * column, a, b, c, d)

    kernel.__name__ = f"chain_activate_{kind}"
    return Kernel(kernel.__name__, cuda.jit(kernel), (types.int64,) * 9, THREADS, 0, 1)


@cache
def scatter(kind: str) -> Kernel:
    """y[t] = sum over choices taken of weights[t, j] * (row position[t, j] + its expert's bias); one warp per token."""
    four, put = parts(kind)
    size = BYTES[kind]

    def kernel(y, tokens, k, weights, ids, position, rows, row_bytes, bias, bias_step):
        for t in range(cuda.blockIdx.x * mem.warps() + mem.warp(), tokens, cuda.gridDim.x * mem.warps()):
            for at in range(FLOATS * size * mem.lane(), row_bytes, FLOATS * size * WARP):
                a = b = c = d = ZERO
                for j in range(t * k, t * k + k):
                    e = mem.load(ids + 8 * j)
                    if e >= 0:
                        w, v = ptx.load_float(weights + 4 * j), four(rows + row_bytes * mem.load(position + 8 * j) + at)
                        own = bias + bias_step * e + at // size * 4
                        a, b = a + w * (v[0] + ptx.load_float(own)), b + w * (v[1] + ptx.load_float(own + 4))
                        c, d = c + w * (v[2] + ptx.load_float(own + 8)), d + w * (v[3] + ptx.load_float(own + 12))
                put(y + row_bytes * t + at, a, b, c, d)

    kernel.__name__ = f"chain_scatter_{kind}"
    return Kernel(kernel.__name__, cuda.jit(kernel), (types.int64,) * 10, THREADS, 0, 1)


GATHER = Kernel("chain_gather", gather, (types.int64,) * 5, THREADS, 0, 1)


class ProductBuffers:
    """Buffers of the experts' products for at most `rows` rows. columns, pitch: elements and bytes between rows."""

    def __init__(self, gpu: Any, cfg: Any, kind: str, rows: int) -> None:
        size, rows = BYTES[kind], max(1, rows)
        self.columns = -(-cfg.ffn // INTERLEAVE) * INTERLEAVE * 2 if cfg.gated else -(-cfg.ffn // 8) * 8
        self.pitch = -(-cfg.ffn * size // 128) * 128
        self.wide = gpu.allocate(rows * size * self.columns)
        self.hidden = gpu.allocate(rows * self.pitch)


class ChainBuffers:
    """Weights and intermediate buffers that the chains of one layer share, for at most `tokens` tokens.

    weights: the layer's on this GPU (`DeviceWeights`), of `held` experts.
    """

    def __init__(self, gpu: Any, cfg: Any, kind: str, weights: Any, tokens: int, held: int) -> None:
        job = np.zeros(words.JOB_WORDS, np.int64)
        weights.fill(job)
        self.up_step, self.up_bias, self.up_bias_step = job[[words.UP_STEP, words.UP_BIAS, words.UP_BIAS_STEP]]
        self.down_step = job[words.DOWN_STEP]
        self.down_bias, self.down_bias_step = job[[words.DOWN_BIAS, words.DOWN_BIAS_STEP]]
        self.router, self.select_bias = weights.router, weights.select_bias
        count, size = max(1, tokens * cfg.top_k), BYTES[kind]
        # bytes between rows:
        self.pitch = -(-cfg.ffn * size // 128) * 128  # of the second product's weights
        self.depth = -(-cfg.hidden * size // 128) * 128  # the same of the first one's
        self.up = unpacked_copy(gpu, int(job[words.UP]), int(self.up_step) * held, self.depth)
        self.down = unpacked_copy(gpu, int(job[words.DOWN]), int(self.down_step) * held, self.pitch)
        self.packed = gpu.allocate(count * size * cfg.hidden)
        self.of_routing = {
            word: gpu.allocate(max(16, nbytes))
            for word, nbytes in (
                (router.IDS, 8 * count), (router.WEIGHTS, 4 * count), (router.OFFSET, 8 * (cfg.experts + 1)),
                (router.TOKEN, 8 * count), (router.POSITION, 8 * count), (router.STATUS, 8),
                (router.SCRATCH, router.scratch_bytes(tokens, cfg.experts, cfg.experts)),
            )
        }  # fmt: skip
        self.slot_of = gpu.array(np.arange(cfg.experts)).at


class Chain:
    """The steps of a layer's chain for one token count: `LocalChain` on one rank, `RankChain` on several.

    buffers: a `ChainBuffers`. x, y: addresses of contiguous rows. rows: rows of each expert held. ids, weights:
    addresses of [tokens, k] int64 and float32 routed outside, or 0: the chain routes.
    """

    def __init__(self, gpu: Any, cfg: Any, kind: str, blas: Any, buffers: Any, x: int, y: int, tokens: int,
                 rows: np.ndarray, ids: int = 0, weights: int = 0) -> None:  # fmt: skip
        self.gpu, self.cfg, self.kind, self.blas, self.tokens, self.rows = gpu, cfg, kind, blas, tokens, rows
        self.x, self.y, self.size, self.routed = x, y, BYTES[kind], ids != 0
        self.grid, self.row_bytes = BLOCKS_A_SM * gpu.device.sms, self.size * cfg.hidden
        self.buffers = buffers
        given = {router.IDS: ids, router.WEIGHTS: weights, router.GIVEN_IDS: ids, router.GIVEN_WEIGHTS: weights}
        self._routing(given if ids else {})

    def _routing(self, given: dict[int, int]) -> None:
        cfg, gpu, buffers = self.cfg, self.gpu, self.buffers
        job = np.zeros(router.JOB_WORDS, np.int64)
        job[[router.X, router.X_STRIDE, router.TOKENS]] = self.x, self.size * cfg.hidden, self.tokens
        job[[router.HIDDEN, router.EXPERTS, router.SLOTS]] = cfg.hidden, cfg.experts, cfg.experts
        job[[router.TOP_K, router.CHOICES]] = cfg.top_k
        job[[router.SCORE, router.RENORMALIZE]] = rule(cfg.router), cfg.router.renormalize
        job[router.SCALE] = np.float32(cfg.router.scale).view(np.int32)
        job[[router.ROUTER, router.SELECT_BIAS]] = buffers.router, buffers.select_bias
        job[router.SLOT_OF] = buffers.slot_of
        for word, at in (buffers.of_routing | given).items():
            job[word] = at
        self.job, self.job_at = job, gpu.array(job).at

    def pack(self, count: int) -> None:
        """Queue the routing, and the gathering of `count` rows in packed order."""
        cfg, gpu, buffers, kernels, job = self.cfg, self.gpu, self.buffers, route_kernels(), self.job
        kind = self.kind if self.kind in router.KINDS else "f32"
        blocks, route = router.blocks(self.tokens), kernels[router.route(kind).__name__]
        gpu.launch(route, blocks, router.route_shared(cfg.experts, kind), self.job_at)
        gpu.launch(kernels["place"], blocks, router.place_shared(cfg.experts, cfg.top_k), self.job_at)
        gpu.launch(GATHER, self.grid, 0, buffers.packed, self.x, job[router.TOKEN], count, self.row_bytes)

    def experts(self, rows: int, out: int, buffers: ProductBuffers) -> None:
        """Queue the products of every expert on its rows, which lie side by side. rows, out: addresses."""
        first = 0
        for e, m in enumerate(self.rows.tolist()):
            if m:
                at = self.row_bytes * first
                self._expert(e, m, rows + at, out + at, buffers)
            first += m

    def scatter(self, out: int) -> None:
        """Queue the weighted sums of the outputs, which are in packed order. out: address."""
        buffers, job = self.buffers, self.job
        self.gpu.launch(
            scatter(self.kind), self.grid, 0, self.y, self.tokens, self.cfg.top_k, job[router.WEIGHTS], job[router.IDS],
            job[router.POSITION], out, self.row_bytes, buffers.down_bias, buffers.down_bias_step,
        )  # fmt: skip

    def _expert(self, e: int, m: int, rows: int, out: int, of: ProductBuffers) -> None:
        cfg, buffers, size = self.cfg, self.buffers, self.size
        self.blas.product(
            self.kind, m, of.columns, cfg.hidden, rows, cfg.hidden, int(buffers.up + buffers.up_step * e),
            buffers.depth // size, of.wide, of.columns,
        )  # fmt: skip
        self.gpu.launch(
            activate(self.kind), self.grid, 0, of.hidden, of.pitch, of.wide, size * of.columns,
            buffers.up_bias + buffers.up_bias_step * e, m, cfg.ffn,
            activations.word(cfg.activation, cfg.limit, cfg.limit_after), cfg.gated,
        )  # fmt: skip
        self.blas.product(
            self.kind, m, cfg.hidden, cfg.ffn, of.hidden, of.pitch // size, int(buffers.down + buffers.down_step * e),
            buffers.pitch // size, out, cfg.hidden,
        )  # fmt: skip


class LocalChain(Chain):
    """The chain on one rank. Arguments as those of `Chain`."""

    def __call__(self) -> None:
        """Queue all launches."""
        buffers = self.buffers
        self.pack(int(self.rows.sum()))
        self.experts(buffers.packed, buffers.out, buffers.products)
        self.scatter(buffers.out)


class LocalBuffers(ChainBuffers):
    """What the chains of a layer on one rank share. Arguments as those of `ChainBuffers`."""

    def __init__(self, gpu: Any, cfg: Any, kind: str, weights: Any, tokens: int) -> None:
        super().__init__(gpu, cfg, kind, weights, tokens, held=cfg.experts)
        self.products = ProductBuffers(gpu, cfg, kind, tokens * cfg.top_k)
        self.out = gpu.allocate(max(1, tokens * cfg.top_k) * BYTES[kind] * cfg.hidden)
