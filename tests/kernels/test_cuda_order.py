"""One block publishes to a peer what other blocks have written, on the PTX machine: releases are cumulative."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_order import ACROSS, check_rows, writing
from scopes import store_release_gpu

import ptxsim

pytestmark = pytest.mark.slow

LIMIT = 10**9


def run(release, seed, blocks=3, rounds=3, row_bytes=64):
    """Run rounds from GPU 0 to GPU 1: (reports, wrong words, waits that ran out on GPU 0, and on GPU 1)."""
    machine = ptxsim.Machine(devices=2, seed=seed)
    first, second = (machine.device(n) for n in range(2))
    nbytes = (blocks - 1) * row_bytes
    source, back, count, late = (first.array(np.zeros(n, np.int64)) for n in (nbytes // 8, 1, 1, 1))
    target, word, wrong, later = (second.array(np.zeros(n, np.int64)) for n in (nbytes // 8, 1, 1, 1))
    args = (source, target, word, back, count, row_bytes, rounds, LIMIT, late)
    first.launch(writing(release), blocks, 64, *(getattr(a, "ptr", a) for a in args))
    args = (target, word, back, nbytes, rounds, LIMIT, later, wrong)
    second.launch(check_rows, 1, 64, *(getattr(a, "ptr", a) for a in args))
    reports = machine.run()
    return reports, *(int(a.copy_to_host()[0]) for a in (wrong, late)), int(later.copy_to_host()[0])


@pytest.mark.parametrize("seed", range(6))
def test_a_release_at_system_scope_covers_what_was_handed_over_at_gpu_scope(seed):
    assert run(ACROSS, seed) == ([], 0, 0, 0)


def test_a_release_at_gpu_scope_does_not_reach_a_peer():
    """The checker reports a race for at least one schedule."""
    found = [report for seed in range(3) for report in run(store_release_gpu, seed)[0]]
    assert any(report.kind == "race" for report in found)
