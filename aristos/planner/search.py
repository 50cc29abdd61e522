"""Good groups for problems too large to enumerate partitions: cuts of an order, then moves at the bottleneck.

Clustering by links puts devices in an order in which nodes, switches and pods are contiguous. Dynamic programming finds
the best cuts of such an order into k groups, for every k. Annealing then moves and swaps single devices; half of its
steps take a device of the group with the longest stage. The search proves no bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from . import moves
from .baselines import groups_of
from .cells import link_key
from .cost import allreduce_us, evaluate, slowest_link
from .exact import pairs_from_slow
from .problem import Problem

Groups = list[list[int]]
NEAREST = 8  # a device may move to the groups of this many devices, those with the fastest links to it
STEPS = 1_500_000  # steps of one annealing; with more than 32 devices, this times 32 / devices
ROUNDS = 12  # rounds of annealing, from the best cuts for different k and from the best groups so far
PIECES = 10  # parts of one annealing; the clock is checked after each
HOT, COLD = 0.03, 0.0002  # temperatures as shares of F
CUT_WORK = 20_000_000  # steps between checks of the clock
CUT_MOST = 2048  # devices; for more devices no cuts are computed, because the work is cubic


class GroupSearch:
    """One problem's search. best: groups; best_us: their F."""

    def __init__(self, problem: Problem, objective: str, allreduce: str, start: Groups, seed: int) -> None:
        self.problem, self.objective, self.allreduce, self.seed = problem, objective, allreduce, seed
        self.best, self.best_us = start, evaluate(problem, start, objective, allreduce).objective_us
        self.most = max(1, min(problem.n, int(problem.memory.sum()) // problem.experts))
        self.starts: dict[int, tuple[float, Groups]] = {}  # by number of groups: F and the groups
        link = slowest_link(problem)
        self._link = np.array([-1, -1] if allreduce == "crossing" or link is None else link, np.int64)
        self._pairs = np.zeros((0, 2), np.int64)
        if allreduce == "crossing":
            self._pairs = np.array(list(pairs_from_slow(problem)), np.int64).reshape(-1, 2)

    def offer(self, groups: Groups) -> float:
        """Keep groups if they are the best so far. Returns their F."""
        cost = evaluate(self.problem, groups, self.objective, self.allreduce)
        k = len(groups)
        if cost.objective_us < self.starts.get(k, (np.inf, []))[0]:
            self.starts[k] = cost.objective_us, groups
        if cost.objective_us < self.best_us:
            self.best, self.best_us = groups, cost.objective_us
        return cost.objective_us

    def cut(self, until: float) -> None:
        """Offer the best cuts of every order, for every number of groups."""
        p = self.problem
        if p.n > CUT_MOST:
            return
        most = self.most
        for order in orders(p):
            if time.monotonic() > until:
                return
            found = self._cuts(order, until)
            if found is None:
                return
            longest, starts = found
            links = slowest_link(p)
            for k in range(1, most + 1):
                if time.monotonic() > until:
                    return
                if not np.isfinite(longest[k]):
                    continue
                if links is not None and self.allreduce == "any":
                    reduce_us = allreduce_us(p, k, p.alpha_us[links], p.beta_us_per_mib[links])
                    if p.kappa * longest[k] + reduce_us >= self.starts.get(k, (np.inf, []))[0]:
                        continue
                groups, end = [], p.n
                for left in range(k, 0, -1):
                    groups.append(sorted(order[starts[left, end] : end].tolist()))
                    end = starts[left, end]
                self.offer(groups)

    def _cuts(self, order: np.ndarray, until: float) -> tuple[np.ndarray, np.ndarray] | None:
        """([most + 1] longest stage by number of groups, `starts` of `moves.cuts`), or None if time is up."""
        p = self.problem
        best, starts = np.full((self.most + 1, p.n + 1), np.inf), np.zeros((self.most + 1, p.n + 1), np.int64)
        best[0, 0] = 0.0
        numbers = p.experts, p.layer_cost, self.objective == "work_conserving", p.crossings, p.payload_mib
        for begin, end in pieces(p.n, self.most):
            moves.cuts(best, starts, begin, end, order, p.alpha_us, p.beta_us_per_mib, p.rate, p.memory, *numbers)
            if end <= p.n and time.monotonic() > until:
                return None
        return best[:, p.n], starts

    def anneal(self, until: float, enough: Callable[[], bool]) -> None:
        """Anneal until ROUNDS rounds are done, time is up, or enough() is True."""
        p = self.problem
        if p.n < 3:
            return
        distance = link_key(p)
        np.fill_diagonal(distance, np.inf)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(NEAREST, p.n - 1)].astype(np.int64)
        numbers = np.array(
            [p.experts, p.layer_cost, self.objective == "work_conserving", p.crossings, p.payload_mib], np.float64
        )
        for number, start in enumerate(self._round_starts()):
            if time.monotonic() > until or enough():
                return
            where = np.zeros(p.n, np.int64)
            for g, members in enumerate(start):
                where[members] = g
            groups = min(p.n, len(start) + 2)
            steps = STEPS * 32 // max(32, p.n)
            gradient = -1.0 if p.gradient_mib is None else p.gradient_mib
            for piece in range(PIECES):
                share = (piece / PIECES, (piece + 1) / PIECES)
                hot, cold = (HOT * (COLD / HOT) ** s for s in share)
                where, value = moves.anneal(
                    where, groups, p.alpha_us, p.beta_us_per_mib, p.rate, p.memory, numbers, self._link, self._pairs,
                    gradient, p.kappa, nearest, steps // PIECES, hot, cold, self.seed + 1000 * number + piece,
                )  # fmt: skip
                if np.isfinite(value):
                    self.offer(groups_of(where))
                if time.monotonic() > until:
                    return

    def _round_starts(self) -> Iterator[Groups]:
        """The groups that each round starts from.

        Of three rounds, two start from the best partition into a number of groups not tried yet, and one from the best
        of all."""
        tried: set[int] = set()
        for number in range(ROUNDS):
            left = sorted((value, k) for k, (value, _) in self.starts.items() if k not in tried and np.isfinite(value))
            if left and number % 3 != 2:
                tried.add(left[0][1])
                yield self.starts[left[0][1]][1]
            else:
                yield self.best


def pieces(n: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most CUT_WORK steps that cover 1..n, where device i takes i * (i + most) steps."""
    begin = 1
    while begin <= n:
        limit = 2 * begin  # `end` is at most this, so a device takes at most limit * (limit + most) steps
        end = begin + min(begin, max(1, CUT_WORK // (limit * (limit + most))))
        yield begin, min(end, n + 1)
        begin = end


def orders(problem: Problem) -> list[np.ndarray]:
    """Orders in which neighbours have fast links: by clustering and as numbered. Also an order by rate."""
    n = problem.n
    found = [np.arange(n)]
    key = link_key(problem)
    merged = moves.chain(key.copy())
    for slow_last in (False, True):
        members = {i: [i] for i in range(n)}
        for a, b in merged:
            first, second = members[a], members.pop(b)
            if (slow_last and problem.rate[second].mean() > problem.rate[first].mean()) or (
                not slow_last and len(second) > len(first)
            ):
                first, second = second, first
            members[a] = first + second
        found.append(np.array(members[min(members)], np.int64))
    found.append(np.lexsort((np.arange(n), -problem.rate)))  # an order by rate, so that equal devices lie together
    return found
