"""The router kernels on the PTX machine, compared with the float64 reference, the CPU's functions and NumPy's sort."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
import ptxsim
from aristos import reference
from aristos.config import SCORES, MoEConfig, Router
from aristos.engine import codes, routing, words
from aristos.kernels.cpu.convert import FLOAT32
from aristos.kernels.cpu.panels import pack, padded
from aristos.kernels.cpu.tokens import route_bytes, scores
from aristos.kernels.cuda import router as r
from aristos.kernels.cuda import router_job
from aristos.kernels.cuda.capacity import drop, drop_shared
from aristos.kernels.cuda.pack import narrow, widen
from aristos.primitives.buffers import aligned

pytestmark = pytest.mark.slow


def route(x, weight, k, slot_of=None, score="softmax", renormalize=False, scale=1.0, kind="f32", given=None, seed=0,
          capacity=0, gate=None, weighted=False, bias=None):  # fmt: skip
    """Run the router's kernels, and check that the machine reports nothing. Returns their tables by name.

    given: (ids, weights), which are checked instead of computed. gate: [H], for a shared expert.
    weighted: whether tokens are weighted. bias: the router's select_bias.
    """
    tokens, experts = len(x), weight.shape[1] + (gate is not None)
    pitch = k + (gate is not None)
    slot_of = np.arange(experts) if slot_of is None else np.asarray(slot_of)
    machine = ptxsim.Machine(seed=seed)
    device = machine.device(0)
    slots = experts
    arrays = {
        "x": device.array(x),
        "gate": device.array(r.pack_router(weight[:, :1] if gate is None else gate[:, None])),
        "weighted": device.empty(x.shape, x.dtype),
        "kept": device.empty(tokens, np.float32),
        "router": device.array(r.pack_router(weight)),
        "slot_of": device.array(slot_of),
        "bias": device.array(np.zeros(1, np.float32) if bias is None else bias),
        "given_ids": device.array(given[0] if given else np.zeros(1)),
        "given_weights": device.array(given[1] if given else np.zeros(1)),
        "ids": device.empty((tokens, pitch), np.int64),
        "weights": device.empty((tokens, pitch), np.float32),
        "offset": device.empty(slots + 1, np.int64),
        "token": device.array(np.full(tokens * pitch, -7)),
        "position": device.empty((tokens, pitch), np.int64),
        "status": device.array(np.zeros(1, np.int64)),
        "scratch": device.empty(r.scratch_bytes(tokens, experts, slots, pitch if capacity else 0), np.uint8),
    }
    at = {name: array.ptr for name, array in arrays.items()}
    job = router_job.whole_job(
        x=at["x"], x_stride=x.strides[0], tokens=tokens, hidden=len(weight), router=at["router"],
        experts=weight.shape[1], top_k=pitch, choices=k, score=SCORES[score], renormalize=renormalize,
        scale=int(np.float32(scale).view(np.int32)), ids=at["ids"], weights=at["weights"],
        given_ids=at["given_ids"] if given else 0, given_weights=at["given_weights"] if given else 0,
        capacity=capacity, slot_of=at["slot_of"], slots=slots, offset=at["offset"], token=at["token"],
        position=at["position"], select_bias=0 if bias is None else at["bias"], input=at["x"],
        input_stride=x.strides[0], shared_sigmoid=0 if gate is None else at["gate"],
        weighted=at["weighted"] if weighted else 0, kept_weights=at["kept"] if weighted else 0, status=at["status"],
        scratch=at["scratch"],
    )  # fmt: skip
    job_array = device.array(job)
    shared = r.route_shared(slots, kind, pitch if capacity else 0)
    device.launch(r.route(kind), r.blocks(tokens), r.THREADS, job_array.ptr, shared=shared)
    if capacity:
        device.launch(drop, r.blocks(tokens), r.THREADS, job_array.ptr, shared=drop_shared(slots, pitch))
    device.launch(r.place, r.blocks(tokens), r.THREADS, job_array.ptr, shared=r.place_shared(slots, pitch))
    reports = machine.run()
    assert not reports, [str(report) for report in reports]
    return {name: array.copy_to_host() for name, array in arrays.items() if name != "router"} | {
        "profile": machine.profile()
    }


def packed(ids, slot_of, k):
    """OFFSET, TOKEN, POSITION: a stable sort of the choices by slot."""
    flat = ids.ravel()
    order = [i for i in np.argsort(np.where(flat >= 0, slot_of[flat.clip(0)], 1 << 30), kind="stable") if flat[i] >= 0]
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
    [
        (70, 40, 8, 2, "softmax", True),
        (130, 36, 140, 4, "softmax", False),
        (1, 4, 1, 1, "softmax", False),
        *((5, 8, 3, 3, score, False) for score in SCORES if score != "softmax"),
    ],
)
def test_routing_equals_the_reference(tokens, hidden, experts, k, score, renormalize):
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, hidden), dtype=np.float32)
    weight = rng.standard_normal((hidden, experts), dtype=np.float32)
    slot_of = rng.permutation(experts)
    got = route(x, weight, k, slot_of, score, renormalize, scale=2.5)
    how = Router(score=score, renormalize=renormalize, scale=2.5)
    cfg = MoEConfig(hidden=hidden, ffn=4, experts=experts, top_k=k, router=how)
    ids, weights = reference.route(cfg, x, weight)
    np.testing.assert_array_equal(got["ids"], ids)
    np.testing.assert_allclose(got["weights"], weights, rtol=1e-5)  # exponentials of scores near 20
    assert got["status"] == codes.OK
    check_packing(got, slot_of, k)


@pytest.mark.parametrize(("capacity", "k", "shared"), [(1, 3, False), (11, 2, True), (20, 1, False), (60, 3, True)])
def test_choices_beyond_the_capacity_are_marked(capacity, k, shared):
    """The first choices of all tokens count before second ones, in the order of the tokens, which fill three blocks.

    The shared expert has no capacity.
    """
    rng = np.random.default_rng(capacity)
    x, weight = rng.standard_normal((150, 8), dtype=np.float32), rng.standard_normal((8, 6), dtype=np.float32)
    slot_of = rng.permutation(6 + shared)
    gate = x[0] if shared else None
    free, got = (route(x, weight, k, slot_of, gate=gate, capacity=most) for most in (0, capacity))
    cfg = MoEConfig(hidden=8, ffn=4, experts=6, top_k=k, router=Router(capacity=capacity))
    want = reference.within_capacity(cfg, free["ids"][:, :k])
    np.testing.assert_array_equal(np.maximum(got["ids"][:, :k], -1), want)
    np.testing.assert_array_equal(np.where(got["ids"] < -1, -2 - got["ids"], got["ids"]), free["ids"])
    np.testing.assert_array_equal(got["weights"], free["weights"])
    assert (want < 0).any()
    check_packing(got, slot_of, k + shared)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", r.KINDS)
def test_a_shared_expert_and_weights_on_the_input(kind, given):
    """The shared expert's choice follows the others, with the gate's weight.

    Weighted tokens have the bits of the token times the weight of its choice.
    """
    rng = np.random.default_rng(9)
    x = narrow(rng.standard_normal((70, 40), dtype=np.float32), kind)
    wide = widen(x, kind)
    weight, gate = rng.standard_normal((40, 5), dtype=np.float32), rng.standard_normal(40, dtype=np.float32)
    outside = (rng.integers(-1, 5, (70, 1)), rng.standard_normal((70, 1), dtype=np.float32)) if given else None
    slot_of = rng.permutation(6)
    got = route(x, weight, 1, slot_of, "sigmoid", kind=kind, given=outside, gate=gate, weighted=True)
    cfg = MoEConfig(hidden=40, ffn=4, experts=5, top_k=1, router=Router("sigmoid", renormalize=False))
    ids, weights = outside or reference.route(cfg, wide, weight)
    np.testing.assert_array_equal(got["ids"], np.column_stack([ids, np.full(70, 5)]))
    shares = 1 / (1 + np.exp(-(wide.astype("f8") @ gate)))
    np.testing.assert_allclose(got["weights"], np.column_stack([np.ones(70), shares]), rtol=3e-5)
    np.testing.assert_allclose(got["kept"], weights[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(widen(got["weighted"], kind), widen(narrow(got["kept"][:, None] * wide, kind), kind))
    check_packing(got, slot_of, 2)


def test_a_bias_that_excludes_the_best_expert_does_not_make_weights_inexact():
    weight, x = np.zeros((4, 6), np.float32), np.zeros((3, 4), np.float32)
    weight[0], x[:, 0] = [30, 60, 150, 0, 0, 1], [0.5, 0.3, -1]
    bias = np.array([0, 0, -2, 0, -2, 0], np.float32)
    got = route(x, weight, 2, renormalize=True, bias=bias)
    cfg = MoEConfig(hidden=4, ffn=4, experts=6, top_k=2, router=Router())
    ids, weights = reference.route(cfg, x, weight, None, bias)
    np.testing.assert_array_equal(got["ids"], ids)
    np.testing.assert_allclose(got["weights"], weights, rtol=1e-5)
    assert weights[2].min() > 0.1


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


def given(tokens=150, experts=6, k=3, seed=4):
    """Valid choices: each token has distinct experts; some choices are -1, not taken."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k].copy()
    ids[rng.random(ids.shape) < 0.3] = -1
    return ids, rng.standard_normal(ids.shape, dtype=np.float32)


