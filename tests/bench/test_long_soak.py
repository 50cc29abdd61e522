"""`aristos soak` in `make test-all`: random layers and calls on four ranks, each checked.

Once all kernels are compiled, the ranks have niceness 10, so that other tests come first. The ranks make 40 objects. If
each object leaked a file, the second half would leak 20 files, and the slack is 8. Of memory, leaks from 3.2 MiB an
object are found. On a slow machine the ranks make fewer objects, but at least 12; then smaller leaks pass.
"""

from __future__ import annotations

import json

import pytest
from cases import run_job

from aristos.bench.health import SLACK

pytestmark = [pytest.mark.slow, pytest.mark.parallel, pytest.mark.compiled]

JOB = """
from aristos.bench import health
from aristos.bench.soak import Asked, soak
from aristos.bench.world import connect
from aristos.cli import soak as command
assert command.main("--seed 11 --objects 6 --minutes 9".split()) == 0  # these objects need all kernels
assert command.main("--seed 11 --objects 1 --json".split()) == 0
os.nice(10)
begun, ranks = time.monotonic(), connect()
counts = soak(ranks, Asked(12), 0, lambda done: done.objects < (40 if time.monotonic() - begun < 40 else 12))
leaks, growth = health.leaks(counts.samples), health.growth(counts.samples)
say(counts.objects, counts.calls, counts.backward, counts.loads, leaks, *growth)
"""


def test_random_calls_are_right_and_nothing_grows(tmp_path):
    done = run_job(tmp_path, 4, JOB, timeout=900)
    assert done.code == 0, "\n".join(done.out)[-4000:]
    assert "errors 0, leaks 0" in done.out[0]
    document, _ = json.JSONDecoder().raw_decode(done.out[0][done.out[0].index("{\n") :])
    assert document["seed"] == 11
    assert [(rank["objects"], rank["leaks"]) for rank in document["ranks"]] == [(1, [])] * 4
    for rank in range(4):
        objects, calls, *_, leaks = done.lines(rank)[-1].split(maxsplit=4)
        assert (int(objects) >= 12, int(calls) >= 12) == (True, True)
        assert leaks == f"[] {' '.join(SLACK)}"  # all slopes were judged
