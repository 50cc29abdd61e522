"""What a simulation found: times of calls, where the ranks' time went, and the bytes on every link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import words
from . import control as c
from .simulation import Simulation

ACTIVITIES = ("route", "pack", "dispatch", "expert", "combine", "wire", "idle")  # N_ROUTE etc. count their time


@dataclass(frozen=True)
class Outcome:
    """The outcome of a simulation.

    times: [world, calls] s of each rank's calls. calls: [calls] ms from the first rank's start of a call to the last
    rank's end. ranks: [world] ms of the last call. shares: activity -> [world] share of the workers' time in the last
    call; `other` is the engine's own time. waits: [world, world] s that a rank's workers waited for a peer in the
    last call. rows: [world, world] rows from a source to an owner in the last call. put_bytes, puts: [world, world]
    bytes and puts between nodes in all calls. row_bytes: bytes of the rows that crossed between nodes in the last call.
    decisions: [world] how often the workers of a rank decided what to do, in all calls. node_of: the node of each rank.
    links: name -> bytes that crossed in all calls, and the share of the link's capacity that they used. workers: how
    many a rank has. events: how many events the simulation had.
    """

    times: np.ndarray
    calls: np.ndarray
    ranks: np.ndarray
    shares: dict[str, np.ndarray]
    waits: np.ndarray
    rows: np.ndarray
    put_bytes: np.ndarray
    puts: np.ndarray
    row_bytes: int
    decisions: np.ndarray
    node_of: np.ndarray
    links: dict[str, tuple[float, float]]
    workers: int
    events: int

    @classmethod
    def from_simulation(cls, sim: Simulation) -> Outcome:
        """The outcome of a simulation that has run."""
        began, ended = sim.times
        ranks = (ended[:, -1] - began[:, -1]) * 1e-6
        whole = np.maximum(1, (ended[:, -1] - began[:, -1]) * sim.workers)
        world = sim.world
        shares = {
            name: np.array([_counter(sim, rank, getattr(words, f"N_{name.upper()}")) for rank in range(world)]) / whole
            for name in ACTIVITIES
        }
        shares["other"] = 1 - sum(shares.values())
        span = max(1, int(ended.max() - began.min()))
        links = {
            name: (float(nbytes), float(nbytes / (capacity * span)))
            for name, nbytes, capacity in zip(sim.routes.names, sim.link_bytes, sim.routes.capacity)
        }
        put_bytes, puts = (sim.pairs[:, word].reshape(world, world).copy() for word in (c.PUT_BYTES, c.PUTS))
        rows, node = _table(sim, words.T_ROWS_TO), np.unique(sim.nodes.node_of, return_inverse=True)[1]
        remote = node[:, None] != node[None, :]
        job, moved = sim.ranks[0].job, _table(sim, words.T_MOVED_TO) if sim.schedule == "fused" else rows
        row = int(job[words.ROW_BYTES if sim.schedule == "fused" else words.RETURN_STRIDE])
        return cls(
            (ended - began) * 1e-9,
            calls_ms(sim),
            ranks,
            shares,
            _table(sim, words.T_PEER_WAIT) * 1e-9,
            rows,
            put_bytes,
            puts,
            int((moved + rows)[remote].sum()) * row,
            sim.decisions,
            node,
            links,
            sim.workers,
            sim.events,
        )

    @property
    def busiest_link(self) -> tuple[str, float]:
        """The name of the link with the largest share of its capacity in use, and this share; ("", 0) on one node."""
        return max(
            ((name, share) for name, (_, share) in self.links.items()), key=lambda one: one[1], default=("", 0.0)
        )

    @property
    def protocol_bytes(self) -> float:
        """Mean bytes between nodes per call that are not rows: announcements, records, indices and words."""
        return float(self.put_bytes.sum()) / len(self.calls) - self.row_bytes

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
        last, count = float(self.calls[-1]), len(self.calls)
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
            "puts_between_nodes": int(self.puts.sum()),
            "row_bytes_a_call": self.row_bytes,
            "protocol_bytes_a_call": round(self.protocol_bytes),
            "decisions_a_call": round(float(self.decisions.sum()) / count),
            "puts_a_call": round(float(self.puts.sum()) / count),
            "busiest_link": name,
            "busiest_link_share": round(share, 4),
            "binds": self.binds,
            "events": self.events,
        }


def calls_ms(sim: Simulation) -> np.ndarray:
    """[calls] ms of the calls that all ranks have ended, in a simulation that has run, or was stopped."""
    began, ended = sim.times
    done = int((ended > 0).all(axis=0).sum())
    return (ended[:, :done].max(axis=0) - began[:, :done].min(axis=0)) * 1e-6 if done else np.zeros(0)


def _table(sim: Simulation, table: int) -> np.ndarray:
    """[world, world]: for every rank, the values that a table of its state has for each peer."""
    at = sim.tables.starts[table]
    return np.array([rank.state[at : at + sim.world] for rank in sim.ranks])


def _counter(sim: Simulation, rank: int, name: int) -> int:
    """A counter of the last call, added up over a rank's workers."""
    state, starts = sim.ranks[rank].state, sim.tables.starts
    return sum(int(state[words.counter(starts, worker, name)]) for worker in range(sim.workers))