def checked(ids, weights, experts=6, slot_of=None):
    tokens = np.zeros((len(ids), 4), np.float32)
    return route(tokens, np.zeros((4, experts), np.float32), ids.shape[1], slot_of, given=(ids, weights))


def test_choices_from_outside_are_kept_and_packed():
    """Given ids and weights stay unchanged and get the packed order; some choices are not taken."""
    ids, weights = given()
    weights[ids < 0] = np.nan  # the weight of a choice not taken is ignored
    slot_of = np.random.default_rng(5).permutation(6)
    got = checked(ids, weights, slot_of=slot_of)
    assert got["status"] == codes.OK
    np.testing.assert_array_equal(got["ids"], ids)
    check_packing(got, slot_of, 3)


BREAKS = {
    "too big": lambda ids, w, t: ids.__setitem__((t, 1), 6),
    "far too big": lambda ids, w, t: ids.__setitem__((t, 0), 1 << 40),
    "negative": lambda ids, w, t: ids.__setitem__((t, 2), -2),
    "twice": lambda ids, w, t: ids.__setitem__(t, [4, 1, 4]),
    "twice, beside each other": lambda ids, w, t: ids.__setitem__(t, [-1, 0, 0]),
    "infinite": lambda ids, w, t: (ids.__setitem__(t, [0, 1, 2]), w.__setitem__((t, 2), -np.inf)),
    "not a number": lambda ids, w, t: (ids.__setitem__(t, [0, 1, 2]), w.__setitem__((t, 0), np.nan)),
}


