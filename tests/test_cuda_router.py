"""The router kernels on the PTX machine: against the float64 reference, the CPU's functions, and a sort in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from aristos import reference, simt
from aristos.config import MoEConfig, Router
from aristos.kernels.cpu.gemm import aligned, pack
from aristos.kernels.cpu.llvm import LANES
from aristos.kernels.cpu.tokens import SCORES, scores
from aristos.kernels.cuda import router as r


def route(x, weight, k, slot_of=None, score="softmax", renormalize=False, scale=1.0, ids=None, seed=0):
    """Tables by name after both launches (the second alone where `ids` are given), and nothing reported."""
    tokens, experts = len(x), weight.shape[1]
    slot_of = np.arange(experts) if slot_of is None else np.asarray(slot_of)
    machine = simt.Machine(seed=seed)
    device = machine.device(0)
    slots = experts
    arrays = {
        "x": device.array(x), "router": device.array(r.pack_router(weight)), "slot_of": device.array(slot_of),
        "ids": device.empty((tokens, k), np.int64) if ids is None else device.array(ids),
        "weights": device.empty((tokens, k), np.float32), "offset": device.empty(slots + 1, np.int64),
        "token": device.array(np.full(tokens * k, -7)), "position": device.empty((tokens, k), np.int64),
        "status": device.array(np.zeros(1, np.int64)),
        "scratch": device.empty(r.scratch_bytes(tokens, experts, slots), np.uint8),
    }  # fmt: skip
    job = np.zeros(r.JOB_WORDS, np.int64)
    for word, name in ((r.X, "x"), (r.ROUTER, "router"), (r.SLOT_OF, "slot_of"), (r.IDS, "ids"),
                       (r.WEIGHTS, "weights"), (r.OFFSET, "offset"), (r.TOKEN, "token"), (r.POSITION, "position"),
                       (r.STATUS, "status"), (r.SCRATCH, "scratch")):  # fmt: skip
        job[word] = arrays[name].ptr
    job[[r.X_STRIDE, r.TOKENS, r.HIDDEN]] = x.strides[0], tokens, x.shape[1]
    job[[r.EXPERTS, r.TOP_K, r.SLOTS]] = experts, k, slots
    job[[r.SCORE, r.RENORMALIZE, r.SCALE]] = SCORES[score], renormalize, np.float32(scale).view(np.int32)
    job_array = device.array(job)
    if ids is None:
        device.launch(r.route, r.blocks(tokens), r.THREADS, job_array.ptr, shared=r.route_shared(slots))
    else:
        parts = np.split(ids, range(r.BLOCK, tokens, r.BLOCK))
        counts = [np.bincount(slot_of[part[part >= 0]], minlength=slots) for part in parts]
        at = tokens * (16 + 4 * r.padded(experts))
        raw = np.zeros(r.scratch_bytes(tokens, experts, slots), np.uint8)
        raw[at:] = np.concatenate(counts).astype(np.int64).view(np.uint8)
        job[r.SCRATCH] = device.array(raw).ptr
        job_array = device.array(job)
    device.launch(r.place, r.blocks(tokens), r.THREADS, job_array.ptr, shared=r.place_shared(slots, k))
    reports = machine.run()
    assert not reports, [str(report) for report in reports]
    return {name: array.copy_to_host() for name, array in arrays.items() if name != "router"}


def packed(ids, slot_of, k):
    """OFFSET, TOKEN, POSITION: a stable sort by slot of what is routed."""
    flat = ids.ravel()
    order = [i for i in np.argsort(np.where(flat >= 0, slot_of[flat], 1 << 30), kind="stable") if flat[i] >= 0]
    position = np.full(flat.size, -1)
    position[order] = np.arange(len(order))
    counts = np.bincount(slot_of[flat[order]], minlength=len(slot_of))
    return np.concatenate([[0], np.cumsum(counts)]), np.array(order, np.int64) // k, position.reshape(ids.shape)


def check_packing(got, slot_of, k):
    offset, token, position = packed(got["ids"], slot_of, k)
    np.testing.assert_array_equal(got["offset"], offset)
    np.testing.assert_array_equal(got["token"][: len(token)], token)
    np.testing.assert_array_equal(got["position"], position)
    assert (got["token"][len(token) :] == -7).all()


@pytest.mark.parametrize(
    ("tokens", "hidden", "experts", "k", "score", "renormalize"),
    [(70, 40, 8, 2, "softmax", True), (5, 8, 3, 3, "softmax_topk", False), (130, 36, 140, 4, "softmax", False),
     (1, 4, 1, 1, "softmax", False)],
)  # fmt: skip
def test_against_the_reference(tokens, hidden, experts, k, score, renormalize):
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, hidden), dtype=np.float32)
    weight = rng.standard_normal((hidden, experts), dtype=np.float32)
    slot_of = rng.permutation(experts)
    got = route(x, weight, k, slot_of, score, renormalize, scale=2.5)
    how = Router(score=score, renormalize=renormalize, scale=2.5)
    cfg = MoEConfig(hidden=hidden, ffn=4, experts=experts, top_k=k, router=how)
    ids, weights = reference.route(cfg, x, weight)
    np.testing.assert_array_equal(got["ids"], ids)
    np.testing.assert_allclose(got["weights"], weights, rtol=1e-5)  # scores near 20, exponentials of them
    assert got["status"] == 0
    check_packing(got, slot_of, k)


def test_ties_go_to_the_lowest_id():
    x = np.ones((9, 4), np.float32)
    weight = np.tile(np.float32([0, 1, 1, 0, 1, 0]), (4, 1))
    got = route(x, weight, 4)
    assert (got["ids"] == [1, 2, 4, 0]).all()
    check_packing(got, np.arange(6), 4)


def test_the_order_does_not_depend_on_the_schedule():
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((200, 8), dtype=np.float32), rng.standard_normal((8, 5), dtype=np.float32)
    first, second = (route(x, weight, 2, seed=seed) for seed in (0, 1))
    for name in ("ids", "weights", "offset", "token", "position"):
        np.testing.assert_array_equal(first[name], second[name])


def test_choices_from_outside():
    """Ids that were given, some of them -1: only the order is computed."""
    rng = np.random.default_rng(4)
    ids = rng.integers(-1, 6, (150, 3))
    slot_of = rng.permutation(6)
    got = route(np.zeros((150, 4), np.float32), np.zeros((4, 6), np.float32), 3, slot_of, ids=ids)
    check_packing(got, slot_of, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite(bad):
    x = np.ones((70, 4), np.float32)
    x[66, 2] = bad
    got = route(x, np.eye(4, dtype=np.float32), 2)
    assert got["status"] == 1
    assert (got["offset"] == 0).all()


def test_bits_of_scores_are_those_of_the_cpu():
    """Both substrates make a score by the same chain of sums, so that both choose the same experts."""
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((66, 100), dtype=np.float32), rng.standard_normal((100, 9), dtype=np.float32)
    scratch = route(x, weight, 2, score="softmax_topk")["scratch"]  # this one leaves the scores as they are
    ours = scratch[66 * 16 :][: 66 * 4 * r.padded(9)].view(np.float32).reshape(66, -1)[:, :9]
    panels = pack(weight, LANES)
    theirs, rows = aligned((66, len(panels) * LANES)), np.zeros(2 * 66, np.int64)
    scores(66, x.ctypes.data, x.strides[0], 100, panels.ctypes.data, len(panels), rows.ctypes.data, theirs.ctypes.data)
    np.testing.assert_array_equal(ours, theirs[:, :9])
