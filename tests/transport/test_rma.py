"""Transport rma on one machine: `ranks_per_node` divides its ranks into nodes, and MPI puts between these.

Bits must equal those of one process, of one node and of the bulk schedule, whatever the nodes. Failures across nodes
must end as they do within a node.
"""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import SKEWS, Exchange, MoE, alone, one_exchange, rings_of, routing, run_job, same, tokens
from hypothesis import given, settings
from mpi import find_mpiexec, ranks_each
from random_layers import plans, run

import aristos
from aristos import reference
from aristos.errors import ClosedError, InputError, MismatchError, PeerInputError

pytestmark = pytest.mark.parallel  # for the tests that start separate jobs
CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=70)
W = reference.weights(CFG)
SHAPE: dict[str, Any] = {"hidden": 40, "experts": 5, "top_k": 2, "max_tokens": 70}
needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def make(comm: Any, cfg: aristos.MoEConfig = CFG, w: dict[str, Any] = W, **options: Any) -> MoE:
    """A layer with its weights loaded. By default each rank is a node."""
    moe = MoE(cfg, comm, **{"ranks_per_node": 1, "threads": 1, **options})
    moe.load(**w)
    return moe


def calls_of(rank: int, calls: int) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """[(x, routing)] of some calls, with every skew, and with any number of tokens from none to the most."""
    counts = itertools.cycle(np.roll((17, 0, 70, 33, 1), rank))
    skews = itertools.cycle(SKEWS)
    made = [(tokens(CFG, int(next(counts)), seed=10 * n + rank), next(skews)) for n in range(calls)]
    return [(x, routing(CFG, len(x), skew, seed=n + rank)) for n, (x, skew) in enumerate(made)]


def placements(world: int) -> dict[str, list[int] | None]:
    return {
        "contiguous": None,
        "all on the last": [world - 1] * CFG.experts,
        "one elsewhere": [0] * (CFG.experts - 1) + [world - 1],
    }


@ranks_each(2, 3, 4, 5, timeout=240)  # the first test may have to compile kernels
def test_equal_bits_whatever_the_nodes(comm, world):
    """Nodes have one rank, two (the last may have one) or all. Threads, ring sizes and schedules vary too."""
    calls = calls_of(comm.rank, 7 if world < 5 else 5)
    with alone(CFG, W, threads=1) as one:
        wanted = [one(x, **call) for x, call in calls]
    ways = placements(world)
    tried: list[tuple[int | None, int, int | None, str, str]] = [
        (1, 1, None, "contiguous", "fused"),
        (1, 2, None, "one elsewhere", "fused"),
        (2, 1, None, "all on the last", "fused"),
        (2, 2, 4, "contiguous", "fused"),
        (1, 2, 1, "contiguous", "fused"),
        (None, 1, None, "one elsewhere", "fused"),
        (1, 2, None, "contiguous", "bulk"),
    ]
    if world < 4:
        tried += [
            (1, 1, 1, "one elsewhere", "fused"),
            (1, 2, 2, "contiguous", "fused"),
            (2, 1, 3, "contiguous", "fused"),
        ]
    for ranks_per_node, threads, ring, name, schedule in tried:
        options = {"ranks_per_node": ranks_per_node, "threads": threads, "schedule": schedule}
        with rings_of(ring), make(comm, placement=ways[name], **options) as moe:
            for n, (x, call) in enumerate(calls):
                assert same(moe(x, **call), wanted[n]), (ranks_per_node, threads, ring, name, schedule, n)


@pytest.mark.ranks(4)
@settings(max_examples=8)
@given(plan=plans())
def test_any_layer_over_nodes(comm, plan):
    run(comm, plan, ranks_per_node=1 + plan.calls[0].seed % 2)


@pytest.mark.ranks(3)
def test_a_row_crosses_nodes_once(comm):
    """Between nodes a token is sent once to each rank that holds its experts; within a node once for each expert."""
    cfg = replace(CFG, experts=9, top_k=4)
    w = reference.weights(cfg)
    for ranks_per_node, ring in ((1, None), (2, None), (1, 5)):
        with rings_of(ring), make(comm, cfg, w, moves="tokens", ranks_per_node=ranks_per_node) as moe:
            for skew in SKEWS[1:]:
                x = tokens(cfg, 60, seed=comm.rank)
                call = routing(cfg, 60, skew, seed=comm.rank)
                _, stats = moe(x, return_stats=True, **call)
                home = np.where(call["ids"] >= 0, moe.placement.ranks[call["ids"]], -1)
                for peer in range(3):
                    rows, unique = int((home == peer).sum()), int((home == peer).any(axis=1).sum())
                    remote = peer // ranks_per_node != comm.rank // ranks_per_node
                    moved = 0 if peer == comm.rank else unique if remote else rows
                    assert stats.logical_bytes_to_peer[peer] == 4 * cfg.hidden * rows
                    assert stats.moved_bytes_to_peer[peer] == 4 * cfg.hidden * moved, (skew, peer)
                    assert skew != "uniform" or 0 < unique < rows


