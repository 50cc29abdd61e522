"""What a simulation found: times of calls, where the ranks' time went, and the bytes on every link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import words
from . import control as c
from .simulation import Simulation

ACTIVITIES = {
    "route": "N_ROUTE",
    "pack": "N_PACK",
    "dispatch": "N_DISPATCH",
    "expert": "N_EXPERT",
    "combine": "N_COMBINE",
    "wire": "N_WIRE",
    "idle": "N_IDLE",
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a simulation.

    calls: [calls] ms from the first rank's start of a call to the last rank's end. ranks: [world] ms of the last call.
    shares: activity -> [world] share of the last call's time, over the workers; `other` is the engine's own time.
    rows: [world, world] rows from a source to an owner in the last call. put_bytes: [world, world] bytes put between
    nodes in all calls. links: name -> bytes that crossed in all calls, and the share of the link's capacity that they
    used. events: how many were added.
    """

    calls: np.ndarray
    ranks: np.ndarray
    shares: dict[str, np.ndarray]
    rows: np.ndarray
    put_bytes: np.ndarray
    links: dict[str, tuple[float, float]]
    events: int

    @classmethod
    def of(cls, sim: Simulation) -> Outcome:
        """The outcome of a simulation that has run."""
        began, ended = sim.times
        calls = (ended.max(axis=0) - began.min(axis=0)) * 1e-6
        ranks = (ended[:, -1] - began[:, -1]) * 1e-6
        whole = np.maximum(1, (ended[:, -1] - began[:, -1]) * sim.workers)
        starts, world = sim.tables.starts, sim.world
        shares = {
            name: np.array([_counter(sim, rank, getattr(words, word)) for rank in range(world)]) / whole
            for name, word in ACTIVITIES.items()
        }
        shares["other"] = 1 - sum(shares.values())
        at = starts[words.T_ROWS_TO]
        rows = np.array([rank.state[at : at + world] for rank in sim.ranks])
        span = max(1, int(ended.max() - began.min()))
        links = {
            name: (float(nbytes), float(nbytes / (capacity * span)))
            for name, nbytes, capacity in zip(sim.routes.names, sim.link_bytes, sim.routes.capacity)
        }
        put = sim.pairs[:, c.PUT_BYTES].reshape(world, world).copy()
        return cls(calls, ranks, shares, rows, put, links, sim.events)

    @property
    def busiest_link(self) -> tuple[str, float]:
        """The name of the link with the largest share of its capacity in use, and this share; ("", 0) on one node."""
        return max(
            ((name, share) for name, (_, share) in self.links.items()), key=lambda one: one[1], default=("", 0.0)
        )

    @property
    def binds(self) -> str:
        """What limits a call: `network`, `experts`, `balance` or `steps`.

        `balance`: ranks wait for a rank whose experts take longer.
        """
        expert = self.shares["expert"]
        candidates = {
            "network": self.busiest_link[1],
            "experts": float(expert.min()),
            "balance": float(expert.max() - expert.min()),
            "steps": float(
                np.mean(sum(self.shares[name] for name in ("route", "pack", "dispatch", "combine", "wire")))
            ),
        }
        return max(candidates, key=candidates.__getitem__)

    def facts(self, tokens: int) -> dict[str, Any]:
        """Plain values for JSON. tokens: how many tokens all ranks have in a call."""
        name, share = self.busiest_link
        last = float(self.calls[-1])
        return {
            "call_ms": [round(float(ms), 6) for ms in self.calls],
            "tokens_per_s": tokens / (last * 1e-3),
            "shares": {key: round(float(value.mean()), 4) for key, value in self.shares.items()},
            "idle_of_busiest": round(float(self.shares["idle"].min()), 4),
            "idle_of_idlest": round(float(self.shares["idle"].max()), 4),
            "rows_of_busiest_over_mean": round(
                float(self.rows.sum(axis=0).max() / max(1e-9, self.rows.sum(axis=0).mean())), 4
            ),
            "bytes_between_nodes": int(self.put_bytes.sum()),
            "busiest_link": name,
            "busiest_link_share": round(share, 4),
            "binds": self.binds,
            "events": self.events,
        }


def _counter(sim: Simulation, rank: int, name: int) -> int:
    """A counter of the last call, added up over a rank's workers."""
    state, starts = sim.ranks[rank].state, sim.tables.starts
    return sum(int(state[words.counter(starts, worker, name)]) for worker in range(sim.workers))
