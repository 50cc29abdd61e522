"""The unfused layer on several ranks, a GPU each: route, gather, all-to-all, experts, all-to-all back, scatter.

What frameworks do without fused kernels. `chain.py` says what favours it; here too the numbers of rows are fixed when
it is made, so that no rank waits to learn them. With NCCL the whole chain is one CUDA graph. With MPI it is three,
with MPI's calls between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chain import GATHER, Chain, ChainBuffers, ProductBuffers


class RankBuffers(ChainBuffers):
    """What the chains of a layer share on one of several ranks. placement: [E] the rank of each expert. Collective."""

    def __init__(self, gpu: Any, cfg: Any, kind: str, weights: Any, tokens: int, placement: NDArray[np.int64]) -> None:
        me = gpu.world.rank
        self.mine = np.flatnonzero(placement == me)
        super().__init__(gpu, cfg, kind, weights, tokens, held=len(self.mine))
        self.placement = placement
        self.order = np.argsort(placement, kind="stable")  # packed order: by rank, then by expert
        slot_of = np.empty(cfg.experts, np.int64)
        slot_of[self.order] = np.arange(cfg.experts)
        self.slot_of = gpu.array(slot_of).at
        self.down_bias_step = max(gpu.world.allgather(int(self.down_bias_step)))  # 0 on a rank without experts
        own = np.empty((len(self.mine), self.down_bias_step), np.uint8)
        if own.size:
            gpu.device.copy_out(own, int(self.down_bias), gpu.stream)
            gpu.device.synchronize(gpu.stream)
        every = np.zeros((cfg.experts, self.down_bias_step), np.uint8)
        for rank, part in enumerate(gpu.world.allgather(own)):
            every[placement == rank] = part
        self.down_bias = gpu.array(every).at  # of all experts: the source adds an expert's bias


class RankChain(Chain):
    """The chain of a layer for one call. counts: [W, E] rows of each rank for each expert. Making it is collective.

    exchange: an all-to-all of `alltoall.py`. Other arguments as those of `Chain`.
    """

    def __init__(self, gpu: Any, cfg: Any, kind: str, blas: Any, buffers: RankBuffers, x: int, y: int, tokens: int,
                 counts: NDArray[np.int64], exchange: Any, ids: int = 0, weights: int = 0) -> None:  # fmt: skip
        me, world = gpu.world.rank, gpu.world.size
        super().__init__(gpu, cfg, kind, blas, buffers, x, y, tokens, counts[:, buffers.mine].sum(axis=0), ids, weights)
        self.exchange, self.sent = exchange, int(counts[me].sum())
        row = self.row_bytes
        self.sends = row * np.array([counts[me, buffers.placement == p].sum() for p in range(world)])
        self.gets = row * counts[:, buffers.mine].sum(axis=1)
        taken = counts[:, buffers.mine]  # rows land by rank, and a rank's by expert
        at = (np.cumsum(taken) - taken.reshape(-1)).reshape(taken.shape)
        parts = [np.arange(at[p, e], at[p, e] + taken[p, e]) for e in range(taken.shape[1]) for p in range(world)]
        by_expert = np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)
        self.by_expert, self.by_rank = (gpu.array(each).at for each in (by_expert, np.argsort(by_expert)))
        self.landed, self.ordered, self.made = (gpu.allocate(max(16, row * len(by_expert))) for _ in range(3))
        self.products = ProductBuffers(gpu, cfg, kind, len(by_expert))
        self.out = gpu.allocate(max(16, row * self.sent))

    def there(self) -> None:
        """Move the rows to their experts' ranks."""
        self.exchange(self.landed, self.buffers.packed, self.sends, self.gets)

    def compute(self) -> None:
        """Queue the experts on the rows that have landed, and bring their outputs into the order of arrival."""
        count = int(self.rows.sum())
        self.gpu.launch(GATHER, self.grid, 0, self.ordered, self.landed, self.by_expert, count, self.row_bytes)
        self.experts(self.ordered, self.made, self.products)
        self.gpu.launch(GATHER, self.grid, 0, self.landed, self.made, self.by_rank, count, self.row_bytes)

    def back(self) -> None:
        """Move the outputs back."""
        self.exchange(self.out, self.landed, self.gets, self.sends)

    def __call__(self) -> None:
        """Queue everything, or with MPI run all but the last part."""
        self.pack(self.sent)
        self.there()
        self.compute()
        self.back()
        self.scatter(self.out)

    def graph(self) -> Callable[[], None]:
        """A function that runs the chain by graphs. Collective, after one plain call, which loads the kernels."""
        device, stream = self.gpu.device, self.gpu.stream
        if self.exchange.captured:
            return partial(device.replay, device.graph(stream, self), stream)
        first, middle, last = (
            device.graph(stream, part)
            for part in (partial(self.pack, self.sent), self.compute, partial(self.scatter, self.out))
        )

        def run() -> None:
            device.replay(first, stream)
            self.there()
            device.replay(middle, stream)
            self.back()
            device.replay(last, stream)

        return run


def most_bytes(counts: NDArray[np.int64], placement: NDArray[np.int64], row_bytes: int) -> int:
    """The most bytes that a rank sends or gets. counts: [W, E]."""
    gets = [int(counts[:, placement == p].sum()) for p in range(len(counts))]
    return row_bytes * max(1, int(counts.sum(axis=1).max()), *gets)