@pytest.mark.core
@pytest.mark.ranks(3)
def test_exchanges(comm):
    """Exchanges alternate with calls of a layer on the same engine."""
    for ranks_per_node, ring, placement in ((1, None, None), (2, 3, [2] * 4 + [0]), (1, 2, [0] * 5)):
        options: dict[str, Any] = {"ranks_per_node": ranks_per_node, "placement": placement}
        with rings_of(ring), Exchange(comm, **SHAPE, **options) as exchange, make(comm, **options) as moe:
            x = tokens(CFG, 20, seed=comm.rank)
            y = moe(x)
            for n, (mine, call) in enumerate(calls_of(comm.rank, 8)):
                call = call or routing(CFG, len(mine), "uniform", seed=n)
                one_exchange(comm, exchange, mine, call, CFG.experts)
            assert same(moe(x), y)


@pytest.mark.core
@pytest.mark.ranks(3)
def test_input_that_one_rank_refuses(comm):
    """In a layer and in both phases of an exchange all ranks raise, and valid calls still work."""
    x = tokens(CFG, 20, seed=comm.rank)
    call = routing(CFG, 20, "some", seed=comm.rank)
    for ranks_per_node in (1, 2):
        with (
            make(comm, ranks_per_node=ranks_per_node) as moe,
            Exchange(comm, **SHAPE, ranks_per_node=ranks_per_node) as exchange,
        ):
            y = moe(x)
            for n in range(6):
                bad = comm.rank == n % 3
                refusal = pytest.raises(
                    InputError if bad else PeerInputError, match="" if bad else f"rank {n % 3} refused"
                )
                with refusal:
                    moe(x[:, :3] if bad else x)
                with refusal:
                    exchange.dispatch(x, call["ids"] + 9 * bad)
                rows, handle = exchange.dispatch(x, call["ids"])
                with refusal:
                    exchange.combine(rows[:, :3] if bad else rows, handle, call["weights"])
                with pytest.raises(MismatchError):
                    exchange.dispatch(x, call["ids"]) if bad else moe(x)
                assert same(moe(x), y)
                one_exchange(comm, exchange, x, call, CFG.experts)


@pytest.mark.ranks(2)
def test_objects_on_a_communicator_have_the_same_nodes(comm):
    """Objects of one communicator share windows, so they have the same nodes. A duplicate may have others."""
    x = tokens(CFG, 20, seed=comm.rank)
    with make(comm) as moe:
        y = moe(x)
        with pytest.raises(InputError, match="ranks_per_node must be 1, as for the other objects"):
            aristos.MoE(CFG, comm, threads=1)
        with pytest.raises(InputError, match=r"got 2: pass another communicator"):
            aristos.Exchange(comm, **SHAPE, ranks_per_node=2)
        with make(comm.Dup(), ranks_per_node=None) as one_node:
            assert same(one_node(x), y)
        assert same(moe(x), y)


@pytest.mark.core
@pytest.mark.ranks(3)
def test_stats_and_started_calls(comm):
    x = tokens(CFG, 60, seed=comm.rank)
    for ranks_per_node, transports in ((1, {"rma"}), (2, {"shm", "rma"}), (3, {"shm"})):
        with make(comm, moves="tokens", ranks_per_node=ranks_per_node, threads=2) as moe:
            y, stats = moe(x, return_stats=True)
            assert same(moe.start(x).wait(), y)
            everyone = np.array(comm.allgather(stats.rows_to_peer))
            assert stats.rows_from_peer == tuple(everyone[:, comm.rank])
            summary = moe.summary()
            assert {m.transport for m in summary.messages} == transports
            assert summary.calls == 2