@pytest.mark.parametrize("token", [0, 63, 64, 149])
@pytest.mark.parametrize("name", BREAKS)
def test_bad_choices_from_outside_are_refused(name, token):
    """One bad choice at any place gives the status of the engine's own check, and no choice gets a row."""
    ids, weights = given()
    BREAKS[name](ids, weights, token)
    got = checked(ids, weights)
    assert got["status"] == engine_status(ids, weights, 6)
    assert got["status"] != codes.OK
    assert (got["offset"] == 0).all()
    assert (got["token"] == -7).all()


@pytest.mark.parametrize("order", [(3, 140), (140, 3)])
def test_the_larger_status_wins(order):
    ids, weights = given()
    BREAKS["infinite"](ids, weights, order[0])
    BREAKS["twice"](ids, weights, order[1])
    assert checked(ids, weights)["status"] == codes.BAD_IDS == engine_status(ids, weights, 6)


def engine_status(ids, weights, experts):
    """The status that the CPU's step returns. The step is called uncompiled, block by block as on CPUs."""
    job = np.zeros(words.JOB_WORDS, np.int64)
    job[[words.TOP_K, words.CHOICES, words.EXPERTS]] = ids.shape[1], ids.shape[1], experts
    job[[words.IDS, words.WEIGHTS]] = ids.ctypes.data, weights.ctypes.data
    step = words.TOKEN_BLOCK
    plain = getattr(routing._check, "py_func", routing._check)
    with np.errstate(invalid="ignore"):
        return max(plain(job, first, min(step, len(ids) - first)) for first in range(0, len(ids), step))


