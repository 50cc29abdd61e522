"""A training step in PyTorch on CPUs: forward and backward by autograd, rows by gloo, experts by `mm` or `grouped_mm`.

As in MoE frameworks, rows of tokens are gathered and combined by functions with a backward of their own. These rely on
the fact that every packed row belongs to one (token, choice) pair. Autograd would use index_add, which takes several
times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jobs import Floats, Job, flat

from peers.torch_layer import Gloo, local_weights, one_thread, regrouped


def functions(torch: Any) -> tuple[Any, Any, Any]:
    """(gather, combine, exchange): autograd functions."""
    bag = torch.nn.functional.embedding_bag

    class Gather(torch.autograd.Function):  # type: ignore[misc]
        """x [S, H] -> rows [S k, H] in packed order; tokens: the token of each row; places: [S, k], a token's rows."""

        @staticmethod
        def forward(ctx: Any, x: Any, tokens: Any, places: Any) -> Any:
            ctx.save_for_backward(places)
            return x.index_select(0, tokens)

        @staticmethod
        def backward(ctx: Any, rows: Any) -> Any:
            (places,) = ctx.saved_tensors
            return bag(places, rows, mode="sum"), None, None

    class Combine(torch.autograd.Function):  # type: ignore[misc]
        """rows [S k, H] -> y [S, H], the sum of each token's rows times its weights [S, k]; order: pairs of rows."""

        @staticmethod
        def forward(ctx: Any, rows: Any, weights: Any, tokens: Any, places: Any, order: Any) -> Any:
            ctx.save_for_backward(rows, weights, tokens, places, order)
            return bag(places, rows, mode="sum", per_sample_weights=weights)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            rows, weights, tokens, places, order = ctx.saved_tensors
            back = dy.index_select(0, tokens)
            dw = torch.linalg.vecdot(rows, back).index_select(0, places.reshape(-1))
            back.mul_(weights.reshape(-1).index_select(0, order).unsqueeze(1))
            return back, dw.reshape(weights.shape), None, None, None

    class Exchange(torch.autograd.Function):  # type: ignore[misc]
        """Rows by all_to_all: out[p] of them go to rank p, into[p] come from it; gradients go back."""

        @staticmethod
        def forward(ctx: Any, rows: Any, wire: Any, into: list[int], out: list[int]) -> Any:
            ctx.wire, ctx.into, ctx.out = wire, into, out
            return wire.rows(rows, into, out)

        @staticmethod
        def backward(ctx: Any, rows: Any) -> Any:
            return ctx.wire.rows(rows.contiguous(), ctx.out, ctx.into), None, None, None

    return Gather.apply, Combine.apply, Exchange.apply


class Loop:
    """Experts one after another, an `mm` for each matrix."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        self.torch = torch
        stacked = local_weights(torch, job, dtype)
        self.up, self.gate, self.down = (
            None if each is None else [one.clone().requires_grad_() for one in each] for each in stacked
        )

    def weights(self) -> list[Any]:
        """All leaf tensors, array by array."""
        return [*self.up, *(self.gate or []), *self.down]

    def one(self, e: int, rows: Any) -> Any:
        mm, silu = self.torch.mm, self.torch.nn.functional.silu
        h = mm(rows, self.up[e])
        h = silu(h) if self.gate is None else h * silu(mm(rows, self.gate[e]))
        return mm(h, self.down[e])

    def __call__(self, rows: Any, counts: Any) -> list[Any]:
        """rows: [n, H] ordered by expert, counts: [E / world] -> for each expert its outputs [counts, H]."""
        return [self.one(e, run) for e, run in enumerate(self.torch.split(rows, counts.tolist()))]


class Grouped:
    """All experts in one call of `torch.nn.functional.grouped_mm` for each matrix."""

    def __init__(self, torch: Any, job: Job, dtype: Any) -> None:
        self.torch = torch
        self.up, self.gate, self.down = (
            None if each is None else each.requires_grad_() for each in local_weights(torch, job, dtype)
        )

    def weights(self) -> list[Any]:
        """All leaf tensors."""
        return [each for each in (self.up, self.gate, self.down) if each is not None]

    def __call__(self, rows: Any, counts: Any) -> list[Any]:
        mm, silu = self.torch.nn.functional.grouped_mm, self.torch.nn.functional.silu
        ends = counts.cumsum(0).to(self.torch.int32)
        h = mm(rows, self.up, offs=ends)
        h = silu(h) if self.gate is None else h * silu(mm(rows, self.gate, offs=ends))
        outputs: list[Any] = self.torch.split(mm(h, self.down, offs=ends), counts.tolist())
        return outputs


EXPERTS = {"loop": Loop, "grouped": Grouped}


class TorchStep:
    """A step of one way to run experts: gradients of x, of the combine weights and of this rank's experts."""

    def __init__(self, comm: Any, job: Job, dtype: str, experts: str) -> None:
        self.torch = torch = one_thread()
        assert job.dys is not None
        self.world, self.shape = job.world, job.shape
        kind = getattr(torch, dtype)
        self.experts = EXPERTS[experts](torch, job, kind)
        self.wire = Gloo(torch, comm)
        self.gather, self.combine, self.exchange = functions(torch)
        self.xs, self.weights, self.dys = (torch.from_numpy(each).to(kind) for each in (job.xs, job.weights, job.dys))
        self.ids = job.ids
        self.gradients: list[Any] = []

    def __call__(self, i: int) -> None:
        torch, ids, k = self.torch, self.ids[i], self.shape.top_k
        x, weights = self.xs[i].detach().requires_grad_(), self.weights[i].detach().requires_grad_()
        order = np.argsort(ids.ravel().astype(np.uint16), kind="stable")
        at = np.empty_like(order)
        at[order] = np.arange(len(order))
        counts = torch.from_numpy(np.bincount(ids.ravel(), minlength=self.shape.experts))
        tokens, places = torch.from_numpy(order // k), torch.from_numpy(at.reshape(-1, k))
        landed_counts = self.wire.counts(counts)
        per_source = landed_counts.reshape(self.world, -1)
        sent, landed = counts.reshape(self.world, -1).sum(1).tolist(), per_source.sum(1).tolist()
        rows = self.exchange(self.gather(x, tokens, places), self.wire, landed, sent)
        back = self.exchange(regrouped(self.torch, self.experts, rows, per_source), self.wire, sent, landed)
        y = self.combine(back, weights, tokens, places, torch.from_numpy(order))
        self.gradients = torch.autograd.grad(y, [x, weights, *self.experts.weights()], self.dys[i])

    def arrays(self) -> list[Any]:
        return [self.xs, *self.experts.weights(), *self.gradients]

    def output(self) -> Floats:
        return flat(each.float().numpy() for each in self.gradients)

    def close(self) -> None:
        self.wire.close()
