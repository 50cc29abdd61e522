"""What is drawn from a seed: a job, its operations, and the faults in it. `KINDS` is the list of faults."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SEVERAL = 8  # a job that survives its faults has at most this number of them, unless the caller says otherwise
DAY = 86400  # seconds
SURVIVES, ENDS, EITHER = "survives", "ends", "either"
TRANSPORTS = ("shm", "rma", "mixed")  # rma and mixed have pretended nodes, between which MPI uses shared memory
TCP = "tcp"  # transport rma, where MPI uses only the network
NODES = "nodes"  # two nodes with a network each, joined by a link; MPI has shared memory within each
LEVELS = "levels"  # pretended nodes of two ranks, with two levels between them
RANKS_OF_NODE = 2
LIMIT = 2.0  # the timeout of waits, in seconds, in a job that a fault ends
PATIENT = 20.0  # the same in a job that survives its faults; pauses, and delays of a busy machine, are far shorter


@dataclass(frozen=True)
class Kind:
    """A kind of fault. outcome: how the job must end. about: the fault's line in the table of docs/reliability.md.

    draw: further fields of a fault, from (random numbers, job). operations: those in which it may happen, None for all.
    transports: those on which it can be seen. refusals: errors that an operation may raise on some rank, after which
    the job goes on.
    """

    name: str
    outcome: str
    about: str
    draw: Callable[[random.Random, Job], dict[str, Any]] = lambda rng, job: {}
    operations: tuple[str, ...] | None = None
    transports: tuple[str, ...] = TRANSPORTS
    refusals: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # options of the layer


@dataclass
class Job:
    """A drawn job."""

    seed: int
    mpi: str
    ranks: int
    transport: str
    cleanup: bool  # whether the launcher kills the ranks that are left
    options: dict[str, Any]
    operations: list[str]
    faults: list[dict[str, Any]] = field(default_factory=list)
    refusals: dict[str, list[str]] = field(default_factory=dict)
    levels: int = 1  # levels of the wire between nodes
    combine: str = "rows"  # what comes back from another node
    dtype: str = "float32"  # the rows' type
    damaged: tuple[str, ...] = ()  # the words of which one is damaged; empty: `words_of` the job
    started: list[int] | None = None  # for each rank, the seconds by which its monotonic clock is ahead
    # If given, the job has no operations, and compiles layers with these options.
    warm: list[dict[str, Any]] | None = None

    def __str__(self) -> str:
        faults = "; ".join(
            f"{f['kind']}{' ' + f['word'] if 'word' in f else ''} of rank {f['rank']}"
            f" in operation {f['operation']} ({self.operations[f['operation'] - 1]}) after {1e3 * f['after']:.1f} ms"
            for f in self.faults
        )
        wire = ", two levels" * (self.levels == 2) + ", sums" * (self.combine == "sums")
        wire += f", {self.dtype}" * (self.dtype != "float32")
        return (
            f"seed {self.seed}, {self.mpi}, {self.ranks} ranks, {self.transport}, {self.options}"
            f"{wire}{'' if self.cleanup else ', no clean-up by the launcher'}: {faults}"
        )


def _left(most: int) -> Callable[[random.Random, Job], dict[str, Any]]:
    """Leave less than `most` bytes free, before any rank begins the operation."""
    return lambda rng, job: {"left": rng.choice((0, rng.randrange(most))), "at_once": True, "meet": True}


DAMAGED = (  # words of a peer, as `injected.addresses` finds them
    *("ANNOUNCED", "TAIL", "CREDIT", "RETURN_TAIL", "ENDED", "POISON"),
    *("announced_status", "announced_rows", "announced_first", "announced_tokens", "announced_once", "announced_count"),
    *("record_expert", "record_rows", "record_packed", "record_bundle"),
    *("returned_rows", "returned_packed", "returned_status", "returned_kept"),
    "index",
)
# words of a peer that are used only with two levels; and half of a word as MPI puts it, and bells
STREAM = ("record_owner", "coded_TAIL", "coded_CREDIT", "coded_RETURN_TAIL", "coded_ANNOUNCED", "bell")
SUMMED = ("link", "mark")  # words of a peer that are used only with sums


def words_of(job: Job) -> tuple[str, ...]:
    """The words that may be damaged in a job. With sums an index entry is read again for its weight, which is data."""
    if job.combine == "sums":
        return tuple(word for word in DAMAGED + STREAM + SUMMED if word != "index")
    return DAMAGED + STREAM * (job.levels == 2)


_DISK = ("CheckpointError", "ResultsError", "PeerInputError")
_GLOBAL: dict[str, Any] = {"driver": True}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", ENDS, "kill -9 of a rank", transports=(*TRANSPORTS, TCP)),
        Kind("stop", ENDS, "a rank stopped for ever (SIGSTOP)", transports=(*TRANSPORTS, TCP)),
        Kind("pause", SURVIVES, "a rank stopped, and continued after up to 1.5 s",
             lambda rng, job: {"seconds": round(rng.uniform(0.05, 1.5), 3)}),
        Kind("slow", SURVIVES, "a rank 50 times slower for a while",
             lambda rng, job: {"seconds": round(rng.uniform(0.2, 1.5), 3)} | _GLOBAL),
        Kind("error", ENDS, "an exception in user code", lambda rng, job: {"at_once": True}),
        Kind("interrupt", ENDS, "Ctrl-C on one rank (SIGINT)"),
        Kind("ctrl_c", ENDS, "Ctrl-C on the launcher", lambda rng, job: _GLOBAL),
        Kind("time_limit", ENDS, "SIGTERM to all ranks, as at Slurm's time limit, and SIGKILL 3 s later",
             lambda rng, job: _GLOBAL),
        Kind("worker", ENDS, "a worker thread dies of an error", lambda rng, job: {"at_once": True},
             options={"schedule": "fused", "threads": 2}, operations=("forward", "backward")),
        Kind("progress", EITHER, "the progress thread ends", transports=("rma", "mixed")),
        Kind("put", SURVIVES, "puts that take up to 0.2 s",
             lambda rng, job: {"seconds": round(10 ** rng.uniform(-4, -0.7), 5), "at_once": True},
             operations=("forward", "backward"), transports=("rma", "mixed"), options={"schedule": "fused"}),
        Kind("cut", SURVIVES, "the network cut, and restored after up to 1.5 s",
             lambda rng, job: {"seconds": round(rng.uniform(0.05, 1.5), 3)} | _GLOBAL, transports=(TCP,)),
        Kind("unplugged", ENDS, "the network cut for ever", lambda rng, job: _GLOBAL, transports=(TCP,)),
        Kind("link_cut", SURVIVES, "the link between two nodes cut, and restored after up to 1.5 s",
             lambda rng, job: {"seconds": round(rng.uniform(0.05, 1.5), 3)} | _GLOBAL, transports=(NODES,)),
        Kind("link_lost", ENDS, "the link between two nodes cut for ever", lambda rng, job: _GLOBAL,
             transports=(NODES,)),
        Kind("word", EITHER, "a word that a peer wrote, out of its bounds for up to 20 ms",
             lambda rng, job: {"word": rng.choice(job.damaged or words_of(job)),
                               "value": rng.choice((-1, 1)) << rng.randrange(33, 62),
                               "seconds": round(rng.uniform(0, 0.02), 5), "at_once": rng.random() < 0.5},
             options={"schedule": "fused"}, operations=("forward", "backward", "load")),
        Kind("shm_full", SURVIVES, "a full /dev/shm, when a layer is made", _left(1 << 17), operations=("again",),
             refusals=("MemoryProblem",)),
        Kind("memory", EITHER, "memory denied to a rank (RLIMIT_AS)",
             lambda rng, job: {"left": rng.choice((0, rng.randrange(1 << 25))), "at_once": True}),
        Kind("disk_full", SURVIVES, "a full disk under results and checkpoints", _left(1 << 15),
             operations=("save", "result"), refusals=_DISK),
        Kind("disk_read_only", SURVIVES, "a read-only disk under results and checkpoints",
             lambda rng, job: {"at_once": True, "meet": True}, operations=("save", "result"), refusals=_DISK),
        Kind("cache_full", SURVIVES, "a full disk under the cache of compiled code", _left(1 << 15),
             operations=("forward", "load", "again")),
        Kind("clock", SURVIVES, "the clock, as Python reads it, moved by up to 30 days; ranks started days apart",
             lambda rng, job: {"seconds": round(rng.uniform(-30, 30) * DAY), "at_once": True}),
    )
}  # fmt: skip


def draw(
    seed: int,
    mpi: str,
    kinds: list[str],
    several: int = SEVERAL,
    levels: int = 1,
    combine: str = "rows",
    dtype: str = "float32",
    damaged: tuple[str, ...] = (),
) -> Job:
    """The job of a seed on an MPI library.

    Its faults are of one of `kinds`; a job that survives them has at most `several`. levels: of the wire between nodes;
    with 2 all calls are fused, and a job whose network has no part in the fault has nodes of two ranks.
    combine: "sums" needs levels=2; such a job does not train. dtype: of the layer. damaged: see `Job`.
    """
    kind = KINDS[random.Random(seed).choice([name for name in kinds if transports(name, mpi)])]
    rng = random.Random(f"{seed} {mpi} {kind.name}")  # a line of the table can be run again from these
    survives = kind.outcome == SURVIVES
    transport = rng.choice(transports(kind.name, mpi))
    if levels == 2 and transport in TRANSPORTS:
        transport = LEVELS
    # two nodes of two ranks, or a node of two ranks and one of one
    ranks = {"shm": rng.choice((2, 3)), "rma": 2, "mixed": 3, TCP: 2, NODES: 3, LEVELS: 3 + seed % 2}[transport]
    train = rng.random() < 0.7 and combine == "rows"
    options = {
        "schedule": rng.choice(("fused", "fused", "bulk")),
        "threads": rng.choice((1, 2)),
        "ranks_per_node": {"shm": None, "rma": 1, "mixed": 2, TCP: 1, NODES: None, LEVELS: 2}[transport],
        "timeout": PATIENT if survives else LIMIT,
        "train": train,
    } | kind.options
    if levels == 2:
        options["schedule"] = "fused"
    if not train and options["schedule"] == "fused":
        options["moves"] = rng.choice(("auto", "tokens", "experts"))
    names = ["forward", "forward", "load", "result", "user", "again"]
    names += ["backward", "backward", "save", "restore"] if train else []
    operations = [
        "forward",
        *(["save"] if train else []),
        *(rng.choice(names) for _ in range(20 * several // SEVERAL if survives else 12)),
    ]
    if kind.operations:  # draw more of the operations in which the fault can happen
        operations += [name for name in rng.choices(kind.operations, k=6 * several // SEVERAL) if name in names] + [
            "forward",
            "user",
        ]
    cleanup = rng.random() < 0.5 or kind.name == "stop"
    wire: dict[str, Any] = {"levels": levels, "combine": combine, "dtype": dtype, "damaged": damaged}
    job = Job(seed, mpi, ranks, transport, cleanup, options, operations, **wire)
    if kind.name == "clock":
        job.started = [rng.randrange(int(30 * DAY)) for _ in range(ranks)]
    count = several if survives else 1
    for number in sorted(rng.sample(places(kind, operations), k=min(count, len(places(kind, operations))))):
        fault = {"kind": kind.name, "operation": number, "rank": rng.randrange(ranks)}
        fault["after"] = round(10 ** rng.uniform(-5, -1.5), 6)
        job.faults.append(fault | kind.draw(rng, job))
        if kind.refusals:
            job.refusals[str(number)] = list(kind.refusals)
    return job


def warm_up(dtype: str) -> Job:
    """A job without faults, which compiles the code of all other jobs with rows of this type."""
    options = [
        {"schedule": schedule, "threads": threads, "ranks_per_node": nodes} | more
        for schedule in ("fused", "bulk")
        for threads in (1, 2)
        for nodes in (None, 1)
        for more in ({"train": True}, *({"moves": moves} for moves in ("tokens", "experts") if schedule == "fused"), {})
    ]
    return Job(0, "mpich", 2, "shm", True, {}, [], dtype=dtype, warm=options)


def transports(kind: str, mpi: str) -> list[str]:
    """The transports on which a fault can be made.

    On one machine Open MPI's windows always use shared memory. Intel MPI's launcher cannot start a second node here. A
    link between nodes needs the program ip (iproute2).
    """
    never = {"openmpi": (TCP, NODES), "impi": (NODES,)}.get(mpi, () if shutil.which("ip") else (NODES,))
    return [each for each in KINDS[kind].transports if each not in never]


def places(kind: Kind, operations: list[str]) -> list[int]:
    """Numbers of the operations in which a fault of this kind can happen.

    The job's last operation is left out: it shows the outcome.
    """
    found = [n for n, name in enumerate(operations, 1) if not kind.operations or name in kind.operations]
    return [n for n in found if n < len(operations) - 1] or [1]
