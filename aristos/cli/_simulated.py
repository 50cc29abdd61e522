"""Points of `aristos simulate`: each is one simulation, with the options that it has and what it found."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bench import options, routing
from ..bench.context import counted
from ..bench.tables import Reporter
from ..errors import InputError
from ..host import launch_environment

if TYPE_CHECKING:
    from ..config import MoEConfig
    from ..placement import Placement
    from ..simulate.machine import Machine
    from ..simulate.outcome import Outcome
    from ..simulate.simulation import Simulation

NAMED = ("machine", "nodes", "threads", "tokens", "dtype", "routing", "layer", "schedule", "levels", "tile", "calls",
         "seed")  # fmt: skip
LINES_PERIOD = 5.0  # seconds between two lines where no progress bar can be drawn
MachineOf = Callable[[argparse.Namespace, "MoEConfig"], tuple["Machine", str]]


@dataclass
class Point:
    """One simulation. asked: its options. change: how they differ from the command's, such as `tile=64`.

    `simulation` sets shape and note, which describe the layer, and machine and rates: the simulated machine, and a text
    that says where the expert kernel's rates come from. `run_simulation` sets found, None if the simulation did not
    end; call_ms, the milliseconds of the calls that ended; and seconds, how long the simulation took.
    """

    asked: argparse.Namespace
    change: str = ""
    shape: str = ""
    note: str = ""
    machine: Machine | None = None
    rates: str = ""
    found: Outcome | None = None
    call_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ranks(self) -> int:
        return int(self.asked.nodes * self.asked.ranks_per_node)

    @property
    def model(self) -> str:
        """The model that was asked for, else that of a recorded routing, else the default."""
        from .. import models

        found = None
        if self.asked.model is None and options.is_file(self.asked.routing):
            found = models.matching(_trace(self.asked.routing).experts, _trace(self.asked.routing).top_k)
        return str(self.asked.model or found or models.DEFAULT)

    @property
    def pattern(self) -> str:
        """The routing in short, for tables and pictures."""
        if not options.is_file(self.asked.routing):
            return str(self.asked.routing)
        return f"{Path(self.asked.routing).stem}, layer {_chosen(self.asked)}"

    @property
    def moves(self) -> str:
        """What moves within a node. With the bulk schedule, tokens move."""
        return str(self.asked.moves) if self.asked.schedule == "fused" else "tokens"

    @property
    def levels(self) -> int:
        """Levels of the simulated wire: one if there is one node."""
        return int(self.asked.levels) if self.asked.nodes > 1 else 1

    def facts(self) -> dict[str, Any]:
        """The point's options and results, as plain values."""
        about = {name: getattr(self.asked, name) for name in NAMED}
        about |= {"ranks": self.ranks, "model": self.model, "moves": self.moves, "levels": self.levels}
        if self.found is None:
            return {**about, "finished": False, "call_ms": self.call_ms}
        return {**about, "finished": True, **self.found.facts(self.ranks * self.asked.tokens)}

    def simulation(self, machine_of: MachineOf) -> Simulation:
        """The simulation, not yet run. Raises InputError for a layer or a routing that cannot be simulated."""
        from .. import models
        from ..host.nodes import Nodes
        from ..placement import Placement
        from ..simulate.rank import Layer
        from ..simulate.simulation import Simulation

        asked = self.asked
        shape = models.shape(self.model, self.ranks, scale=1, tokens=(asked.tokens,), dtype=asked.dtype)
        cfg, self.shape, self.note = shape.cfg, str(shape), shape.note
        placement = Placement(None, cfg.experts, self.ranks)
        layer = Layer(cfg, placement, _ids(asked, cfg, placement), asked.moves, asked.tile)
        self.machine, self.rates = machine_of(asked, cfg)
        nodes = Nodes.split(self.ranks, asked.ranks_per_node)
        if self.levels == 2:
            nodes = nodes.with_streams()
        return Simulation(layer, nodes, self.machine, asked.threads, asked.calls, asked.schedule)

    def run_simulation(self, sim: Simulation, report: Callable[[str, float], None]) -> None:
        """Run the simulation. report: called with words on how far it is, and the share that is done."""
        from ..simulate.outcome import Outcome, calls_ms

        started, ranks = time.monotonic(), counted(self.ranks, "rank")

        def progress(now: int) -> None:
            ended = int((sim.times[1] > 0).sum())
            report(f"{ranks}, {now * 1e-6:.3f} ms of virtual time", ended / sim.times[1].size)

        try:
            sim.run(progress)
        finally:
            self.call_ms = [float(ms) for ms in calls_ms(sim)]
            self.found = Outcome.from_simulation(sim) if len(self.call_ms) == self.asked.calls else None
            self.seconds = time.monotonic() - started


@cache
def _trace(path: str) -> routing.Trace:
    return routing.load(path)


def _chosen(asked: argparse.Namespace) -> int:
    """The number of the recorded layer that is simulated."""
    return _trace(asked.routing).layers // 2 if asked.layer is None else int(asked.layer)


def _ids(asked: argparse.Namespace, cfg: MoEConfig, placement: Placement) -> list[np.ndarray]:
    """The routing of each rank, [tokens, k]: drawn, or of a prefill batch of a recorded routing."""
    world = len(placement.held)
    if not options.is_file(asked.routing):
        rng, local = np.random.default_rng(asked.seed), placement.held[0]
        return [routing.generate(asked.routing, rng, asked.tokens, cfg.experts, cfg.top_k, local) for _ in range(world)]
    trace = _trace(asked.routing)
    if trace.experts > cfg.experts or trace.top_k != cfg.top_k:
        raise InputError(
            f"{asked.routing} has {trace.experts} experts and k {trace.top_k}, but the model has {cfg.experts} experts"
            f" and k {cfg.top_k}: name the routing's model by --model"
        )
    layer = _chosen(asked)
    if layer >= trace.layers:
        raise InputError(f"--layer must be below {trace.layers}, the layers of {asked.routing}, got {layer}")
    return [trace.at(trace.prefill(rank, world, asked.tokens, 0), layer)[0] for rank in range(world)]


class Progress:
    """Progress on stderr: a bar on a terminal, else a line every LINES_PERIOD seconds. points: how many there are."""

    def __init__(self, points: int, command: str = "aristos simulate") -> None:
        self._points, self._done, self._said, self._command = points, 0, time.monotonic(), command
        self._reporter = Reporter(quiet=True)

    def __enter__(self) -> Progress:
        self._reporter.begin("simulate")
        return self

    def __exit__(self, *why: object) -> None:
        self._reporter.end()

    def next(self) -> None:
        """The next point begins."""
        self._done += 1

    def report(self, text: str, share: float) -> None:
        """Show progress. text: how far the point is that runs. share: how much of that point is done, 0 to 1."""
        if self._points > 1:
            text = f"point {self._done} of {self._points}, {text}"
        self._reporter.progress(text, (self._done - 1 + share) / self._points)
        now = time.monotonic()
        if not launch_environment.on_terminal(sys.stderr) and now - self._said > LINES_PERIOD:
            self._said = now
            print(f"{self._command}: {text}", file=sys.stderr, flush=True)
