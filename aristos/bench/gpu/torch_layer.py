"""The unfused layer in PyTorch, which is the fused layer's rival: router, top-k, sort, grouped products, combine.

The steps are those of frameworks that have no kernels of their own. The router (class `Gate`) is a product with
float32 scores. The choices are sorted by expert, and rows are gathered in that order. Then come the first product of
all experts (gate and up side by side), the activation, and the second product. Each token's outputs are summed by
index. The module also runs on CPUs, where its arithmetic is tested.

Products, in `WAYS`:
    grouped     one `torch.nn.functional.grouped_mm`; the host knows nothing of the routing
    loop        a `torch.mm` for each expert; the host knows the numbers of rows without a wait, which favours this way
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import ACTIVATIONS, LEAST_SUM, MoEConfig, Router
from ...errors import EnvironmentProblem
from ...row_types import ROW_TYPES

WAYS = GROUPED, LOOP = "grouped", "loop"
ALIGNED = 16  # bytes; the rows of a grouped product must be multiples of it
BLACKWELL = (2, 13)  # the first version of PyTorch whose grouped product runs on Blackwell

# takes two equivalent functions of tensors; returns the first one compiled into one kernel, or else the second one
Fuse = Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]]


def imported() -> Any:
    """Import PyTorch, set to compile in this process, because its pool of compiler processes does not suit MPI ranks.

    Raises ImportError.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return importlib.import_module("torch")


def refuse_unless_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise EnvironmentProblem if the chain lacks a layer's score or activation. what: "score" or "activation"."""
    if name not in known:
        has = ", ".join(known)
        raise EnvironmentProblem(
            f"PyTorch is not compared: {__name__} computes only the {what}s {has}, got {name!r}: add {name!r} there"
        )


def dtype_of(torch: Any, cfg: MoEConfig) -> Any:
    """The type of rows and weights."""
    return getattr(torch, ROW_TYPES[cfg.dtype].stored)


def ways(torch: Any, cfg: MoEConfig, capability: tuple[int, int]) -> tuple[str, ...]:
    """The ways that run on a GPU without a wait on the host, which a capture forbids.

    capability: the GPU's compute capability, for example (9, 0).
    """
    return (LOOP,) if why_ungrouped(torch, cfg, capability) else WAYS


def why_ungrouped(torch: Any, cfg: MoEConfig, capability: tuple[int, int]) -> str:
    """Why there is no grouped product; '' if there is one.

    PyTorch's grouped kernels are for bfloat16 on Hopper and, in later versions, Blackwell. In other cases PyTorch loops
    and waits for the GPU.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if not hasattr(torch, "_grouped_mm") and not hasattr(torch.nn.functional, "grouped_mm"):
        return f"PyTorch {torch.__version__} has no grouped product"
    if cfg.dtype != "bfloat16" or 2 * cfg.hidden % ALIGNED or 2 * cfg.ffn % ALIGNED:
        return f"PyTorch's grouped product needs bfloat16 and rows of a multiple of {ALIGNED} bytes"
    if capability[0] == 9 or (capability[0] == 10 and version >= BLACKWELL):
        return ""
    return f"PyTorch {torch.__version__} has no grouped product for compute capability {capability[0]}.{capability[1]}"


@contextlib.contextmanager
def tf32(torch: Any, allowed: bool) -> Any:
    """A block in which float32 products may round their factors to tf32, if `allowed`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Gate:
    """The router's product, x Wr. matrix: Wr [H, E] float32.

    Factors have the rows' type if that type holds the matrix's values exactly and PyTorch can return their product in
    float32. Else they are float32.
    Raises EnvironmentProblem if `choose` does not know the router's score.
    """

    def __init__(self, torch: Any, cfg: MoEConfig, matrix: NDArray[np.float32], device: Any) -> None:
        refuse_unless_known("score", cfg.router.score, (*VALUES, "softmax_topk"))
        self.torch, self.cfg = torch, cfg
        self.matrix = torch.from_numpy(matrix).to(device)
        self.narrow: Any = None
        narrow = self.matrix.to(dtype_of(torch, cfg))
        if ROW_TYPES[cfg.dtype].rounds and torch.equal(narrow.float(), self.matrix):
            with contextlib.suppress(RuntimeError, TypeError):  # raised on CPUs, and before PyTorch 2.8
                torch.mm(narrow.t(), narrow, out_dtype=torch.float32)
                self.narrow = narrow

    def __call__(self, x: Any) -> Any:
        """x: [S, H] -> scores [S, E] float32."""
        if self.narrow is not None:
            return self.torch.mm(x, self.narrow, out_dtype=self.torch.float32)
        with tf32(self.torch, False):
            return self.torch.mm(x.float(), self.matrix)


