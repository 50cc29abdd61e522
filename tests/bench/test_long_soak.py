"""`aristos soak` for two minutes of `make test-all`: random layers and calls on four ranks, each checked.

The ranks give way to all other tests: their niceness is 15 once their kernels are compiled.
"""

from __future__ import annotations

import re

import pytest
from cases import run_job

pytestmark = [pytest.mark.slow, pytest.mark.parallel, pytest.mark.compiled]

JOB = """
from aristos.cli import soak
soak.main("--seed 11 --objects 8 --minutes 8".split())  # these compile all kernels, while other tests may wait for them
os.nice(15)
code = soak.main("--seed 12 --minutes 2".split())
comm.Barrier()
sys.exit(code)
"""


def test_two_minutes_of_random_calls_are_right_and_nothing_grows(tmp_path):
    done = run_job(tmp_path, 4, JOB, timeout=900)
    assert done.code == 0, "\n".join(done.out)[-4000:]
    last = done.out[0].splitlines()[-7:]
    assert last[-1] == "errors 0, leaks 0", last
    objects, calls = (int(n) for n in re.match(r"done: (\d+) objects, (\d+) calls", last[0]).groups())
    assert (objects >= 8, calls >= 20) == (True, True), last  # 8 samples: slopes are judged
    assert [line.split(" over ")[0] for line in last[2:6]] == [f"rank {n}" for n in range(4)]
    assert not any("too few samples" in line for line in last)
