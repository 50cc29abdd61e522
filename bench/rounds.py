"""Times all peers in the same way: in each round every peer has one turn, in random order.

No machine is perfectly quiet, and its speed drifts. So all peers take part in every round and are compared only within
a round. Each round has a new order. A turn is one untimed call, which loads the peer's weights into the caches, and a
few timed calls. Each call starts after a barrier, and its time is that of the slowest rank. If calls take seconds, a
turn may be a single call, which loads the caches itself. While one team works, the other teams sleep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from environments import NoEnvironment
from jobs import Product, Shape
from numpy.typing import NDArray
from oracle import StepTruth, Truth
from peers import Absent, Entry
from teams import Team

TURN_SECONDS = 0.15  # about the time of a turn
ITERS = (2, 40)  # fewest and most timed calls in a turn, unless asked otherwise
PEAK = "aristos"  # the team that measures the peak
SAME_BITS = (("fused", "bulk"), ("bf16", "bf16-bulk"))


@dataclass
class ShapeResults:
    """The results of one shape.

    times: peer -> [rounds, iters, world] seconds; peak: [rounds, world] GFLOP/s of multiply-adds in registers;
    load: [rounds] load average; busiest: [iters] operations of the rank with most rows in each timed call; mean: the
    same averaged over ranks; errors: peer -> largest relative error on any rank and input; absent: peer -> reason;
    same_bits: whether fused and bulk gave equal outputs, bit for bit, in each dtype; outside: [2, calls] seconds, see
    micro.outside; ran: peer -> element type, precision and ISA of its arrays and kernels, see peers.ran; entries: peer
    -> Entry of the peers that were asked for.
    """

    shape: Shape | Product
    world: int
    iters: int = 0
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    peak: NDArray[np.float64] | None = None
    load: list[float] = field(default_factory=list)
    busiest: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    errors: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    same_bits: bool | None = None
    outside: NDArray[np.float64] | None = None
    ran: dict[str, dict[str, str]] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    def turns(self, peer: str) -> NDArray[np.float64]:
        """The median seconds of a peer's calls in each round: [rounds]. A call's time is that of its slowest rank."""
        turns: NDArray[np.float64] = np.median(self.times[peer].max(axis=2), axis=1)
        return turns

    def wrong(self) -> list[str]:
        """Peers whose error exceeded the bound, or that computed in another dtype than their entry says."""
        missed = [name for name, error in self.errors.items() if not error <= self.entries[name].bound]
        return [*missed, *(name for name in self.other_dtype() if name not in missed)]

    def other_dtype(self) -> list[str]:
        """Peers that computed in another dtype than their entry says, or read weights of another type."""
        of_entries = ((name, of, self.entries[name]) for name, of in self.ran.items() if self.entries[name].checked)
        return [name for name, of, e in of_entries if (of["dtype"], of.get("weights", "")) != (e.dtype, e.weights)]

    def timed(self, dtype: str, ours: bool) -> list[str]:
        """Names of the peers of a dtype that were timed, Aristos's or the others'."""
        return [name for name in self.times if self.entries[name].dtype == dtype and self.entries[name].ours == ours]


class Teams(dict[str, Team]):
    """The teams of a run by the names of their environments. A team starts when it is first used."""

    def __init__(self, start: Callable[[str], Team]) -> None:
        super().__init__()
        self._start = start

    def __missing__(self, name: str) -> Team:
        self[name] = self._start(name)
        return self[name]

    def close(self) -> None:
        for team in self.values():
            team.close()


def make_peers(teams: Teams, folder: Path, entries: list[Entry], measured: ShapeResults) -> list[Entry]:
    """Make every peer that can run here. For each other peer, the reason goes to measured.absent."""
    made, readers = [], set()
    for entry in entries:
        measured.entries[entry.name] = entry
        try:
            team = teams[entry.environment]
            if entry.environment not in readers:
                team("read", str(folder))
                readers.add(entry.environment)
            team("make", entry.name, entry.factory, entry.options)
            made.append(entry)
        except (Absent, NoEnvironment) as why:
            measured.absent[entry.name] = str(why)
    return made


def check(
    teams: Teams,
    folder: Path,
    truth: Truth | StepTruth,
    entries: list[Entry],
    measured: ShapeResults,
    inputs: int | None = None,
) -> None:
    """Check every peer on every rank against float64, and fused against bulk, on `inputs` inputs or on all."""
    for i in range(inputs or measured.shape.inputs):
        outputs: dict[str, list[NDArray[np.float32]]] = {}
        for entry in entries:
            if not entry.checked:
                measured.ran[entry.name] = teams[entry.environment]("ran", entry.name)[0]
                continue
            path = folder / f"output-{entry.name}"
            teams[entry.environment]("output", entry.name, i, str(path))
            measured.ran[entry.name] = teams[entry.environment]("ran", entry.name)[0]
            outputs[entry.name] = [np.load(f"{path}-{rank}.npy") for rank in range(measured.world)]
            errors = [truth.error(rank, i, y) for rank, y in enumerate(outputs[entry.name])]
            measured.errors[entry.name] = max([*errors, measured.errors.get(entry.name, 0.0)], key=_worst)
        for fused, bulk in SAME_BITS:
            if fused in outputs and bulk in outputs:
                same = all(np.array_equal(a, b) for a, b in zip(outputs[fused], outputs[bulk]))
                measured.same_bits = same and measured.same_bits is not False


def _worst(error: float) -> float:
    return np.inf if np.isnan(error) else error


def run_rounds(
    teams: Teams,
    folder: Path,
    truth: Truth | StepTruth,
    entries: list[Entry],
    measured: ShapeResults,
    rounds: int,
    iters: int | None,
    draw: np.random.Generator,
    show: Callable[[str], None],
    after: Callable[[Team], NDArray[np.float64]] | None = None,
) -> None:
    """Measure one job into `measured`: check, rounds, check the first input again.

    If Aristos runs, multiply-adds in registers have a turn of their own in every round. after: a function that gets
    Aristos's team and returns measured.outside. show: a function that shows a text as progress.
    """
    made = make_peers(teams, folder, entries, measured)
    check(teams, folder, truth, made, measured, inputs=1 if iters == 1 else None)
    right = [entry for entry in made if entry.name not in measured.wrong()]
    if right:
        with_peak = any(entry.environment == PEAK for entry in right)
        measured.iters = iters or choose_iters(teams, right[0])
        take_rounds(teams, right, rounds, draw, with_peak, measured, show)
        _operations(truth, measured)
        check(teams, folder, truth, right, measured, inputs=1)
        for name in measured.wrong():
            measured.times.pop(name, None)
    if after and "fused" in measured.times:
        measured.outside = after(teams[PEAK])
    for team in {entry.environment for entry in made}:
        teams[team]("close")


def choose_iters(teams: Teams, entry: Entry) -> int:
    """How many calls this peer makes in about TURN_SECONDS."""
    seconds = min(np.max(teams[entry.environment]("turn", entry.name, 3), axis=0))
    return int(np.clip(TURN_SECONDS / seconds, *ITERS))


def take_rounds(
    teams: Mapping[str, Team],
    entries: list[Entry],
    rounds: int,
    draw: np.random.Generator,
    with_peak: bool,
    measured: ShapeResults,
    show: Callable[[str], None],
) -> None:
    """Fill measured.times, peak and load."""
    by_name = {entry.name: entry for entry in entries}
    names = [*by_name, *(["peak"] if with_peak else [])]
    taken: dict[str, list[list[list[float]]]] = {name: [] for name in by_name}
    peaks: list[list[float]] = []
    if with_peak:
        teams[PEAK]("run", "micro:peak")  # a first, unused measurement compiles its code
    for number in range(rounds):
        for name in draw.permutation(names).tolist():
            if name == "peak":
                peaks.append(teams[PEAK]("run", "micro:peak"))
            else:
                taken[name].append(teams[by_name[name].environment]("turn", name, measured.iters))
        measured.load.append(os.getloadavg()[0])
        show(f"{measured.shape.label}: round {number + 1} of {rounds}")
    measured.times = {name: np.array(turns).transpose(0, 2, 1) for name, turns in taken.items()}
    measured.peak = np.array(peaks) if with_peak else None


def _operations(truth: Truth | StepTruth, measured: ShapeResults) -> None:
    """Fill measured.busiest and mean."""
    first = int(measured.iters > 1)  # see Worker.turn
    shape, inputs = measured.shape, [(i + first) % measured.shape.inputs for i in range(measured.iters)]
    if isinstance(shape, Product):
        measured.busiest = measured.mean = np.full(measured.iters, float(shape.flops()))
    else:
        measured.busiest = np.array([shape.flops(int(truth.rows[i].max())) for i in inputs], dtype=np.float64)
        measured.mean = np.array([shape.flops(1) * truth.rows[i].mean() for i in inputs])