# by score: a function (torch, scores [S, E]) that returns the weights of all experts before the choice
VALUES: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": lambda torch, scores: scores.softmax(-1),
    "sigmoid": lambda torch, scores: scores.sigmoid(),
    "sqrtsoftplus": lambda torch, scores: torch.nn.functional.softplus(scores).sqrt(),
}


def choose(torch: Any, router: Router, scores: Any, k: int) -> tuple[Any, Any]:
    """scores: [S, E] float32 -> ids [S, k] int64 and weights [S, k] float32; see `Router`."""
    compared = scores
    if router.groups:
        summed = router.group_score == "sum_top2"
        compared = VALUES[router.score](torch, scores) if summed else scores
        each = compared.view(len(scores), router.groups, -1)
        best = each.topk(2, -1).values.sum(-1) if summed else each.amax(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(router.topk_groups, -1).indices, True)
        compared = each.masked_fill(~kept.unsqueeze(-1), -torch.inf).view_as(scores)
    ids = compared.topk(k, -1).indices
    if router.score == "softmax_topk" or (router.score == "softmax" and router.renormalize):
        weights = scores.gather(1, ids).softmax(-1)
    else:
        weights = VALUES[router.score](torch, scores).gather(1, ids)
        if router.renormalize:
            weights = weights / (weights.sum(-1, keepdim=True) + LEAST_SUM)
    return ids, weights if router.scale == 1 else weights * router.scale


class Order:
    """The sort of `count` tokens' choices by expert. Choices not taken (-1) come last."""

    def __init__(self, torch: Any, cfg: MoEConfig, count: int, device: Any) -> None:
        self.torch, self.cfg = torch, cfg
        self.key = torch.int16 if cfg.experts < 1 << 15 else torch.int32
        self.experts = torch.arange(cfg.experts, dtype=self.key, device=device)
        self.rows = torch.arange(count * cfg.top_k, device=device)

    def __call__(self, ids: Any, some_missing: bool = False) -> tuple[Any, Any, Any, Any]:
        """ids: [S, k] -> (choice of each packed row [S k], its expert [S k], ends [E] int32, packed rows [S, k]).

        ends: where each expert's rows end. packed rows: those of the choices. some_missing: whether ids may be -1."""
        torch, experts = self.torch, self.cfg.experts
        keys = (ids.masked_fill(ids < 0, experts) if some_missing else ids).reshape(-1).to(self.key)
        keys, order = keys.sort(stable=True)
        ends = torch.searchsorted(keys, self.experts, right=True, out_int32=True)
        position = torch.empty_like(order).scatter_(0, order, self.rows)
        return order, keys, ends, position.view(ids.shape)


def activation(torch: Any, cfg: MoEConfig) -> Callable[[Any], Any]:
    """The function that returns the hidden rows [M, F] from h, which is [M, F], or [M, 2 F] of gate and up.

    Raises EnvironmentProblem for an activation that it does not know.
    """
    functions = torch.nn.functional
    known: dict[str, Callable[[Any], Any]] = {
        "relu": functions.relu,
        "gelu": functions.gelu,
        "gelu_tanh": lambda g: functions.gelu(g, approximate="tanh"),
        "silu": functions.silu,
        "swiglu_oai": lambda g: g * torch.sigmoid(1.702 * g),
        "relu2": lambda g: functions.relu(g).square(),
    }
    refuse_unless_known("activation", cfg.activation, known)
    act = known[cfg.activation]
    if not cfg.gated:
        return act
    width, limit, after, shift = cfg.ffn, cfg.limit, cfg.limit_after, ACTIVATIONS[cfg.activation].shift

    def gated(h: Any) -> Any:
        g, u = h[:, :width], h[:, width:]
        if limit is not None:
            u = u.clamp(-limit, limit)
            g = act(g).clamp(max=limit) if after else act(g.clamp(max=limit))
        else:
            g = act(g)
        return g * (u + shift) if shift else g * u

    return gated


