"""The persistent kernel on several nodes, on the PTX machine with its checker: proxies serve remote peers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cuda_layers import SMALL, Layers
from cuda_nodes import NodeLayers
from plain_engine import plain

from aristos.engine import codes, words
from aristos.reference import error

pytestmark = [pytest.mark.slow, pytest.mark.parallel]


def close(layers, ys):
    for y, want in zip(ys, layers.expected()):
        assert y.shape == want.shape
        assert want.size == 0 or error(y, want) < 1e-6


@pytest.mark.parametrize(("seed", "rows_on_device"), [(0, False), (1, True), (2, True), (3, False)])
def test_two_nodes_of_two_gpus(seed, rows_on_device):
    """Rings have few rows (a token must fit), experts are uneven, and some ranks have no experts or no tokens.

    Several calls give the same bits as calls on one node.
    """
    rng = np.random.default_rng(seed)
    sizes: Any = {
        "cfg": replace(SMALL, gated=bool(seed & 1), bias=bool(seed & 2)),
        "placement": [[0, 3], 1, [0, 1], 3] if seed % 2 else [2, 2, 0, 2],
        "tokens": tuple(rng.permutation([0, 7, 12, 16]).tolist()),
        "merge": 8,
    }
    layers = NodeLayers(
        **sizes, grid=1 + seed % 2, ring=2 + seed, seed=seed, bundle=1 + 5 * seed, rows_on_device=rows_on_device
    )
    ys = layers.run(calls=2)
    close(layers, ys)
    for y, other in zip(ys, Layers(**sizes).run()):
        np.testing.assert_array_equal(y, other)
    ring = layers.shape.ring_rows * layers.shape.stride
    kinds = {(at - start) // ring % 2 for start, at in layers.host.from_devices}
    assert kinds == ({0, 1} if rows_on_device else set())  # ring rows, outputs


def test_two_ranks_on_two_nodes():
    """A peer that gets no rows from this rank can be a call ahead: the proxy copies both of its announcements."""
    given = [(np.zeros((5, 1), np.int64), np.ones((5, 1), np.float32))] * 2
    layers = NodeLayers(
        cfg=replace(SMALL, top_k=1), per_node=1, tokens=(5, 5), given=given, placement=[0, 1, 1, 1], ring=1
    )
    close(layers, layers.run(calls=3))


def test_rows_from_other_nodes_are_copied_to_the_gpu_once():
    """The rank that holds the expert has copies of the other rank's rows behind its hidden activations."""
    given = [(np.zeros((5, 1), np.int64), np.ones((5, 1), np.float32))] * 2
    layers = NodeLayers(cfg=replace(SMALL, top_k=1), per_node=1, tokens=(5, 5), given=given, placement=[0, 1, 1, 1])
    close(layers, layers.run())
    first = layers.runs["runs"] * layers.runs["run_step"] // 4
    copies = [rank.scratch.copy_to_host()[first:].view(np.float32) for rank in layers.ranks]
    assert set(layers.ranks[1].x.reshape(-1).tolist()) <= set(copies[0].tolist())
    assert not copies[1].any()


@pytest.mark.parametrize("absent", [0, 2])
def test_a_wait_is_bounded_and_remote_ranks_know_which_rank_gave_up(absent):
    """One rank never makes the call. Another gives up, and its proxy notifies the remote ranks. All kernels end."""
    layers = NodeLayers(tokens=(5, 6, 7), timeout=20_000, fails=True)
    there = [rank for rank in layers.ranks if rank.me != absent]
    layers.run(ranks=there)
    states = [rank.state.copy_to_host() for rank in there]
    assert {int(state[words.FAILED]) for state in states} == {codes.CAUSE_TIMEOUT}
    assert {int(state[words.ORIGIN]) for state in states} <= {rank.me for rank in there}


# ---- bugs of the proxy that the machine must find

STUCK = 10_000_000  # warp instructions, far more than a run without a bug needs


def run(**names):
    proxy = plain("engine.proxy")
    kept = {name: getattr(proxy, name) for name in names}
    vars(proxy).update(names)
    try:
        layers = NodeLayers(per_node=1, tokens=(6, 9), ring=3, limit=STUCK)  # a bug may also make a run endless
        close(layers, layers.run(calls=2))
    finally:
        vars(proxy).update(kept)


def test_words_that_are_passed_on_before_the_copy_are_found():
    proxy = plain("engine.proxy")

    def early(gpu, gs, peer):
        for word in range(words.LINE_WORDS + 1):
            value = proxy.mem.load(proxy.word_from(gpu, gs, peer, word))
            proxy.mem.store_release(proxy.gpu_word(gpu, gs, peer, word), value)
        proxy.mpi.flush(gpu[words.WIRE], peer)
        return True

    with pytest.raises(AssertionError):
        run(hand_on=early)


def test_rows_read_without_acquire_are_found():
    proxy = plain("engine.proxy")

    def plainly(job, st, peer, line):
        before, proxy.mem.load_acquire = proxy.mem.load_acquire, lambda at: proxy.mem.load(at, "relaxed")
        try:
            count(job, st, peer, line)
        finally:
            proxy.mem.load_acquire = before

    count = proxy.count
    with pytest.raises(AssertionError):
        run(count=plainly)


def test_rows_that_are_not_copied_are_found():
    with pytest.raises(AssertionError):
        run(put_return_rows=lambda *_: None)