def test_status_codes_are_the_engines():
    assert (r.OK, r.NOT_FINITE, r.BAD_IDS) == (codes.OK, codes.NOT_FINITE, codes.BAD_IDS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_sets_the_status(bad):
    x = np.ones((70, 4), np.float32)
    x[66, 2] = bad
    got = route(x, np.eye(4, dtype=np.float32), 2)
    assert got["status"] == codes.NOT_FINITE
    assert (got["offset"] == 0).all()


def test_scores_have_the_bits_of_the_cpu():
    """Both substrates compute a score by the same chain of sums, so both choose the same experts."""
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((66, 100), dtype=np.float32), rng.standard_normal((100, 9), dtype=np.float32)
    scratch = route(x, weight, 2, score="softmax_topk")["scratch"]  # this score leaves the scores unchanged
    ours = scratch[66 * 16 :][: 66 * 4 * r.padded(9)].view(np.float32).reshape(66, -1)[:, :9]
    experts = weight.shape[1]
    theirs, scratch = aligned((66, padded(experts))), aligned((route_bytes(66, 100, experts),), np.uint8)
    router = pack(weight)
    at = router.ctypes.data, experts, scratch.ctypes.data, theirs.ctypes.data
    scores(FLOAT32, 66, x.ctypes.data, x.strides[0], 100, *at)
    np.testing.assert_array_equal(ours, theirs[:, :9])


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize(("tokens", "hidden", "experts"), [(70, 104, 9), (33, 61, 130), (64, 5, 3), (1, 1, 2)])
def test_16_bit_tokens_are_routed_as_in_float32(kind, tokens, hidden, experts):
    """Scores, ids, weights and order have the bits of the same values in float32. Rows end inside 16 bytes."""
    rng = np.random.default_rng(hidden)
    wide = rng.standard_normal((tokens, -(-hidden // 8) * 8), dtype=np.float32)
    wide[:, : hidden // 3] *= 1e-6  # some are subnormal in float16
    wide[:, hidden:] = np.nan  # bytes after a row must be ignored
    x = narrow(wide, kind)
    twin = np.zeros((tokens, -(-hidden // 4) * 4), np.float32)
    twin[:, :hidden] = widen(x, kind)[:, :hidden]
    weight = rng.standard_normal((hidden, experts), dtype=np.float32)
    slot_of = rng.permutation(experts)
    ours = route(x, weight, 2, slot_of, "softmax_topk", kind=kind)
    theirs = route(twin, weight, 2, slot_of, "softmax_topk")
    assert ours["status"] == theirs["status"] == codes.OK
    for name in ("ids", "weights", "offset", "token", "position"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    scores = [got["scratch"][tokens * 16 :].view(np.float32)[: tokens * r.padded(experts)] for got in (ours, theirs)]
    both = [score.reshape(tokens, -1)[:, :experts].view(np.int32) for score in scores]
    np.testing.assert_array_equal(*both)
    check_packing(ours, slot_of, 2)


@pytest.mark.parametrize(("kind", "bad"), [("bf16", np.nan), ("f16", np.inf), ("f16", 1e6)])
def test_16_bit_tokens_that_are_not_finite_set_the_status(kind, bad):
    x = np.ones((70, 8), np.float32)
    x[66, 5] = bad
    with np.errstate(over="ignore"):
        x = narrow(x, kind)
    got = route(x, np.eye(8, dtype=np.float32), 2, kind=kind)
    assert got["status"] == codes.NOT_FINITE


@pytest.mark.parametrize("kind", r.KINDS)
def test_memory_traffic_of_the_scores(kind):
    """With whole tiles, copies are coalesced, without bank conflicts. Each byte is copied once per block of columns."""
    x = narrow(np.random.default_rng(6).standard_normal((64, 64), dtype=np.float32), kind)
    profile = route(x, np.eye(64, 128, dtype=np.float32), 1, kind=kind)["profile"]
    copies = profile.opcodes["cp.async"]
    assert copies["bank_conflicts"] == 0
    assert copies["sectors"] == copies["ideal_sectors"] == 2 * (x.nbytes + 64 * 64 * 4) // 32
