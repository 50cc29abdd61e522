"""Calls of a real job whose compiled steps record: forward calls, backward calls and exchanges, on all transports.

Each case is a layer object whose rings are so small that credit comes back and rows are rewritten within a call. Ranks
make a few calls, and load weights between these calls. Rank 0 checks the case's log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from ... import reference
from ...config import MoEConfig
from ...engine import words
from ...engine.layout import word_from
from ...layer import collective, exchange
from ...layer.exchange import Exchange
from ...layer.moe import MoE
from ...primitives.buffers import zeros
from ...substrate.cpu import runtime as cpu
from ...transport.group import until_all_are_in
from ..replaced import replaced
from . import copies, log, planted
from .checker import Checker, Found
from .log import ACQUIRE, ADD, ELEMENT, PLANTED, RELEASE, TABLE, WORKER, WRITE, note
from .space import Mapped, Range, Space, ranges_of

ENTRIES = 6_000_000  # the most entries of a log: 336 MB, of which a case uses only a part
RING = 6  # rows
PATIENT = 2, 4  # idle polls until a worker yields its core, and until it sleeps; few, because each takes 100 entries
PAUSE = 0.001  # seconds between two polls of whether rank 0 has checked the log
TRIES = 30  # the most runs of a planted bug; the rarest shows in a third to a half of them
CFG = MoEConfig(hidden=16, ffn=224, experts=6, top_k=2, max_tokens=40, gated=True)


@dataclass(frozen=True)
class Case:
    """Calls of one object. options: keyword arguments of MoE. loads: whether ranks load weights between calls.

    once: whether tokens cross once within a node too. exchange: whether the object is an `Exchange` instead of an MoE.
    """

    name: str
    what: str
    options: dict[str, Any] = field(default_factory=dict)
    cfg: MoEConfig = CFG
    ranks: int = 1  # the fewest ranks
    loads: bool = False
    once: bool = False
    exchange: bool = False


TRAINED = replace(CFG, shared_ffn=32)
LEVELS, TRAINED_LEVELS = (replace(cfg, levels=2, max_tokens=16) for cfg in (CFG, TRAINED))
NODES_OF_TWO = {"ranks_per_node": 2}
CASES = (
    Case("shm", "tokens travel within a node", {"moves": "tokens"}),
    Case("shm-in-place", "experts in place, loads between calls", {"moves": "experts"}, ranks=2, loads=True),
    Case("shm-once", "tokens cross once within a node", {"moves": "tokens"}, ranks=2, once=True),
    Case("rma", "each rank is a node", {"ranks_per_node": 1}, ranks=2),
    Case("mixed", "nodes of two ranks", NODES_OF_TWO, ranks=3),
    Case("levels", "two levels, nodes of two ranks", NODES_OF_TWO, LEVELS, 3),
    Case("levels-sums", "two levels, outputs come back as sums", NODES_OF_TWO, replace(LEVELS, combine="sums"), 3),
    Case("train", "forward and backward calls within a node", {"train": True}, TRAINED),
    Case("train-rma", "forward and backward calls between nodes", {"train": True, "ranks_per_node": 1}, TRAINED, 2),
    Case("train-levels", "forward and backward calls, two levels", {"train": True, **NODES_OF_TWO}, TRAINED_LEVELS, 3),
    Case("exchange", "dispatch and combine within a node", exchange=True),
    Case("exchange-rma", "dispatch and combine between nodes", {"ranks_per_node": 1}, ranks=2, exchange=True),
    Case("exchange-levels", "dispatch and combine, two levels", NODES_OF_TWO, LEVELS, 3, exchange=True),
)


@dataclass
class Result:
    """The result of a case, on rank 0. planted: number of the planted bug, 0 for none. lost: number of entries for
    which the log had no space."""

    case: str
    planted: int
    entries: int
    lost: int
    seconds: float
    races: list[Found]


class Marked:
    """A compiled function of the recorded loop. When it runs, the log gets marks for the host's actions before and
    after it."""

    def __init__(self, function: Any, before: Callable[..., Any], after: Callable[[], Any] = lambda: None) -> None:
        self._function, self._before, self._after = function, before, after
        self.__module__ = function.__module__  # `warm_up` names the function by this

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __call__(self, *arguments: Any) -> Any:
        self._before(*arguments)
        result = self._function(*arguments)
        self._after()
        return result


class Recorder:
    """A replacement of `substrate.cpu.loop` for a runtime. Its loops record, and so do the host's hand-overs.

    Workers begin after the calling thread has begun the call, and the calling thread goes on after all of them have
    left. Queues of Python give this order (`workers.py`); in the log the words BEGUN and LEFT stand for the queues.
    """

    def __init__(self) -> None:
        made = copies.module("substrate.cpu.loop")
        self._words = zeros((16,))
        begun, left = self._words.ctypes.data, self._words.ctypes.data + 64
        self.jobs: list[np.ndarray] = []

        def enter(job: Any, state: Any, worker: int = 0) -> None:
            note(WORKER, 0, worker)
            note(ACQUIRE, begun)

        def begin(job: Any, state: Any) -> None:
            self.jobs.append(job.copy())
            note(ACQUIRE, left)

        self.work = Marked(made.work, enter, lambda: note(ADD, left, 1))
        self.run_alone = Marked(made.run_alone, lambda job, state: self.jobs.append(job.copy()))
        self.packing = SimpleNamespace(begin=Marked(made.packing.begin, begin, lambda: note(RELEASE, begun, 1)))
        self.steps = SimpleNamespace(end=Marked(made.steps.end, lambda job, state: note(ACQUIRE, left)))

    def labels(self) -> list[Range]:
        """Ranges of the memory that calls have used so far, with names."""
        found = []
        for job in self.jobs:
            k, tokens = int(job[words.TOP_K]), int(job[words.TOKENS])
            for name, word, nbytes in (
                ("rows of x", words.X, int(job[words.X_STRIDE]) * tokens),
                ("tokens", words.INPUT, int(job[words.INPUT_STRIDE]) * tokens),
                ("rows of y", words.Y, int(job[words.RETURN_BYTES]) * tokens),
                ("ids", words.IDS, 8 * k * tokens),
                ("combine weights", words.WEIGHTS, 4 * k * tokens),
                ("the store", words.STORE, int(job[words.STORE_STEP] * job[words.STORE_ROWS])),
                ("the tape", words.TAPE_AT, int(job[words.TAPE_END] - job[words.TAPE_AT])),
            ):
                found.append(Range(int(job[word]), nbytes, 0, name))
        return found


def make_all(comm: Any, tries: list[tuple[Case, int]], calls: int, seed: int) -> Iterator[Result]:
    """Run cases, each with a planted bug or 0 for none. Collective; rank 0 has the results.

    A bug does not show in every run. So its case is run with one seed after another until it shows, at most TRIES
    times.
    """
    record = log.Log(comm, ENTRIES)
    try:
        for case, bug in tries:
            for again in range(TRIES if bug else 1):
                result = make(comm, case, bug, record, calls, seed + again)
                if comm.bcast(result is not None and bool(result.races)):
                    break
            if result is not None:
                yield result
    finally:
        record.close()


def make(comm: Any, case: Case, bug: int, record: log.Log, calls: int, seed: int) -> Result | None:
    """Make the calls of a case, and check their log. Returns the result on rank 0, None on the other ranks."""
    recorder, began = Recorder(), time.perf_counter()
    once = {(cpu, "ONCE_ROWS"): 2, (cpu, "ONCE_SHARE"): 100} if case.once else {}
    small = {
        (collective, "ring_rows"): lambda places, stride, most, others=0: min(RING, most),
        (cpu.CpuRuntime, "loop"): recorder,
        (exchange, "step"): copies.module("engine.exchange"),
        (cpu, "ALONE"): PATIENT,
        (cpu, "CROWDED"): PATIENT,
    }
    with replaced({**small, **once}):
        TABLE[ELEMENT], TABLE[PLANTED] = 4, 0
        with contextlib.ExitStack() as opened:
            if case.exchange and case.cfg.levels == 2:
                opened.enter_context(_layer(comm, case))  # an exchange has the levels of the open layer
            made = opened.enter_context(_exchange(comm, case) if case.exchange else _layer(comm, case))
            opened.enter_context(_recording(made, recorder))
            rng = np.random.default_rng([seed, comm.rank])
            record.start()
            TABLE[PLANTED] = bug
            try:
                for number in range(calls):
                    _call(made, case, rng, number)
            finally:
                TABLE[PLANTED] = 0
                runtime: Any = made._member.runtime
                mapped = ranges_of(runtime, _home(made))
                mapped.labels = recorder.labels()
                entries = record.stop()
            everyone: list[Mapped] | None = comm.gather(mapped)
            result = None
            if everyone is not None:
                space = Space(runtime.shape, runtime.group.nodes, runtime.tables, everyone)
                races = Checker(entries, space).find_races()
                lost = record.taken - len(entries)
                result = Result(case.name, bug, len(entries), lost, time.perf_counter() - began, races)
            for _ in until_all_are_in(comm):
                time.sleep(PAUSE)  # a barrier of MPI would keep a core busy while rank 0 checks the log
    return result


def _layer(comm: Any, case: Case) -> MoE:
    made = MoE(case.cfg, comm, threads=2, timeout=60.0, **case.options)
    _load(made, case.cfg, 1)
    return made


def _load(made: Any, cfg: MoEConfig, seed: int) -> None:
    made.load(**reference.weights(cfg, seed=seed))


def _home(made: Any) -> Any:
    """The memory of experts in place, or None if there are none."""
    return getattr(getattr(made, "_backend", None), "_home", None)


def _exchange(comm: Any, case: Case) -> Exchange:
    cfg = case.cfg
    return Exchange(
        comm, hidden=cfg.hidden, experts=cfg.experts, top_k=cfg.top_k, max_tokens=cfg.max_tokens, **case.options
    )


@contextlib.contextmanager
def _recording(made: Any, recorder: Recorder) -> Iterator[None]:
    """While inside, also record accesses by the object's host code: its reads of ENDED, and the weights that it
    loads."""
    runtime = made._member.runtime
    home = _home(made)
    wait = runtime.await_readers

    def read_word(job: Any, peer: int, word: int) -> int:
        return note(ACQUIRE, int(word_from(job, runtime.state, peer, word)))

    def await_readers() -> None:
        if TABLE[PLANTED] != planted.NUMBERS["load-without-wait"]:
            wait()
        for name in home._layers[0]:
            for array in home.own(0, name):
                note(WRITE, array.ctypes.data, 8)

    names: dict[tuple[Any, str], Any] = {(runtime, "_read_word"): read_word}
    if home is not None:
        names[runtime, "await_readers"] = await_readers
    with replaced(names):
        yield


def _call(made: Any, case: Case, rng: np.random.Generator, number: int) -> None:
    """Make one call with random tokens, most of which choose among few experts."""
    cfg = case.cfg
    tokens = cfg.max_tokens if number == 0 else int(rng.integers(cfg.max_tokens + 1))
    x = rng.standard_normal((tokens, cfg.hidden), np.float32)
    chance = np.log(1.0 / np.arange(1, cfg.experts + 1))
    ids = np.argsort(-(chance + rng.gumbel(size=(tokens, cfg.experts))), axis=1)[:, : cfg.top_k]
    weights = rng.random(ids.shape, np.float32)
    if case.exchange:
        rows, handle = made.dispatch(x, ids)
        made.combine(rows, handle, weights)
        return
    if case.loads and number:
        _load(made, cfg, 1 + number)
    given = {"ids": ids, "weights": weights} if number % 2 else {}
    if case.options.get("train"):
        _, tape = made.forward(x, save=("rows", "hidden", "nothing")[number % 3], **given)
        made.backward(x, tape)
    else:
        made(x, **given)
