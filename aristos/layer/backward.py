"""Backward calls with `schedule="bulk"` on CPUs, and the code that they share with fused ones (`fused_backward.py`).

Rows travel by collective all-to-alls. A source sends each (token, choice) pair of another rank's expert as one row
[x | dy | combine weight], in its packed order. The owner computes expert by expert, the rows of an expert in global
token order. Rows [dx | gradient of the combine weight] come back, and the source adds up its tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kernel_cache.compile import warm_up

from ..config import SCORES, MoEConfig
from ..errors import AristosError, MismatchError
from ..kernels.by_isa import module
from ..kernels.common import activations
from ..primitives.arithmetic import ExpertBlocks, ExpertWeights, TransposedWeights
from ..primitives.buffers import FLOAT, LINE, aligned
from ..reproducible import partial_sums
from .arguments import on_input
from .collective import Membership, agreed
from .node_first import all_to_all
from .trained_weights import Addresses, TrainedWeights, narrowed, widened

SPARE = LINE // FLOAT  # how many float32 follow a row of dx: the first is the gradient of the row's combine weight


@dataclass(frozen=True)
class Saved:
    """What a forward call of S tokens keeps for its backward call. All arrays but x and ids are float32.

    x: [S, H] of the layer's dtype. ids: [S, k] int64, -1 for choices that were not computed. chosen: [S, k], the same
    ids, but also those of choices beyond the capacity. weights: [S, k]. logits: [S, columns], None if the caller gave
    the ids. shared: [S], weights of the shared expert's outputs. received: how many rows this rank's experts computed.
    taped: [W, TAPED_WORDS] int64, which rows are kept for the backward call, see `tapes.Taping`; None: no rows.
    """

    x: np.ndarray
    ids: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray
    logits: np.ndarray | None
    shared: np.ndarray
    received: int
    taped: np.ndarray | None = None


@dataclass(frozen=True)
class BackwardCall:
    """The checked arguments of a backward call.

    number: the tape's number. dy: [S, H] of the layer's dtype. dlogits: [S, columns] float32, the caller's own
    gradients of the router scores, or None. dy and dlogits are contiguous. pieces: how many equal pieces the tokens are
    cut into.
    """

    layer: int
    number: int
    weights: TrainedWeights
    saved: Saved
    dy: np.ndarray
    dlogits: np.ndarray | None
    pieces: int


def experts_module(dtype: str, isa: str) -> Any:
    """The kernels of experts for rows of a dtype."""
    return module("expert_backward" if dtype == "float32" else "rounded_backward", isa)


class Kernels:
    """Calls the kernels of an instruction set with arrays.

    expert: the module for rows of experts, in the layer's dtype. tokens: the module for tokens.
    """

    def __init__(self, isa: str, dtype: str) -> None:
        self.expert, self.tokens = experts_module(dtype, isa), module("token_backward", isa)
        self.padded: Callable[[int], int] = module("panels", isa).padded
        self._kept = threading.local()

    def prepare(self, cfgs: Sequence[MoEConfig], blocks: bool) -> None:
        """Load or compile the kernels that backward calls of these layers use.

        During a call the other ranks would wait for the compilation.

        blocks: whether `run_expert` computes their experts.
        """
        from numba import typeof, types

        word, tokens = types.int64, self.tokens
        wanted: list[tuple[Any, tuple[Any, ...]]] = [
            (tokens.combine_rows, (word,) * 7),
            (tokens.product_rows, (word,) * 7),
            (tokens.add_outer_sums, (word,) * 8),
            (tokens.logit_gradients, (*(word,) * 7, types.boolean, types.float64, word)),
        ]
        if any(on_input(cfg) or cfg.identity_experts for cfg in cfgs):
            wanted.append((tokens.row_dots, (word,) * 5))
        if blocks or any(cfg.shared_ffn for cfg in cfgs):
            arrays: Any = {
                "weights": ExpertWeights(*[0] * 6),
                "transposed": TransposedWeights(*[0] * 3),
                "gradients": (0,) * 6,
            }
            blank = ExpertBlocks(**dict.fromkeys(ExpertBlocks._fields, 0) | arrays)
            wanted.append((self.expert.expert_blocks, (typeof(blank),)))
        warm_up(wanted)

    def scratch(self, name: str, nbytes: int) -> int:
        """Address of memory that this thread keeps. New pages in each call would take a fifth of the call's time."""
        found = getattr(self._kept, name, None)
        if found is None or found.size < nbytes:
            found = aligned((nbytes,), np.uint8)
            setattr(self._kept, name, found)
        return int(found.ctypes.data)

    def run_expert(
        self,
        cfg: MoEConfig,
        ffn: int,
        rows: Sequence[np.ndarray],
        arrays: Addresses,
        adds: bool = True,
    ) -> None:
        """Compute rows of one expert backwards, and add the gradients of its weights.

        rows: arrays [n]: addresses of x and of dy, weights w, addresses where dx goes, and the array dw to write.
        arrays: see `TrainedWeights.expert`. adds: False to overwrite the gradients instead.
        """
        x, dy, w, dx, dw = (each.ctypes.data for each in rows)
        weights, transposed, gradients = arrays
        call = ExpertBlocks(
            rows=len(rows[0]),
            x=x,
            dy=dy,
            w=w,
            dx=dx,
            dw=dw,
            weights=weights,
            transposed=transposed,
            gradients=gradients,
            activation=activations.word(cfg.activation, cfg.limit, cfg.limit_after),
            hidden=cfg.hidden,
            ffn=ffn,
            carry=int(adds),
            saved=self.scratch("saved", self.expert.saved_bytes(cfg.hidden, ffn, cfg.gated)),
            scratch=self.scratch("scratch", self.expert.blocks_bytes(cfg.hidden, ffn)),
        )
        self.expert.expert_blocks(call)

    def dots(self, a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
        """[rows] float32: dot products of rows of n float32, given by their addresses."""
        out = np.empty(len(a), np.float32)
        self.tokens.row_dots(len(a), a.ctypes.data, b.ctypes.data, n, out.ctypes.data)
        return out

    def product(self, x: np.ndarray, panels: np.ndarray, columns: int) -> np.ndarray:
        """x W for float32 rows [S, K] and W packed [K, columns]: [S, columns rounded up to whole vectors]."""
        y = aligned((len(x), self.padded(columns)))
        scratch = self.scratch("scratch", self.tokens.product_bytes(x.shape[1]))
        from_x, to_y = addresses(x), addresses(y)
        self.tokens.product_rows(
            len(x), from_x.ctypes.data, x.shape[1], panels.ctypes.data, columns, to_y.ctypes.data, scratch
        )
        return y

    def add_outer(self, x: np.ndarray, b: np.ndarray, out: np.ndarray | None, sums: np.ndarray | None) -> None:
        """out += x^T b for x [S, K] and b [S, N]. Unless sums is None, sums += the sum of b's rows."""
        assert out is not None
        scratch = self.scratch("scratch", self.tokens.outer_sums_bytes(max(x.shape[1], b.shape[1])))
        from_x, from_b = addresses(x), addresses(b)
        self.tokens.add_outer_sums(
            len(x),
            from_x.ctypes.data,
            x.shape[1],
            from_b.ctypes.data,
            b.shape[1],
            out.ctypes.data,
            0 if sums is None else sums.ctypes.data,
            scratch,
        )


def addresses(array: np.ndarray) -> np.ndarray:
    """[rows] int64: where the rows of an array start."""
    return array.ctypes.data + array.strides[0] * np.arange(len(array), dtype=np.int64)


class BackwardCalls:
    """Makes the backward calls of one layer object on this rank.

    number: this rank's number among the ranks of all groups.
    """

    blocks = True  # `Kernels.run_expert` computes the experts

    def __init__(self, member: Membership, isa: str, number: int, cfgs: Sequence[MoEConfig]) -> None:
        self.member, self.kernels, self.number = member, Kernels(isa, cfgs[0].dtype), number
        self.cfgs = cfgs
        self.kernels.prepare(cfgs, self.blocks)
        # the pool starts threads when they are needed
        self._pool = ThreadPoolExecutor(member.threads, thread_name_prefix="aristos-backward")
        self._all_to_all = all_to_all(member.runtime.group)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def refuse(self, error: AristosError) -> None:
        """Make a call in which this rank refuses its arguments, so that the other ranks raise too. Collective."""
        self._meet(error, None)

    def run_backward(self, call: BackwardCall) -> tuple[np.ndarray, np.ndarray]:
        """Returns (dx [S, H], gradients of the combine weights [S, k]); adds to the gradients of weights. Collective.

        If this raises PeerInputError or MismatchError, no gradient has changed.
        """
        self._meet(None, (call.layer, call.number, call.pieces))
        runtime = self.member.runtime
        with runtime.failing(runtime._blank_job()):
            tokens = _Tokens(self.kernels, self.cfgs[call.layer], call)
            order, to_dx, sums, owned = self._experts(tokens)
            tokens.add_experts(order, to_dx, sums)
            dx = self._finish(tokens)
            del owned  # the rows of dx were read by their addresses until here
        return dx, tokens.dw

    def _meet(self, problem: AristosError | None, name: Any) -> None:
        """Raise on every rank if one refuses its arguments, or if the tapes or pieces differ."""
        group = self.member.runtime.group
        for rank, theirs in enumerate(agreed(group, problem, "its arguments of backward", name)):
            if theirs != name:
                raise MismatchError(
                    "backward must get the tape of the same forward call, and the same number of pieces, on all ranks:"
                    f" rank {rank}"
                    f" has (layer, tape, pieces) {theirs}, and rank {group.rank} has {name}"
                )

    def _finish(self, tokens: _Tokens) -> np.ndarray:
        """Add the shared expert's part and the router's to the experts' part of dx; returns dx [S, H].

        After this the call adds nothing more to the gradients.
        """
        weights, pieces = tokens.weights, tokens.call.pieces
        if tokens.cfg.shared_ffn:
            tokens.add_shared()
        if tokens.saved.logits is not None:
            tokens.add_router()
        if tokens.common:
            weights.pending.append(partial_sums(self.number * pieces, tokens.common))
        weights.pieces.append(pieces)
        weights.half_changed = False
        return tokens.combined()

    # ------------------------------------------------------------ rows of experts

    def _experts(self, tokens: _Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        """Send the rows, run the experts, and get the results back.

        Returns (pair of each packed row, address of its dx, gradient of its combine weight, arrays that hold the dx).
        """
        member, cfg, x, dy = self.member, tokens.cfg, tokens.rows, tokens.dy
        H = cfg.hidden
        me, world, places = member.rank, member.world, member.placement
        ids = tokens.saved.ids.reshape(-1)
        pairs = np.flatnonzero((ids >= 0) & (ids < cfg.experts))
        slot = places.slots_for(me)[ids[pairs]]
        order = pairs[np.argsort(slot, kind="stable")]
        counts = np.bincount(slot, minlength=int(places.start[-1]))
        by_rank = [counts[places.start[p] : places.start[p + 1]] for p in range(world)]
        came = np.array(self._exchange(by_rank))  # [W, held]
        sent = np.array([each.sum() for each in by_rank])
        first, token = int(sent[:me].sum()), order // tokens.saved.ids.shape[1]
        mine = slice(first, first + int(sent[me]))  # this rank's packed rows
        away = np.ones(len(order), bool)
        away[mine] = False
        factor = tokens.factor(order)
        out = np.concatenate([x[token[away]], dy[token[away]], factor[away, None]], axis=1)
        from_each, others = came.sum(axis=1), np.arange(world) != me
        rows = self._exchange_rows(out, sent * others, from_each * others)
        before, own = int(from_each[:me].sum()), int(from_each[me])

        def with_own(received: np.ndarray, mine: np.ndarray) -> np.ndarray:  # source by source
            return np.concatenate([received[:before], mine, received[before:]])

        x_at = with_own(addresses(rows), addresses(x)[token[mine]])
        dy_at = with_own(addresses(rows) + FLOAT * H, addresses(dy)[token[mine]])
        results = aligned((len(rows) + own, self.kernels.padded(H) + SPARE))  # last those of own rows
        place = with_own(np.arange(len(rows)), np.arange(len(rows), len(results)))
        held = came.shape[1]
        expert = np.repeat(np.tile(np.arange(held), world), came.reshape(-1))
        columns = x_at, dy_at, with_own(rows[:, -1], factor[mine]), addresses(results)[place]
        results[place, self.kernels.padded(H)] = self._run(tokens, expert, held, columns)
        back = self._exchange_rows(results[: len(rows)], from_each * others, sent * others)
        to_dx, dw = (np.empty(len(order), kind) for kind in (np.int64, np.float32))
        for which, found in (away, back), (mine, results[len(rows) :]):
            to_dx[which], dw[which] = addresses(found), found[:, self.kernels.padded(H)]
        return order, to_dx, dw, (back, results)

    def _run(self, tokens: _Tokens, expert: np.ndarray, held: int, columns: tuple[np.ndarray, ...]) -> np.ndarray:
        """Run every expert on its rows, in order of (source, packed row). Returns the gradients of w, [n] float32.

        expert: [n] int64, the expert of each row. held: how many experts this rank holds. columns: four arrays [n],
        source by source: addresses of x and of dy, weights w, addresses where dx goes.
        """
        cfg, weights, order = tokens.cfg, tokens.weights, np.argsort(expert, kind="stable")
        x, dy, w, dx = (np.ascontiguousarray(column[order]) for column in columns)
        dw = np.empty(len(order), np.float32)
        ends = np.concatenate([[0], np.cumsum(np.bincount(expert, minlength=held))])

        def run(i: int) -> None:
            part = slice(ends[i], ends[i + 1])
            columns = [each[part] for each in (x, dy, w, dx, dw)]
            self.kernels.run_expert(cfg, cfg.ffn, columns, weights.expert(i), weights.adds(i))

        weights.half_changed = True
        most_first = sorted(range(held), key=lambda i: ends[i] - ends[i + 1])
        self.everywhere(run, [i for i in most_first if ends[i + 1] > ends[i]])
        weights.added(np.diff(ends))
        found = np.empty(len(order), np.float32)
        found[order] = dw
        return found

    def everywhere(self, run: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Run a function for every item, on all workers; returns the results in order."""
        if self.member.threads == 1 or len(items) < 2:
            return [run(item) for item in items]
        return list(self._pool.map(run, items))

    def _exchange(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Send values[p] to rank p; returns the values received, by source."""
        group = self.member.runtime.group
        if group.comm is None:
            return values
        with group.bounded("the other ranks (counts of rows of a backward call)"):
            return list(group.comm.alltoall(values))

    def _exchange_rows(self, out: np.ndarray, sent: np.ndarray, came: np.ndarray) -> np.ndarray:
        """Send rows of `out` in order, sent[p] of them to rank p. Returns the rows received: came[p] from rank p."""
        group, width = self.member.runtime.group, out.shape[1]
        into = aligned((int(came.sum()), width))

        def blocking(what: str, call: Callable[[Any], object], nbytes: np.ndarray) -> None:
            with group.bounded(f"the other ranks ({what} of a backward call)"):
                call(group.comm)

        if group.comm is not None:
            flat = (each.reshape(-1).view(np.uint8) for each in (out, into))
            self._all_to_all(blocking, next(flat), sent, next(flat), came, FLOAT * width)
        return into


class _Tokens:
    """One backward call's tokens on their source.

    x, dy: [S, H], float32. rows: [S, H], the rows that experts got: x, or x times the token's combine weight,
    rounded. dw: [S, k], gradients of the combine weights. common: for each piece the gradients of
    router and shared expert.
    """

    def __init__(self, kernels: Kernels, cfg: MoEConfig, call: BackwardCall) -> None:
        self.kernels, self.cfg, self.call, self.weights, self.saved = kernels, cfg, call, call.weights, call.saved
        self.dw = np.zeros(call.saved.ids.shape, np.float32)
        self.common = [call.weights.new_common() for _ in range(call.pieces)] if call.weights.places else []
        each = len(call.dy) // call.pieces
        self.pieces = [slice(each * i, each * (i + 1)) for i in range(len(self.common))]
        self._terms: list[tuple[np.ndarray, np.ndarray]] = []  # addresses and factors, [S, n] each
        self._kept: list[np.ndarray] = []  # the arrays that the addresses point into

    @cached_property
    def x(self) -> np.ndarray:
        return widened(self.saved.x)

    @cached_property
    def dy(self) -> np.ndarray:
        return widened(self.call.dy)

    @cached_property
    def rows(self) -> np.ndarray:
        return widened(self._rows()) if on_input(self.cfg) else self.x

    def _rows(self) -> np.ndarray:
        """`rows` in the layer's dtype."""
        if not on_input(self.cfg):
            return self.saved.x
        return narrowed(np.where(self.saved.ids >= 0, self.saved.weights, np.float32(0)) * self.x, self.cfg)

    def sent(self) -> np.ndarray:
        """[S, 2 H] of the layer's dtype: rows [dy | x] as the fused backward call sends them."""
        return np.concatenate([self.call.dy, self._rows()], axis=1)

    def factor(self, pairs: np.ndarray) -> np.ndarray:
        """The factor by which dy of each of these (token, choice) pairs is multiplied."""
        return np.ones(len(pairs), np.float32) if on_input(self.cfg) else self.saved.weights.reshape(-1)[pairs]

    def add_experts(self, pairs: np.ndarray, to_dx: np.ndarray, sums: np.ndarray) -> None:
        """Add what experts have computed for some pairs.

        pairs: [n] numbers of (token, choice) pairs. to_dx: [n] addresses of their rows of dx. sums: [n] gradients of
        their combine weights.
        """
        at = np.zeros(self.dw.size, np.int64)
        at[pairs] = to_dx
        factors = (at != 0).astype(np.float32)
        if on_input(self.cfg):  # y = f(w x): both gradients follow from dL/d(w x)
            sums = self.kernels.dots(to_dx, addresses(self.x)[pairs], self.cfg.hidden)
            factors *= self.saved.weights.reshape(-1)
        self.dw.reshape(-1)[pairs] = sums
        rows, by = at.reshape(self.dw.shape), factors.reshape(self.dw.shape)
        token, choice = self._add_identity()
        rows[token, choice] = addresses(self.dy)[token]
        by[token, choice] = self.saved.weights[token, choice]
        self._terms.append((rows, by))

    def add_combined(self, dx: np.ndarray, back: np.ndarray) -> None:
        """Add dx [S, H], already summed over each token's choices, and `back` [S, k], gradients of combine weights."""
        taken, factors = (self.saved.ids >= 0) & (self.saved.ids < self.cfg.experts), np.ones(len(dx), np.float32)
        if on_input(self.cfg):  # each token has one choice: see `add_experts`
            back = self.kernels.dots(addresses(dx), addresses(self.x), self.cfg.hidden)[:, None]
            factors = np.ascontiguousarray(self.saved.weights[:, 0])
        np.copyto(self.dw, back, where=taken)
        self._add_identity()
        self._add(dx, factors)

    def _add_identity(self) -> tuple[np.ndarray, np.ndarray]:
        """Add the gradients of identity experts' combine weights (y = w x); returns their (tokens, choices)."""
        token, choice = np.nonzero(self.saved.ids >= self.cfg.experts)
        if len(token):
            to_x, to_dy = addresses(self.x)[token], addresses(self.dy)[token]
            self.dw[token, choice] = self.kernels.dots(to_dy, to_x, self.cfg.hidden)
        return token, choice

    def add_shared(self) -> None:
        """Add the shared expert's part, piece by piece. With shared_sigmoid add the sigmoid's part too."""
        cfg, x, w = self.cfg, self.x, self.saved.shared
        dx, dw = aligned((len(x), self.kernels.padded(cfg.hidden))), np.zeros(len(x), np.float32)
        columns = addresses(x), addresses(self.dy), w, addresses(dx), dw
        for part, common in zip(self.pieces, self.common):
            self.kernels.run_expert(
                cfg, cfg.shared_ffn, [column[part] for column in columns], self.weights.shared(common)
            )
        self._add(dx, np.ones(len(x), np.float32))
        if cfg.shared_sigmoid:
            back = dw * (w * (np.float32(1) - w))
            vector = self.weights.masters["shared_sigmoid"]
            self._add(np.broadcast_to(vector, (len(x), cfg.hidden)), back)
            for part, common in zip(self.pieces, self.common):
                self.kernels.add_outer(x[part], back[part, None], self.weights.part(common, "shared_sigmoid"), None)

    def add_router(self) -> None:
        """Add the router's part, with the caller's own gradients of the router scores."""
        cfg, saved, router, dlogits = self.cfg, self.saved, self.cfg.router, self.call.dlogits
        assert saved.logits is not None
        assert self.weights.router_transposed is not None
        back = np.zeros((len(self.x), cfg.columns), np.float32) if dlogits is None else dlogits.copy()
        self.kernels.tokens.logit_gradients(
            len(back),
            saved.logits.ctypes.data,
            cfg.columns,
            saved.chosen.ctypes.data,
            self.dw.ctypes.data,
            cfg.top_k,
            SCORES[router.score],
            router.renormalize,
            router.scale,
            back.ctypes.data,
        )
        for part, common in zip(self.pieces, self.common):
            bias = self.weights.part(common, "router_bias")
            self.kernels.add_outer(self.x[part], back[part], self.weights.part(common, "router"), bias)
        dx = self.kernels.product(back, self.weights.router_transposed, cfg.hidden)
        self._add(dx, np.ones(len(back), np.float32))

    def _add(self, rows: np.ndarray, factors: np.ndarray) -> None:
        self._kept.append(rows)
        self._terms.append((addresses(rows)[:, None], factors[:, None]))

    def combined(self) -> np.ndarray:
        """dx [S, H]: the sum of all terms of each token, in order."""
        at = np.concatenate([each for each, _ in self._terms], axis=1)
        factors = np.concatenate([each for _, each in self._terms], axis=1)
        dx = np.empty((len(at), self.cfg.hidden), np.float32)
        self.kernels.tokens.combine_rows(
            len(at), dx.ctypes.data, dx.strides[0], at.shape[1], factors.ctypes.data, at.ctypes.data, self.cfg.hidden
        )
        return dx
