"""Links that are slowed on purpose, the all-reduce by a ring over such links, and the suite `plan`."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from benchmarks import SMALL, bench
from cases import MoE, same, tokens
from mpi import find_mpiexec

import aristos
from aristos import reference, results
from aristos.errors import ClosedError

MIB = 1 << 20
NBYTES = MIB // 2
FAST, SLOW = (0.0, 0.0), (30e3, 100e3)  # (us, us a MiB). A slow put of NBYTES takes 80 ms


@pytest.mark.ranks(3, timeout=300)  # the first test may have to compile kernels
def test_a_put_takes_the_time_set_for_its_link(comm):
    from aristos.bench.slow_links import SlowLinks
    from aristos.primitives import memory, wire
    from aristos.transport.rma import RmaWindow

    window = RmaWindow(comm, 3 * NBYTES)
    payload = np.full(NBYTES, 1 + comm.rank, np.uint8)

    def put_seconds(peer: int) -> float:
        while not wire.try_lock(window.wire):
            time.sleep(1e-4)
        begun = time.monotonic()
        wire.put(window.wire, peer, window.shift[peer] + comm.rank * NBYTES, payload.ctypes.data, NBYTES)
        wire.flush(window.wire, peer)
        took = time.monotonic() - begun
        wire.unlock(window.wire)
        return took

    fast, slow_peer = (comm.rank + 1) % 3, (comm.rank + 2) % 3
    set_to = np.zeros((2, 3))
    set_to[:, fast], set_to[:, slow_peer] = FAST, SLOW
    put_seconds(fast)  # compile it
    before = memory.words(window.wire, wire.LAST).copy()
    with SlowLinks(window.wire, *set_to.tolist()) as slow:
        assert not np.array_equal(memory.words(window.wire, wire.LAST), before)
        slowest = []
        for _ in range(3):
            slowest.append(put_seconds(slow_peer))
            waited, nbytes, puts, flushes = slow.taken()
            assert (nbytes, puts, flushes) == (NBYTES, 1, 1)
            assert slowest[-1] >= waited >= 0.08
        assert min(put_seconds(fast) for _ in range(10)) < 0.06
        slow.taken()
        begun = time.monotonic()
        for _ in range(4):
            put_seconds(slow_peer)
        assert time.monotonic() - begun >= 4 * 0.08  # a wait that was too long shortens the next ones
        assert slow.taken()[0] >= 4 * 0.08
    assert np.array_equal(memory.words(window.wire, wire.LAST)[1:], before[1:])  # all words but the first, the lock
    assert min(put_seconds(slow_peer) for _ in range(10)) < 0.06
    comm.Barrier()
    landed = memory.words(window.base, 3 * NBYTES // 8).view(np.uint8).reshape(3, NBYTES)
    for other in (fast, slow_peer):
        assert (landed[other] == 1 + other).all()
    comm.Barrier()
    window.close()


@pytest.mark.slow
@pytest.mark.ranks(2, timeout=300)
def test_a_layer_waits_for_slow_links_and_keeps_its_bits(comm):
    from aristos.bench.slow_links import SlowLinks

    cfg = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, max_tokens=40)
    w = reference.weights(cfg)
    x = tokens(cfg, 40, seed=comm.rank)
    alpha = [0.0, 0.0]
    alpha[1 - comm.rank] = 20e3
    with MoE(cfg, comm, threads=1, ranks_per_node=1) as moe:
        moe.load(0, **w)
        wanted = np.array(moe(x))
        with SlowLinks(moe.runtime.wire, alpha, [0.0, 0.0]) as slow:
            begun = time.monotonic()
            assert same(moe(x), wanted)
            took = time.monotonic() - begun
            waited, nbytes, _, flushes = slow.taken()
            assert flushes >= 2  # one for rows, one for the outputs
            assert took >= waited >= 0.04
            assert nbytes > 0
        assert same(moe(x), wanted)
        assert slow.taken() == (0.0, 0, 0, 0)
    with pytest.raises(ClosedError):
        moe.runtime  # noqa: B018


@pytest.mark.ranks(3)
def test_the_ring_sums_exactly_and_takes_the_set_time(comm):
    from aristos.bench import ring

    for size in (0, 1, 2, 1000, 4001):
        everyone = [np.random.default_rng(r).integers(-99, 99, size).astype(np.float32) for r in range(3)]
        mine = everyone[comm.rank].copy()
        comm.Barrier()
        begun = time.monotonic()
        ring.allreduce(comm, mine, 2e3, 1e6)
        took = time.monotonic() - begun
        assert np.array_equal(mine, sum(everyone))
        assert took >= 4 * (2e-3 + (size // 3) * 4 / MIB)


@pytest.mark.slow
@pytest.mark.parallel  # other programs only make times longer
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_the_suite_predicts_and_measures_every_term(tmp_path):
    done = bench(6, "plan", *SMALL, "--json", "--out", str(tmp_path / "r.h5"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["suites"]["plan"]["tables"][0]["rows"]
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    assert {name for each in plans for name in each.split(", ")} == {
        "planned",
        "one group",
        "one group a node",
        "2024 greedy",
    }
    assert all(row["check"] == "ok" for row in rows)
    for name in plans:
        terms = {row["term"]: row for row in rows if row["plan"] == name}
        for term in ("step", "pi", "comm", "all-reduce"):
            assert terms[term]["predicted_ms"] >= 0
            assert terms[term]["measured_ms"] >= 0
    (run,) = results.load(tmp_path / "r.h5").runs
    (table,) = run.tables
    v = {name: each.values for name, each in table.variables.items()}
    a = table.attributes
    assert v["stage_time"].shape == (len(plans), 6, 4)
    assert (v["stage_time"] > v["link_time"]).all()
    least = v["link_bytes"] / MIB * 5e-3 + v["link_flushes"] * 20e-6  # as if all bytes went over the faster links
    assert (v["link_time"] >= 0.999 * least).all()
    assert (v["link_flushes"] > 0).any(axis=(1, 2)).all()
    one = next(i for i, name in enumerate(plans) if "one group" in name.split(", "))
    longest = 2 * (v["alpha"] + v["beta"] * a["payload_mib"] / 6).sum(1).max()
    assert v["predicted_comm"][one] == pytest.approx(longest)
    for i in range(len(plans)):
        k = v["group"][i].max() + 1
        reduce = 2 * (k - 1) * (v["alpha"].max() + v["beta"].max() * a["gradient_mib"] / k)
        assert v["predicted_allreduce"][i] == pytest.approx(reduce)
        step = a["kappa"] * (v["predicted_pi"] + v["predicted_comm"])[i].max() + reduce
        assert v["predicted_step"][i] == pytest.approx(step)
        heads = [int(np.argmax(v["group"][i] == g)) for g in range(k)]
        ring = [
            v["alpha"][p, q] + v["beta"][p, q] * a["gradient_mib"] / k for p, q in zip(heads, heads[1:] + heads[:1])
        ]
        if k > 1:
            assert (v["allreduce_time"][i].max(0) >= 0.99 * 2 * (k - 1) * max(ring)).all()