@pytest.mark.core
@pytest.mark.ranks(3)
def test_closing_in_any_order(comm):
    """Objects close in another order than they were made, and one rank is late. The next engine is a new one."""
    x = tokens(CFG, 20, seed=comm.rank)
    call = routing(CFG, 20, "some", seed=comm.rank)
    with alone(CFG, W, threads=1) as one:
        y = one(x)
    for late, order in enumerate(((2, 0, 1), (0, 2, 1), (1, 0, 2))):
        objects: list[Any] = [
            make(comm),
            make(comm, replace(CFG, max_tokens=200)),
            Exchange(comm, **SHAPE, ranks_per_node=1),
        ]
        assert same(objects[0](x), y)
        one_exchange(comm, objects[2], x, call, CFG.experts)
        if late == 1:
            objects[2].dispatch(x, call["ids"])  # this call is never combined: close drops it
        for i in order:
            if comm.rank == late % 3:
                time.sleep(0.05)
            objects[i].close()
            objects[i].close()
        with pytest.raises(ClosedError):
            objects[0](x)


@pytest.mark.ranks(2)
def test_the_watchdog_watches_the_windows_in_use(comm):
    """A flush to a dead rank must not block this rank for ever, also after the engine has grown."""
    with make(comm) as moe, make(comm, replace(CFG, max_tokens=300)):
        runtime = moe.runtime
        watched = runtime.group._watchdog._calls
        assert watched is not None
        assert watched[0] == runtime._memory.calling
        assert watched[0]()[0] == -1


# ---- failures across nodes: each test is a separate MPI job, because it ends badly on purpose ------------------------

LAYER = """
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=4, top_k=2, max_tokens=64)
x = tokens(cfg, 50, seed=rank)
def made(**options):
    moe = aristos.MoE(cfg, comm, ranks_per_node=1, **options)
    moe.load(**reference.weights(cfg))
    moe(x)
    return moe
def leave(*words):
    say(*words)
    comm.Barrier()  # a launcher kills the other ranks when one is gone
    sys.exit(0)
def signal_me(what, after):
    threading.Thread(target=lambda: (time.sleep(after), os.kill(os.getpid(), what)), daemon=True).start()
"""


@pytest.mark.slow
@needs_mpiexec
def test_a_rank_that_never_calls(tmp_path):
    """The wait is bounded, and its error names the rank. The late rank raises when it makes its call."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
moe = made(timeout=0.3)
start = time.monotonic()
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    try:
        if rank == 1:
            time.sleep(8)
        moe(x)
    except (errors.WaitTimeout, errors.PoisonedError) as e:
        say(f"{time.monotonic() - start:.2f} s")
        say(e)
leave("end")
""",
    )
    assert job.code is not None
    assert 3.0 <= float(job.lines(0)[0].removesuffix(" s")) < 8.0
    for word in (
        "rank 0 waited 3",
        "for rank 1 in epoch 2",
        "its announcement of epoch 2",
        "rank 1 was last seen in epoch 1",
    ):
        assert word in job.lines(0)[1]
    assert "rank 0 gave up in epoch 2 because a wait took longer than its limit" in job.lines(1)[1]


@pytest.mark.slow
@needs_mpiexec
def test_a_rank_that_is_late_between_the_phases(tmp_path):
    """A user's experts may take longer than the timeout. A rank in its second phase warns and waits for a late one."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
exchange = aristos.Exchange(comm, ranks_per_node=1, hidden=40, experts=4, top_k=2, max_tokens=64, timeout=0.5)
call = routing(cfg, 50, "some", seed=rank)
rows, handle = exchange.dispatch(x, call["ids"])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if rank == 1:
        time.sleep(2)
    exchange.combine(rows, handle, call["weights"])
say(len(caught), *(w.message for w in caught))
exchange.close()
""",
    )
    assert job.code == 0, job.out
    assert re.match(r"1 rank 0 has waited [\d.]+ s for rank 1, which has not combined in epoch 1 yet", job.lines(0)[0])
    assert job.lines(1) == ["0"]


@pytest.mark.slow
@needs_mpiexec
def test_poison_travels(tmp_path):
    """Rank 0 is interrupted while it waits. All other ranks raise before the timeout, the late one in its call."""
    job = run_job(
        tmp_path,
        4,
        LAYER
        + """
moe = made(threads=1 + rank % 2)
if rank == 3:
    time.sleep(3)
if rank == 0:
    signal_me(signal.SIGINT, 1.0)
start = time.monotonic()
try:
    moe(x)
except (errors.PoisonedError, KeyboardInterrupt) as e:
    say(f"{time.monotonic() - start:.2f} s")
    say(type(e).__name__, e)
leave("end")
""",
    )
    assert job.code is not None
    assert job.lines(0)[1].startswith("KeyboardInterrupt")
    for rank in (1, 2, 3):
        assert float(job.lines(rank)[0].removesuffix(" s")) < 30  # the timeout is 120 s
        assert re.search("PoisonedError .*rank 0 gave up in epoch 2 because it was interrupted", job.lines(rank)[1])


