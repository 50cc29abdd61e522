"""Random layers: any shape, k, E, placement, router, skew, ring and thread count, on 1 to 8 ranks.

Every call is checked twice: against float64, and bit for bit against the same tokens in one process. Bits must not
depend on the numbers of ranks and threads, the placement, the ring size or the other rows. Starting ranks takes long,
so one launch runs many examples. Each run draws others, see support/sweeps.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import sweeps
from cases import alone, same, tokens
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from mpi import ranks_each
from random_layers import plans, run

from aristos import reference


@pytest.mark.parallel
@ranks_each(1, 2, 3, 4, timeout=240)
@seed(sweeps.number())
@settings(max_examples=10)
@given(plan=plans())
def test_any_layer_equals_the_reference(comm, world, plan):
    run(comm, plan)


@pytest.mark.parallel
@ranks_each(5, 8, timeout=240)
@seed(sweeps.number())
@settings(max_examples=3)
@given(plan=plans())
def test_any_layer_on_more_ranks_than_cores_equals_the_reference(comm, world, plan):
    run(comm, plan)


@pytest.mark.ranks(2, timeout=240)
@seed(sweeps.number())
@settings(max_examples=5)
@given(plan=plans())
def test_any_layer_in_bulk_equals_the_reference(comm, plan):
    run(comm, plan, schedule="bulk")


@pytest.mark.compiled
@seed(sweeps.number())
@settings(max_examples=20)
@given(plan=plans(), data=st.data())
def test_a_row_alone_has_the_same_bits(plan, data):
    """A row's bits depend on the row alone, not on its place or the other rows."""
    cfg = plan.cfg
    w = reference.weights(cfg)
    with alone(cfg, w, threads=plan.threads) as moe:
        x = tokens(cfg, cfg.max_tokens, seed=1)
        y = moe(x)
        first = data.draw(st.integers(0, len(x) - 1))
        last = data.draw(st.integers(first + 1, len(x)))
        assert same(moe(x[first:last]), y[first:last])
        order = np.random.default_rng(last).permutation(len(x))
        assert same(moe(x[order]), y[order])
