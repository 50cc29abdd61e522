"""Strategies that decide which actor runs next: random walks, PCT, and a list of decisions that replays a run.

PCT: Burckhardt, Kothari, Musuvathi, Nagarakatte, "A randomized scheduler with probabilistic guarantees of finding
bugs", ASPLOS 2010. Actors have random priorities. Among actors that can run, the one with the highest priority runs. At
a few random steps, at most CHANGES, the running actor's priority falls below all others.
"""

from __future__ import annotations

import random

from .cases import Case
from .scheduler import Actor, Strategy

CHANGES = 4  # the most changes of priority in a run
FAIR = 500  # the running actor's priority also falls once in this many steps, because a waiting rank polls for ever
LOCAL_STEPS, REMOTE_STEPS, GPU_STEPS = (
    60,
    350,
    600,
)  # about how many steps a rank's call takes. The sum over all calls limits the random steps of PCT


class Recorded:
    """A strategy that records the decisions of another one."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.decisions: list[int] = []

    def pick(self, options: list[Actor]) -> int:
        made = self.inner.pick(options)
        self.decisions.append(made)
        return made

    def choose(self, count: int, what: str) -> int:
        made = self.inner.choose(count, what)
        self.decisions.append(made)
        return made


class Replay:
    """A strategy that takes decisions from a list. It decides 0 if the list has ended or its decision is impossible."""

    def __init__(self, decisions: list[int]) -> None:
        self.decisions, self.at = decisions, 0

    def _next(self, count: int) -> int:
        made = self.decisions[self.at] if self.at < len(self.decisions) else 0
        self.at += 1
        return made if made < count else 0

    def pick(self, options: list[Actor]) -> int:
        return self._next(len(options))

    def choose(self, count: int, what: str) -> int:
        return self._next(count)


class _Chance:
    """Makes all choices except that of the next actor. Mostly it takes 0, the choice that changes least."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed ^ 0x5EED)
        self.rare = self.random.choice((0.05, 0.2, 0.5))

    def choose(self, count: int, what: str) -> int:
        chance = 0.5 if what in ("word", "words", "torn") else self.rare
        return self.random.randrange(count) if self.random.random() < chance else 0


class RandomWalk(_Chance):
    """A strategy by which any actor may run, but some much more often than others."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.stay = self.random.choice((0.0, 0.5, 0.9))
        self.weight: dict[int, float] = {}

    def pick(self, options: list[Actor]) -> int:
        draw = self.random
        if draw.random() < self.stay:
            return 0
        if draw.random() < 0.003:
            self.weight.clear()
        weight = self.weight
        for actor in options:
            if actor.number not in weight:
                weight[actor.number] = draw.choice((1.0, 1.0, 0.1, 0.01))
        return draw.choices(range(len(options)), [weight[a.number] for a in options])[0]


class PCT(_Chance):
    """A strategy by priorities that change at a few random steps."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__(seed)
        self.priority: dict[int, float] = {}
        self.step = 0
        count = self.random.randint(0, CHANGES)
        self.changes = {self.random.randrange(max(1, length)): -i - 1 for i in range(count)}

    def pick(self, options: list[Actor]) -> int:
        for actor in options:
            if actor.number not in self.priority:
                self.priority[actor.number] = self.random.random()
        best = max(range(len(options)), key=lambda i: self.priority[options[i].number])
        if self.step in self.changes or self.step % FAIR == FAIR - 1:
            self.priority[options[best].number] = self.changes.get(self.step, -self.step)
            best = max(range(len(options)), key=lambda i: self.priority[options[i].number])
        self.step += 1
        return best


def length(case: Case) -> int:
    """About how many steps a case takes."""
    if not case.calls:
        return 1000
    steps = GPU_STEPS if case.proxy else LOCAL_STEPS if case.nodes.single else REMOTE_STEPS
    return case.ranks * len(case.calls[0]) * steps


def make(name: str, seed: int, length: int) -> Strategy:
    """A strategy by name. Every fourth schedule of "pct" is a random walk, for bugs that need many changes."""
    if name == "random" or (name == "pct" and seed % 4 == 3):
        return RandomWalk(seed)
    return PCT(seed, length)