@pytest.mark.slow
@needs_mpiexec
def test_a_rank_stopped_within_a_call(tmp_path):
    """A flush to the stopped rank may never return: the watchdog ends the job, or the wait runs out. Both name it."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
moe = made(timeout=1.0)
if rank == 1:
    signal_me(signal.SIGSTOP, 0.5)
    moe(x)  # waits for rank 0 when it is stopped
time.sleep(1.0)
moe(x)
""",
        timeout=30,
    )
    assert job.code not in (None, 0)
    assert job.seconds < 25
    assert re.search("rank 0 waited .* for rank 1 ", job.out[0])


@pytest.mark.slow
@needs_mpiexec
def test_an_error_of_mpi_ends_the_job(tmp_path):
    """If the job went on, peers would trust words whose data was never delivered."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
moe = made()
from aristos.primitives import wire
memory = moe._member.runtime._memory
if rank == 0:
    while not wire.try_lock(memory.wire):
        pass
    wire.put(memory.wire, 7, 0, x.ctypes.data, 8)  # there is no rank 7
    say("went on")
comm.Barrier()
""",
        timeout=30,
    )
    assert job.code not in (None, 0)
    assert not any("went on" in line for line in job.lines(0))
    assert "rank" in job.out[0]


ENDS = {
    "closes nothing": "say('fine')",
    "ends MPI itself": "MPI.Finalize(); time.sleep(0.1); moe.close(); say('fine')",
    "forks": """
if rank == 0:
    child = os.fork()
    if child == 0:
        moe.close()
        os._exit(7)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
moe(x)
say("fine")
moe.close()
""",
    "forks within a with": """
with moe:
    if rank == 0:
        child = os.fork()
        if child == 0:
            try:
                with moe:
                    raise ValueError
            except ValueError:
                os._exit(7)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    moe(x)
    say("fine")
""",
}


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.parametrize("nodes", [1, 2], ids=["one node", "two nodes"])
@pytest.mark.parametrize("end", ENDS)
def test_programs_that_end_in_their_own_way(tmp_path, nodes, end):
    """No thread calls MPI after it is finalized. A child of a fork does not disturb its parent."""
    made = f"from mpi4py import MPI\nmoe = made(ranks_per_node={2 // nodes})\nmoe(x)\n"
    job = run_job(tmp_path, 2, LAYER.replace("ranks_per_node=1, ", "") + made + ENDS[end], timeout=60)
    assert job.code == 0, job.out
    assert job.lines(0) == [*["7"] * end.startswith("forks"), "fine"]
    assert job.lines(1) == ["fine"]


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.parametrize("nodes", [1, 2], ids=["one node", "two nodes"])
def test_a_rank_that_exits_without_closing(tmp_path, nodes):
    """The other rank, in a call that the exited rank never makes, raises at once, although nothing was closed."""
    job = run_job(
        tmp_path,
        2,
        LAYER.replace("ranks_per_node=1, ", "")
        + f"""
moe = made(ranks_per_node={2 // nodes})
if rank == 1:
    raise RuntimeError("in user code")
start = time.monotonic()
try:
    moe(x)
except errors.PoisonedError as e:
    say(time.monotonic() - start)
    say(e)
""",
        timeout=60,
    )
    assert job.code not in (None, 0)
    assert float(job.lines(0)[0]) < 30  # the timeout is 120 s, and 1200 s for a rank in user code
    assert "rank 1 gave up in epoch" in job.lines(0)[1]
    assert "RuntimeError: in user code" in job.out[1]


@pytest.mark.slow
@needs_mpiexec
def test_ctrl_c_while_other_ranks_are_late(tmp_path):
    """A collective constructor can be interrupted. It warns after the timeout, and ends when the last rank arrives."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if rank == 1:
        time.sleep(2)
    moe = made(timeout=0.5)
    say(*(w.message for w in caught))
if rank == 0:
    signal_me(signal.SIGINT, 0.5)
else:
    time.sleep(3)
start = time.monotonic()
try:
    moe.summary()
except KeyboardInterrupt:
    say(time.monotonic() - start)
    os._exit(3)
""",
        timeout=60,
    )
    assert job.code not in (None, 0)
    assert "rank 0 has waited 0.5" in job.lines(0)[0]
    late = "a rank is still in user code, or compiles; rank 0 gives up after 5 s (absent_timeout)"
    assert f"for the other ranks to make a layer: {late}" in job.out[0]
    assert float(job.lines(0)[1]) < 2.5
