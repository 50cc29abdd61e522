"""Measures real calls on two ranks for bench/truth.py, and what a simulation of them needs to know of this machine.

Every rank has a core of its own. Other work on the machine, also of other virtual machines on its cores, changes the
speed of a core while calls are measured. So in each turn the calls alternate with a *probe*: runs of the expert kernel
with another shape than the judged layer's. A probe shows how fast a core was while a point was measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jobs import SHAPES as COMPARED

from aristos.bench import routing
from aristos.bench.delay.network import Network
from aristos.bench.measure import gathered, in_turns
from aristos.bench.workload import Workload, execute
from aristos.bench.world import World
from aristos.config import MoEConfig
from aristos.simulate import calibrate

LINKS = tuple(product((2.0, 50.0, 1000.0), (100.0, 25.0, 10.0, 1.0)))  # us, GB/s: the points of suite `overlap`
STEP = 128  # widths of the layers that calibrate are multiples of STEP, as the widths of judged layers are
MOST, FEWEST = 60, 5  # calls of each kind at a point
QUARTILES = (25, 50, 75)
PYTHON = 300  # steps of the probe of Python


@dataclass(frozen=True)
class Case:
    """A layer and its routing. tokens: of a rank. routing: a generator of bench/routing.py, or the name of a trace.

    links: whether it is also measured with emulated links.
    """

    name: str
    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    gated: bool = False
    dtype: str = "float32"
    routing: str = "uniform"
    links: bool = False

    @property
    def cfg(self) -> MoEConfig:
        activation: Any = "silu" if self.gated else "relu"
        return MoEConfig(
            self.hidden,
            self.ffn,
            self.experts,
            self.top_k,
            max_tokens=self.tokens,
            dtype=self.dtype,
            gated=self.gated,
            activation=activation,
        )

    @property
    def others(self) -> list[MoEConfig]:
        """Two layers of other shapes, one wider and one narrower, whose experts have about as many weights."""

        def near(width: float, other: int) -> int:
            """The multiple of STEP next to a width, but not `other`."""
            found = max(STEP, round(width / STEP) * STEP)
            return found if found != other else found + STEP

        return [
            replace(self.cfg, hidden=near(1.25 * self.hidden, self.hidden), ffn=near(0.8 * self.ffn, 0)),
            replace(self.cfg, hidden=near(0.8 * self.hidden, 0), ffn=near(1.25 * self.ffn, self.ffn)),
        ]

    @property
    def key(self) -> str:
        return f"{self.name} {self.dtype} {self.routing}"


SHAPES = tuple(
    Case(s.name, s.tokens, s.hidden, s.ffn, s.experts, s.top_k, s.gated) for s in map(COMPARED.__getitem__, "ABCDEG")
)
# No judged layer has these shapes: many narrow rows, fewer wide rows, and few rows whose weights fill the caches.
CALIBRATION = (
    Case("narrow", 2048, 256, 128, 8, 2),
    Case("wide", 256, 1536, 256, 16, 4),
    Case("few", 24, 640, 768, 8, 2),
)
TRACES = {"law": "deepseek_v2_lite_esft/law.npz", "gpt-oss": "gpt_oss_20b/decode_traces.npz"}


def cases(dtypes: tuple[str, ...], traces: Path | None) -> Iterator[Case]:
    """The judged layers: every shape with uniform routing and links, skewed routing, and two traces if given."""
    for dtype in dtypes:
        for shape in SHAPES:
            yield replace(shape, dtype=dtype, links=True)
        for shape, how in product(SHAPES, ("zipf", "one")):
            yield replace(shape, dtype=dtype, routing=how)
        if traces is not None:
            yield replace(SHAPES[5], dtype=dtype, routing="law")
            yield replace(SHAPES[4], dtype=dtype, routing="gpt-oss", top_k=4)


class Runs:
    """Real calls of one case with each schedule. Every method is collective."""

    def __init__(self, world: World, case: Case, traces: Path | None) -> None:
        self.world, self.case = world, case
        work = Workload(world, case.cfg, seed=0)
        if case.routing in TRACES:
            assert traces is not None
            trace = routing.load(str(traces / TRACES[case.routing]))
            tokens = trace.prefill(world.rank, world.size, case.tokens, 0)
            call = work.recorded(trace, tokens, trace.layers // 2)
        else:
            call = work.call(case.tokens, case.routing, case.tokens)
        self.call = work.typed(call)
        stacked = work.weights()
        self.layers = {
            name: work.layer("bulk" if name == "bulk" else "fused", 1, stacked, moves=moves)
            for name, moves in (("fused", "tokens"), ("bulk", "tokens"), ("stay", "auto"))
        }
        self.out = np.empty_like(self.call.x)
        self.held = case.experts // world.size
        self.others = [calibrate.ExpertRuns(cfg, self.held) for cfg in case.others]
        rows = case.tokens * world.size * case.top_k // case.experts
        self.rows = max(1, min(max(calibrate.ROWS), rows))
        self.probe, self.touch = self.others[0].runs_of(self.rows), self.others[0].runs_of(1)

    def kernels(self) -> list[dict[str, float]]:
        """Rates of the expert kernel of each other shape: the best rank's, because a rank may be disturbed."""
        self.world.barrier()
        every = self.world.allgather([list(found.rates.values()) for found in calibrate.kernels(self.others)])
        return [dict(zip(map(str, calibrate.ROWS), rates)) for rates in np.max(every, axis=0).tolist()]

    def _probe(self, kept: list[float]) -> None:
        """Run each expert of a layer of another shape, as in a call. Appends the seconds of all these runs to `kept`.

        Short runs come first, because the weights of a layer whose calls take turns have just been read too.
        """
        for _ in range(self.held):
            self.touch()
        kept.append(sum(self.probe() for _ in range(self.held)))

    def point(self, names: tuple[str, ...], seconds: float, statistics: bool = False) -> dict[str, Any]:
        """Times of calls in turns, and the probe's. Milliseconds: name -> three quartiles of the slower rank's times.

        `probe` and `python`: for each rank the quartiles. statistics: whether calls with statistics take turns too.
        Then `stats` has name -> rank -> medians of seconds of activities, and counts of rows, and `elapsed` has
        name -> rank -> the median seconds of a call without statistics.
        """
        kept: dict[str, list[Any]] = {name: [] for name in names}

        def with_statistics(name: str) -> None:
            kept[name].append(execute(self.layers[name], self.call, self.out, return_stats=True)[1])

        calls: dict[str, Any] = {n: partial(execute, self.layers[n], self.call, self.out) for n in names}
        probes: list[float] = []
        calls |= {"probe": partial(self._probe, probes), "python": python}
        if statistics:
            calls |= {f"{name} with statistics": partial(with_statistics, name) for name in names}
        first = in_turns(self.world, calls, 3)
        turn = float(sum(t.max(axis=0).min() for t in first.values()))
        count = int(self.world.bcast(max(FEWEST, min(MOST, int(seconds / turn)))))
        for each in (probes, *kept.values()):
            each.clear()
        times = in_turns(self.world, calls, count)
        found: dict[str, Any] = {
            name: (1e3 * np.percentile(times[name].max(axis=0), QUARTILES)).tolist() for name in names
        }
        for name, taken in (("probe", gathered(self.world, np.array(probes))), ("python", times["python"])):
            found[name] = (1e3 * np.percentile(taken, QUARTILES, axis=1).T).tolist()
        found["calls"] = count
        if statistics:
            every = {name: np.median(times[name], axis=1) for name in names}
            found["elapsed"] = {name: each.tolist() for name, each in every.items()}
            found["stats"] = {name: self.world.allgather(_statistics(kept[name])) for name in names}
        return found

    def measure(self, seconds: float) -> dict[str, Any]:
        """All points of the case, and what a simulation of it needs."""
        found: dict[str, Any] = {
            "case": asdict(self.case),
            "kernels": self.kernels(),
            "probe_rows": self.rows,
            "probe_operations": self.others[0].operations * self.rows * self.held,
            "python": 1e3 * float(np.min(self.world.allgather(calibrate.undisturbed([_python_seconds])[0]))),
            "points": [{"link": None, **self.point(("fused", "bulk", "stay"), 3 * seconds, True)}],
        }
        if self.case.links:
            network = Network(self.layers["fused"].runtime, self.layers["bulk"]._backend.bulk)
            for latency, rate in LINKS:
                network.set(latency, rate)
                with network:
                    point = self.point(("fused", "bulk"), seconds)
                found["points"].append({"link": [latency, rate], **point})
            network.close()
        return found

    def ids(self) -> np.ndarray:
        """[ranks, tokens, k] the routing."""
        return np.array(self.world.allgather(np.asarray(self.call.ids)))

    def close(self) -> None:
        for layer in self.layers.values():
            layer.close()


def python() -> None:
    """The probe of Python: it makes objects and calls functions, as a layer does before and after its compiled loop."""
    for i in range(PYTHON):
        np.empty(i % 3)


def _python_seconds() -> float:
    start = time.perf_counter()
    python()
    return time.perf_counter() - start


def _statistics(calls: list[Any]) -> dict[str, Any]:
    """Medians of seconds in the statistics of calls, and the last call's rows to each rank."""
    fields = ("dispatch_seconds", "compute_seconds", "combine_seconds", "idle_seconds", "call_seconds")
    found: dict[str, Any] = {name: float(np.median([getattr(s, name) for s in calls])) for name in fields}
    return {**found, "rows": list(calls[-1].rows_to_peer), "kept": list(calls[-1].kept_rows_to_peer)}