def biased(function: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A function of (h, bias, the expert of each row) that computes function(h + bias[expert]) in float32."""

    def added(h: Any, bias: Any, expert: Any) -> Any:
        return function(h + bias[expert]).to(h.dtype)

    return added


class Experts:
    """The experts of a rank. weights: `up` and the other arrays that `MoE.load` takes, [L, ...]."""

    def __init__(self, torch: Any, cfg: MoEConfig, weights: dict[str, Any], device: Any, fuse: Fuse) -> None:
        self.torch, self.cfg = torch, cfg
        dtype = dtype_of(torch, cfg)

        def side_by_side(names: Iterable[str], axis: int) -> Any:
            """Arrays side by side: matrices [L, outputs, inputs], or biases [L + 1, outputs] with zeros at the end."""
            parts = [torch.from_numpy(weights[name]).to(device) for name in names if name in weights]
            if not parts:
                return None
            if axis == 2:
                return torch.cat([part.to(dtype).transpose(1, 2) for part in parts], 1).contiguous()
            one = torch.cat(parts, 1)
            return torch.cat([one, torch.zeros_like(one[:1])])  # a row of zeros for choices that are not taken

        self.first, self.second = side_by_side(("gate", "up"), 2), side_by_side(("down",), 2)
        self.first_bias = side_by_side(("gate_bias", "up_bias"), 1)
        self.second_bias = side_by_side(("down_bias",), 1)
        plain, add = activation(torch, cfg), biased(lambda rows: rows)
        act: Callable[..., Any] = plain if self.first_bias is None else biased(plain)
        self._activate, self._add = fuse(act, act), fuse(add, add)

    def __call__(self, way: str, rows: Any, expert: Any, ends: Any, known: NDArray[np.int64]) -> Any:
        """Outputs of rows [M, H] in order of experts. way: one of `WAYS`.

        expert: [M] the expert of each row, L for none.
        ends: [L] int32. known: [L] each expert's number of rows, for the host."""
        with tf32(self.torch, self.cfg.dtype == "tf32"):
            h = self._product(way, rows, self.first, ends, known)
            bias = () if self.first_bias is None else (self.first_bias, expert.long())
            out = self._product(way, self._activate(h, *bias), self.second, ends, known)
        return out if self.second_bias is None else self._add(out, self.second_bias, expert.long())

    def _product(self, way: str, rows: Any, weight: Any, ends: Any, known: NDArray[np.int64]) -> Any:
        torch = self.torch
        if not len(rows):
            return rows.new_empty(0, weight.shape[1])
        if way == GROUPED:
            grouped = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
            return grouped(rows, weight.transpose(1, 2), offs=ends)
        out, first = rows.new_empty(len(rows), weight.shape[1]), 0
        for e, n in enumerate(known.tolist()):
            if n:
                torch.mm(rows[first : first + n], weight[e].t(), out=out[first : first + n])
            first += n
        return out


def combine(rows: Any, position: Any, weights: Any, y: Any) -> None:
    """y[t] = sum over j of weights[t, j] rows[position[t, j]], written so that it can be compiled into one kernel."""
    y.copy_((rows[position].float() * weights.unsqueeze(-1)).sum(1))


def combine_by_bag(torch: Any, rows: Any, position: Any, weights: Any, y: Any) -> None:
    """The same sum by one of PyTorch's own kernels, which takes weights of the rows' type."""
    bag = torch.nn.functional.embedding_bag
    y.copy_(bag(position, rows, mode="sum", per_sample_weights=weights.to(rows.dtype)))


class Part:
    """The parts that the chains of a layer share on one rank: PyTorch, the router, the experts, the weighted sums."""

    def __init__(
        self, torch: Any, cfg: MoEConfig, router: NDArray[np.float32], weights: dict[str, Any], device: Any, fuse: Fuse
    ) -> None:
        self.torch, self.cfg, self.device = torch, cfg, device
        self.gate = Gate(torch, cfg, router, device)
        self.experts = Experts(torch, cfg, weights, device, fuse)
        self.combine = fuse(combine, partial(combine_by_bag, torch))


class Chain:
    """The steps of a layer's call on this rank: `pack`, `compute`, `combine`. A call of the chain runs all of them.

    Each step stores its result in an attribute of its own, because a captured step fills the same tensor at each
    replay, and the next step reads that tensor.

    x, y: [S, H] tensors. rows: [E] how many rows this rank has for each expert; the host knows it. given: ids and
    weights [S, k] from outside; empty if the chain routes.
    """

    def __init__(self, part: Part, way: str, x: Any, y: Any, rows: NDArray[np.int64], given: Any = ()) -> None:
        self.part, self.way, self.x, self.y, self.known, self.given = part, way, x, y, rows, given
        self.sent = int(rows.sum())
        self.some_missing = self.sent < len(x) * part.cfg.top_k
        self.order = Order(part.torch, part.cfg, len(x), part.device)

    def pack(self) -> None:
        """Route, sort, and gather rows in packed order."""
        torch, cfg = self.part.torch, self.part.cfg
        ids, weights = self.given or choose(torch, cfg.router, self.part.gate(self.x), cfg.top_k)
        order, self.expert, self.ends, position = self.order(ids, self.some_missing)
        self.packed = self.x.index_select(0, order if cfg.top_k == 1 else order // cfg.top_k)
        if cfg.router.weight_on == "input":
            self.packed = (self.packed * weights.reshape(-1)[order].unsqueeze(1)).to(self.x.dtype)
            weights = torch.ones_like(weights)
        if self.some_missing:  # choices not taken get an existing row with weight 0
            position, weights = position.masked_fill(ids < 0, 0), weights.masked_fill(ids < 0, 0)
        self.position, self.weights = position, weights

    def compute(self) -> None:
        """The experts on the packed rows."""
        self.out = self.part.experts(self.way, self.packed, self.expert, self.ends, self.known)

    def combine(self) -> None:
        """The weighted sums."""
        self._sum(self.out)

    def _sum(self, outputs: Any) -> None:
        if self.sent:
            self.part.combine(outputs, self.position, self.weights, self.y)
        else:
            self.y.zero_()

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """The steps in order."""
        return self.pack, self.compute, self.combine

    def __call__(self) -> None:
        for step in self.steps:
            step()


Exchange = Callable[[int, int, Any, Any], None]  # to, source, sends, gets: an all-to-all of alltoall.py


class RankChain(Chain):
    """A chain on one of several ranks: rows travel to the experts' ranks, and outputs come back.

    counts: [W, E] numbers of rows of each rank for each expert. The host knows them, like a framework after its
    exchange of counts. placement: [E] the rank of each expert, ascending. The other arguments are those of `Chain`.
    """

    def __init__(
        self,
        part: Part,
        way: str,
        x: Any,
        y: Any,
        counts: NDArray[np.int64],
        me: int,
        placement: NDArray[np.int64],
        exchange: Exchange,
        given: Any = (),
    ) -> None:
        super().__init__(part, way, x, y, counts[me], given)
        torch, mine = part.torch, placement == me
        taken = counts[:, mine]  # rows land in the order of ranks, and the rows of one rank in the order of experts
        expert = np.repeat(np.arange(taken.size), taken.reshape(-1)) % max(1, taken.shape[1])
        by_expert = np.argsort(expert, kind="stable")
        self.exchange, self.known = exchange, taken.sum(axis=0)
        row = x.element_size() * x.shape[1]
        self.sends = row * np.bincount(placement, counts[me], len(counts)).astype(np.int64)
        self.gets = row * taken.sum(axis=1)

        def tensor(values: NDArray[np.int64]) -> Any:
            return torch.from_numpy(np.ascontiguousarray(values)).to(part.device)

        self.by_expert, self.by_rank = tensor(by_expert), tensor(np.argsort(by_expert))
        self.landed_expert, self.landed_ends = tensor(expert[by_expert]), tensor(np.cumsum(self.known)).to(torch.int32)
        self.landed, self.back = x.new_empty(len(expert), x.shape[1]), x.new_empty(max(1, self.sent), x.shape[1])

    def there(self) -> None:
        """Move rows to their experts' ranks."""
        self.exchange(self.landed.data_ptr(), self.packed.data_ptr(), self.sends, self.gets)

    def compute(self) -> None:
        """Run the experts on the rows that have landed. The outputs are in the order of arrival."""
        rows = self.landed.index_select(0, self.by_expert)
        out = self.part.experts(self.way, rows, self.landed_expert, self.landed_ends, self.known)
        self.out = out.index_select(0, self.by_rank)

    def return_rows(self) -> None:
        """Move the outputs back to the tokens' ranks."""
        self.exchange(self.back.data_ptr(), self.out.data_ptr(), self.gets, self.sends)

    def combine(self) -> None:
        """The weighted sums."""
        self._sum(self.back)

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """The steps in order."""
        return self.pack, self.there, self.compute, self.return_rows, self.combine
