"""The experts of a layer as a module of PyTorch: `Experts(cfg, comm)`. Inference alone, on CPUs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from ..config import MoEConfig
from ..errors import InputError
from ..layer.moe import MoE

ROWS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Experts(torch.nn.Module):
    """y = experts(x, ids, weights), of any number of tokens on each rank of a communicator. Collective.

    Arguments are those of `aristos.MoE`; without comm, threads is by default torch's number. `load` takes weights as
    `MoE.load` does.
    """

    def __init__(self, cfg: MoEConfig, comm: Any = None, *, threads: int | None = None, **options: Any) -> None:
        super().__init__()
        self.cfg = cfg
        if threads is None and comm is None:
            threads = torch.get_num_threads()
        self.moe = MoE(cfg, comm, backend="cpu", threads=threads, **options)

    def load(self, **weights: Any) -> None:
        """Take the layer's weights: see `aristos.MoE.load`. Not collective."""
        self.moe.load(0, **weights)

    def forward(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int | None = None
    ) -> torch.Tensor:
        """y: [..., H] of x's type. x: [..., H] of cfg.dtype; ids: [..., k]; weights: [..., k], read as float32.

        More than cfg.max_tokens tokens are computed in several calls, as many on every rank: the ranks agree on their
        number, or have done so (calls). Raises InputError if a gradient is asked for: there is none yet.
        """
        if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
            raise InputError("Experts compute no gradients yet: call them under torch.no_grad()")
        if ROWS.get(x.dtype) != self.cfg.dtype:
            raise InputError(f"x must be of torch.{self.cfg.dtype}, which the configuration has, got {x.dtype}")
        if calls is not None and calls < self.calls_for(x[..., 0].numel()):
            raise InputError(f"{calls} calls hold {calls * self.cfg.max_tokens} tokens, got {x[..., 0].numel()}")
        rows, k = x.detach().reshape(-1, x.shape[-1]).contiguous(), ids.shape[-1]
        ids, weights = ids.reshape(-1, k), weights.detach().reshape(-1, k).float()
        y = torch.empty_like(rows)
        out, most = as_numpy(y), self.cfg.max_tokens
        for call in range(self._agreed(self.calls_for(len(rows))) if calls is None else calls):
            part = slice(call * most, (call + 1) * most)
            self.moe(rows[part], ids[part], weights[part], out=out[part])
        return y.reshape(x.shape)

    def calls_for(self, tokens: int) -> int:
        """Calls that this rank needs for its tokens."""
        return -(-tokens // self.cfg.max_tokens)

    def _agreed(self, mine: int) -> int:
        """As many calls as the rank with most tokens needs."""
        if self.moe.world == 1:
            return mine
        return int(self.moe.runtime.group.exchange(np.array([mine]), "the number of calls for their tokens").max())

    def idle(self, calls: int) -> None:
        """Take part in the other ranks' calls without tokens."""
        x = torch.empty(0, self.cfg.hidden, dtype=getattr(torch, self.cfg.dtype))
        ids = torch.empty(0, self.cfg.top_k, dtype=torch.int64)
        with torch.no_grad():
            self(x, ids, ids.float(), calls)

    def close(self) -> None:
        """Release the layer; collective, and harmless when repeated."""
        self.moe.close()


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on the CPU as an array of the same memory; NumPy has no bfloat16 of its own."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
