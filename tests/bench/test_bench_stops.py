"""Two ranks of `python -m aristos.bench`, of which one stops outside a call of a layer."""

from __future__ import annotations

import re

import pytest
from benchmarks import PATCH, SMALL, bench, needs_mpiexec

pytestmark = pytest.mark.slow

STOPS = """
import aristos.bench.bounds as b, aristos.bench.options as o, aristos.bench.world as w, os, signal
o.Options.limit = 2.0
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGSTOP)
def peak(world, *a, **k):
    if world.rank == 1: stop()
    return true(world, *a, **k)
true, b.peak = b.peak, peak
"""
IN_A_COLLECTIVE = """
b.peak = lambda world, *a, **k: world.gather(0) and 1.0
gather = w.World.bounded
w.World.bounded = lambda world, call: stop() if world.rank == 1 and call == "gather" else gather(world, call)
"""

IN_ITS_CHECK = """
import aristos.bench.suites.exchange as x
x.METHODS = {"equal": ("Alltoall",), "uneven": ()}  # rank 1 meets nobody before it stops
x.ExchangeCalls.alltoall = lambda each: stop() if each.world.rank == 1 else each.world.comm.Barrier()
"""
WHEN_TIMED = """
import aristos.bench.suites.exchange as x
x.ExchangeCalls.right = lambda each, method: True
x.ExchangeCalls.alltoallv = lambda each: stop() if each.world.rank == 1 else each.world.comm.Barrier()
"""
IN_A_SPLIT = """
bounded = w.World.bounded
w.World.bounded = lambda world, call: stop() if world.rank == 1 and "split" in call else bounded(world, call)
"""


@needs_mpiexec
@pytest.mark.parametrize(
    ("suite", "where", "call"),
    [
        pytest.param("gemm", "", "", id="before a barrier"),
        pytest.param("gemm", IN_A_COLLECTIVE, "gather", id="in a collective"),
        pytest.param("exchange", IN_ITS_CHECK, "Alltoall", id="in a call that is checked"),
        pytest.param("exchange", WHEN_TIMED, "Alltoallv", id="in a call that is timed"),
        pytest.param("plan", IN_A_SPLIT, "MPI_Comm_split", id="when groups are formed"),
    ],
)
def test_a_rank_that_stops_outside_a_layer_call_ends_the_job(suite, where, call):
    """The job ends within the limit, with one line of error and exit code 3."""
    done = bench(2, suite, *SMALL, "--out", "none", code=PATCH + STOPS + where + "sys.exit(main())")
    assert done.returncode == 3, done.stderr
    awaited = re.escape(f"for the other ranks ({call})" if call else "for the other ranks")
    assert re.search(f"rank 0 waited 2[.0-9]* s .*{awaited}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
