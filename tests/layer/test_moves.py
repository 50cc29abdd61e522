"""Experts computed in place: what moves within a node never changes outputs, also while ranks load weights."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cases import Exchange, MoE, check, routing, run_job, same, tokens
from mpi import find_mpiexec

import aristos
from aristos import reference
from aristos.engine import words
from aristos.errors import EnvironmentProblem, InputError, OpenCallError, PeerInputError
from aristos.kernels.by_isa import module
from aristos.layer.options import backend_class, check_moves
from aristos.primitives import isa
from aristos.transport import memfd

CFG = aristos.MoEConfig(hidden=40, ffn=72, experts=6, top_k=2, gated=True, bias=True, max_tokens=90)
KINDS = {
    "float32": CFG,
    "bfloat16": replace(CFG, dtype="bfloat16", activation="silu"),
    "high": replace(CFG, precision="high"),
    "shared": replace(CFG, shared_ffn=24, shared_sigmoid=True),
    "capacity": replace(CFG, router=aristos.Router(capacity_factor=0.7)),
}


def alone(w, x, call=None):
    """The output of one process that has all experts."""
    with MoE(CFG) as moe:
        moe.load(**w)
        return moe(x, **(call or {}))


@pytest.mark.ranks(2)
def test_outputs_do_not_depend_on_what_moves(comm):
    for name, cfg in KINDS.items():
        w = reference.weights(cfg)
        x = tokens(cfg, 80 - 77 * comm.rank, seed=comm.rank)
        x = x.astype(ml_dtypes.bfloat16) if cfg.dtype == "bfloat16" else x
        made, stats = {}, {}
        for moves in ("tokens", "experts", "auto"):
            with MoE(cfg, comm, moves=moves) as moe:
                assert moe.moves == ("tokens" if moves == "auto" and memfd.lacking() else moves)
                moe.load(**w)
                made[moves], stats[moves] = moe(x, return_stats=True)
        assert same(made["tokens"], made["experts"]), name
        assert same(made["tokens"], made["auto"]), name
        before, here = stats["tokens"], stats["experts"]
        for same_field in ("rows_to_peer", "logical_bytes_to_peer", "expert_rows", "dropped_rows", "tokens"):
            assert getattr(before, same_field) == getattr(here, same_field), (name, same_field)
        peer = 1 - comm.rank
        assert here.kept_rows_to_peer[peer] == here.rows_to_peer[peer] > 0
        assert sum(here.moved_bytes_to_peer) == here.rows_from_peer[peer] == sum(before.kept_rows_to_peer) == 0


@pytest.mark.ranks(2)
def test_shared_weights_take_the_bytes_of_private_ones(comm):
    """The shared memory is at most a huge page larger, as the docstring of MoE.memory says."""
    nbytes = []
    for moves in ("tokens", "experts"):
        with MoE([CFG, CFG], comm, moves=moves) as moe:
            for layer in range(2):
                moe.load(layer, **reference.weights(CFG))
            nbytes.append(moe.packed_weights(1).nbytes)
            if moves == "experts":
                held = sum(array.nbytes for n in range(2) for array in moe.packed_weights(n).packed.values())
                assert 0 < moe._backend._home._memory._maps[0].nbytes - held <= memfd.HUGE + memfd.HEAD
    assert nbytes[0] == nbytes[1]


@pytest.mark.ranks(4)
def test_copies_and_other_nodes(comm):
    """Experts of local peers are computed in place. Tokens are sent to experts of other nodes."""
    placement = [[0, 2], 1, [2, 3], 3, [0, 1, 2, 3], 2]
    w, x = reference.weights(CFG), tokens(CFG, 20 * comm.rank, seed=comm.rank)
    call = routing(CFG, len(x), "some", seed=comm.rank)
    with MoE(CFG, comm, placement=placement, ranks_per_node=2, moves="experts", threads=1) as moe:
        moe.load(**w)
        for _ in range(3):
            y, stats = moe(x, **call, return_stats=True)
        check(CFG, w, x, call, y)
        assert same(y, alone(w, x, call))
        for peer, (kept, rows) in enumerate(zip(stats.kept_rows_to_peer, stats.rows_to_peer)):
            assert kept == (rows if peer == comm.rank ^ 1 else 0)


@pytest.mark.ranks(2)
def test_events_name_experts_by_id(comm):
    """Events name the rank's own experts, the other rank's experts and the shared expert of one of the two layers."""
    cfg = KINDS["shared"]
    with MoE([CFG, cfg], comm, placement=[1, 0, 1, 0, 0, 1], moves="experts") as moe:
        moe.timeline(True)
        for layer, each in enumerate((CFG, cfg)):
            moe.load(layer, **reference.weights(each))
            x, call = tokens(each, 60, seed=1), routing(each, 60, "some", seed=layer)
            moe(x, layer=layer, **call)
            rows = np.zeros(7, int)
            for _, kind, _, _, expert, n in moe.events():
                if kind == "expert":
                    rows[expert] += n
            wanted = np.bincount(call["ids"][call["ids"] >= 0], minlength=7)
            wanted[6] = 60 * layer
            assert (rows >= wanted).all()
            assert ((rows > 0) == (wanted > 0)).all()


@pytest.mark.ranks(2)
def test_few_rows_travel(comm, monkeypatch):
    with MoE(CFG, comm, moves="auto") as moe:
        moe._backend._jobs.stay_rows, moe._backend._jobs.reading_rows = [10], 10
        moe.load(**reference.weights(CFG))
        ids = np.full((30, 2), -1)
        ids[:, 0] = [3 * (1 - comm.rank)] * 21 + [3 * (1 - comm.rank) + 1] * 9
        _, stats = moe(tokens(CFG, 30, seed=1), ids, np.ones((30, 2), np.float32), return_stats=True)
        assert (stats.kept_rows_to_peer[1 - comm.rank], stats.rows_from_peer[1 - comm.rank]) == (21, 9)
        assert stats.expert_rows[3 * (1 - comm.rank)] == 21
        assert moe.summary().expert_rows.sum() == 60


@pytest.mark.ranks(2)
def test_a_rank_with_all_tokens_is_helped(comm):
    """A rank that has all tokens sends at least 80 % of the rows for the other rank's experts.

    If both ranks have about equally many tokens, each computes all its rows itself. A rank knows from the call before
    how many tokens the other has.
    """
    w, x = reference.weights(CFG), tokens(CFG, 80, seed=comm.rank)
    with MoE(CFG, comm, moves="auto") as moe:
        moe._backend._jobs.stay_rows, moe._backend._jobs.reading_rows = [1], 1
        moe.load(**w)
        for mine, least, most in ((x[: 80 * (1 - comm.rank)], 0, 0.2), (x, 1, 1), (x[: 80 - 10 * comm.rank], 1, 1)):
            for _ in range(2):
                y, stats = moe(mine, return_stats=True)
            foreign = stats.rows_to_peer[1 - comm.rank]
            assert least * foreign <= stats.kept_rows_to_peer[1 - comm.rank] <= most * foreign
            assert same(y, alone(w, mine))


@pytest.mark.ranks(2)
def test_weights_change_while_the_other_rank_is_late(comm):
    """A rank that loads waits for peers that still read its weights.

    A rank that reads waits until the weights' holder has announced the call.

    Every second load is made while a call of another object is open.
    """
    x = tokens(CFG, 60, seed=comm.rank)
    late = np.random.default_rng(comm.rank)
    with MoE(CFG, comm, moves="experts", layers=2) as moe, MoE(CFG, comm, moves="experts") as other:
        other.load(**reference.weights(CFG))
        y_other = other(x)
        for call in range(30):
            w = reference.weights(CFG, seed=call // 2)
            pending = other.start(x) if call % 4 == 0 else None
            if call % 2 == 0:
                moe.load(call // 2 % 2, **w)
            if pending is not None:
                assert same(pending.wait(), y_other), call
            time.sleep(late.choice([0, 0, 0.002]))
            y = moe(x, layer=call // 2 % 2)
            assert same(y, alone(w, x)), call


@pytest.mark.ranks(2)
def test_calls_of_every_kind_end_for_a_load(comm):
    """A load waits until the local peers have ended their last call, of whatever object and kind it was."""
    w, x = reference.weights(CFG), tokens(CFG, 30, seed=comm.rank)
    ids = np.stack([np.arange(30) % 6, (np.arange(30) + 1) % 6], axis=1)
    with (
        MoE(CFG, comm, moves="experts") as moe,
        MoE(CFG, comm, schedule="bulk") as bulk,
        MoE(CFG, comm, threads=1, train=True) as trained,
        Exchange(comm, hidden=CFG.hidden, experts=6, max_tokens=90) as exchange,
    ):
        assert [each.moves for each in (moe, bulk, trained)] == ["experts", "tokens", "tokens"]
        for each in (moe, bulk, trained):
            each.load(**w)

        def exchanged():
            rows, handle = exchange.dispatch(x, ids)
            exchange.combine(rows, handle, np.ones(ids.shape, np.float32))

        def refused():
            with pytest.raises(InputError if comm.rank else PeerInputError):
                moe(x[:, : CFG.hidden - comm.rank])

        for name, call in {
            "fused": lambda: moe(x),
            "started": lambda: moe.start(x).wait(),
            "bulk": lambda: bulk(x),
            "forward and backward": lambda: trained.backward(x, trained.forward(x)[1]),
            "exchange": exchanged,
            "refused": refused,
        }.items():
            call()
            epoch = moe.runtime.epoch
            moe.load(**w)  # a peer that does not end its call would make this time out
            assert moe.runtime._read_word(moe.runtime._blank_job(), 1 - comm.rank, words.ENDED) >= epoch, name
        assert same(moe(x), bulk(x))


@pytest.mark.ranks(2)
def test_loads_while_a_call_is_open(comm):
    """Whatever `moves` is, a load is refused while a call of the same object is open.

    While a call of another object is open, a load works as between calls.
    """
    before, after = (reference.weights(CFG, seed=seed) for seed in range(2))
    x = tokens(CFG, 30, seed=comm.rank)
    ids = np.stack([np.arange(30) % 6, (np.arange(30) + 1) % 6], axis=1)
    with (
        MoE(CFG, comm, schedule="bulk") as other,
        Exchange(comm, hidden=CFG.hidden, experts=6, max_tokens=90) as exchange,
    ):
        other.load(**before)
        for moves in ("tokens", "auto", "experts"):
            with MoE(CFG, comm, moves=moves) as moe:
                moe.load(**before)
                pending = moe.start(x)
                with pytest.raises(OpenCallError, match=r"a call that start\(\) began is open: call its wait\(\)"):
                    moe.load(**after)
                y = pending.wait()
                pending = other.start(x)
                moe.load(**after)
                assert same(pending.wait(), y), moves
                assert same(moe(x), alone(after, x)), moves
                rows, handle = exchange.dispatch(x, ids)  # no rank ends this call before this rank combines
                moe.load(**before)
                exchange.combine(rows, handle, np.ones(ids.shape, np.float32))
                assert same(moe(x), y), moves
                runtime = moe.runtime
                runtime.enter(moe._member.number)  # as in another thread of the program
                with pytest.raises(OpenCallError, match="has not returned: call unload before or after that call"):
                    moe.unload(0)
                runtime.leave()


@pytest.mark.ranks(2)
def test_a_load_waits_for_the_call_before_the_open_one(comm, monkeypatch):
    """The peer's word ENDED is read until the peer has ended the earlier call. The open call is not awaited."""
    w, x = reference.weights(CFG), tokens(CFG, 30, seed=comm.rank)
    ids = np.zeros((30, 2), int) - 1
    with (
        MoE(CFG, comm, moves="experts") as moe,
        Exchange(comm, hidden=CFG.hidden, experts=6, max_tokens=90) as exchange,
    ):
        moe.load(**w)
        moe(x)
        rows, handle = exchange.dispatch(x, ids)
        last, reads = moe.runtime.epoch - 1, []

        def read_word(job, peer, word):
            if word != words.ENDED:
                return 0  # no poison, no progress
            reads.append(last - (len(reads) < 3))
            return reads[-1]

        with monkeypatch.context() as patch:
            patch.setattr(moe.runtime, "_read_word", read_word)
            moe.load_router(0, router=w["router"])
        assert reads == [last - 1] * 3 + [last]
        exchange.combine(rows, handle, np.ones(ids.shape, np.float32))


@pytest.mark.ranks(2)
def test_auto_compares_copies_with_weights(comm, monkeypatch):
    """Rows stay if there are at least break-even of them, and their copies would have at least the weights' bytes."""
    cfg = aristos.MoEConfig(hidden=64, ffn=64, experts=2, top_k=1, max_tokens=100)
    weights = 2 * 64 * 64 * 4
    for rows, least in ((10, weights // (4 * 64 * 4)), (50, 50)):
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(module("break_even", isa.chosen()), "rows", lambda element, entries, rows=rows: rows)
            made.append(MoE(cfg, comm))
        with made[0] as moe:
            moe.load(**reference.weights(cfg))
            for count in (least - 1, least):
                ids = np.concatenate([np.zeros(count, int), np.ones(count, int)])[:, None]
                for _ in range(2):  # a rank expects the other to have as many tokens as in the call before
                    _, stats = moe(tokens(cfg, 2 * count, seed=1), ids, np.ones(ids.shape, "f4"), return_stats=True)
                stays = count * (count == least) * (moe._backend._home is not None)
                assert stats.kept_rows_to_peer[1 - comm.rank] == stays


def test_break_even_is_a_number_of_rows_that_an_expert_may_have():
    """Reading an expert's weights takes longer than computing one row, and less time than computing a thousand."""
    for dtype in ("float32", "bfloat16"):
        element = module("elements", isa.chosen()).element_type(dtype)
        assert 2 <= module("break_even", isa.chosen()).rows(element, module("entries", isa.chosen())) <= 1000


LOAD_LATE = """
from aristos.engine import words
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=6, top_k=2, max_tokens=90)
w, x = reference.weights(cfg), tokens(cfg, 9, seed=rank)
moe = aristos.MoE(cfg, comm, moves="experts", timeout=0.5)
moe.load(**w)
moe(x)
comm.Barrier()
if rank == 0:
    runtime = moe._member.runtime
    read = runtime._read_word
    runtime._read_word = lambda job, peer, word: 0 if word == words.ENDED else read(job, peer, word)
    try:
        moe.load(**w)
    except errors.WaitTimeout as late:
        say(late)
try:
    moe(x)
except errors.AristosError as error:
    say(type(error).__name__, error)
comm.Barrier()  # a launcher kills the other rank when one is gone
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_a_load_gives_up_a_peer_that_reads_too_long_and_all_ranks_fail(tmp_path):
    """Rank 0 never sees that rank 1 has ended the last call."""
    job = run_job(tmp_path, 2, LOAD_LATE)
    assert job.code == 0, job.out
    gave_up, refused = job.lines(0)
    assert gave_up.startswith(
        "rank 0 cannot load weights: rank 1 has been in call 1 without progress for 0.5 s (timeout), and"
    )
    assert "unusable" in refused
    assert job.lines(1)[0].startswith(
        "PoisonedError rank 1: rank 0 gave up in epoch 1 because a wait took longer than its limit"
    )


@pytest.mark.ranks(2)
def test_without_shared_memory_tokens_travel(comm, monkeypatch):
    def refused(*arguments):
        raise OSError(38, "Function not implemented")

    w, x = reference.weights(CFG), tokens(CFG, 90, seed=comm.rank)
    with monkeypatch.context() as patch:
        if comm.rank == 1:
            patch.setattr(memfd.os, "memfd_create", refused)
        with pytest.raises(EnvironmentProblem, match=r"share: rank 1: no anonymous shared memory: .*not impl"):
            MoE(CFG, comm, moves="experts")
        with MoE(CFG, comm) as moe:
            assert moe.moves == "tokens"
            moe.load(**w)
            y, stats = moe(x, return_stats=True)
    assert sum(stats.kept_rows_to_peer) == 0
    assert same(y, alone(w, x))
    with monkeypatch.context() as patch:
        patch.setattr(memfd.SharedMap, "collapse", lambda self, start, nbytes: comm.rank == 1)
        with MoE(CFG, comm) as moe:
            assert moe.moves == "tokens", "without huge pages calls of few rows would read weights more slowly"
        with MoE(CFG, comm, moves="experts") as moe:
            assert moe.moves == "experts"
            moe.load(**w)
            assert same(moe(x), y)
    with MoE(CFG, comm, moves="experts", ranks_per_node=1) as moe:
        assert moe.moves == "tokens", "no rank has a local peer"
        moe.load(**w)
        assert same(moe(x), y)


@pytest.mark.ranks(2)
def test_only_the_rank_that_holds_experts_touches_their_pages_first(comm):
    """The pages then lie in that rank's NUMA domain. Peers that map this memory touch only its first page."""
    most = 4 * memfd.HUGE
    with MoE(CFG, comm, moves="tokens") as moe:
        memory = memfd.NodeMemory(moe.runtime.group, most - memfd.HEAD, "alike", small_pages=True)
        comm.Barrier()
        assert {rank: touched(at - memfd.HEAD, most) for rank, at in memory.base.items()} == {0: {0}, 1: {0}}
        comm.Barrier()
        if comm.rank == 1:
            memory.prepare(2 * memfd.HUGE, 4096)
        comm.Barrier()
        assert {rank: touched(at - memfd.HEAD, most) for rank, at in memory.base.items()} == {0: {0}, 1: {0, 2}}
        comm.Barrier()
        memory.close()


def touched(start: int, nbytes: int) -> set[int]:
    """The numbers of the huge pages of which at least one page is in memory."""
    found = np.zeros(nbytes // mmap.PAGESIZE, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    got = libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), found.ctypes.data_as(ctypes.c_void_p))
    assert got == 0, os.strerror(ctypes.get_errno())
    return {int(page) * mmap.PAGESIZE // memfd.HUGE for page in np.flatnonzero(found & 1)}


@pytest.mark.ranks(2)
def test_more_weights_than_addresses_are_no_error(comm):
    with MoE(CFG, comm, moves="tokens") as moe:
        memory = memfd.NodeMemory(moe.runtime.group, 1 << (62 + comm.rank), "alike", small_pages=True)
        assert memory.problem.startswith("rank 0: no anonymous shared memory:")
        assert not memory.own.size


@pytest.mark.ranks(2)
def test_a_peer_of_another_process_namespace_is_not_read(comm, monkeypatch):
    class Elsewhere:
        """The module os of a process that has id 1 in its namespace."""

        def __getattr__(self, name):
            return (lambda: 1) if name == "getpid" else getattr(os, name)

    monkeypatch.setattr(memfd, "os", Elsewhere())
    with pytest.raises(EnvironmentProblem, match=r"rank \d: (/proc/1 is not rank|the shared memory of rank)"):
        MoE(CFG, comm, moves="experts")


def test_what_cannot_move_is_refused():
    with pytest.raises(InputError, match="moves must be one of auto, tokens, experts, got 'rows'"):
        MoE(CFG, moves="rows")
    with pytest.raises(InputError, match="schedule='fused', got schedule='bulk'"):
        MoE(CFG, moves="experts", schedule="bulk")
    with pytest.raises(InputError, match="schedule='fused', got backend='cuda'"):
        check_moves("experts", backend_class("cuda"), "fused")
    with MoE(CFG, moves="experts") as moe:  # a single rank has all experts
        assert moe.moves == "tokens"
        moe.load(**reference.weights(CFG))
        check(CFG, reference.weights(CFG), x := tokens(CFG, 9, seed=0), {}, moe(x))
