"""Routings of the benchmark: generated ones, recorded traces, and files that are no trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aristos.bench import (
    routing,
)
from aristos.errors import InputError

pytestmark = pytest.mark.parallel


@given(st.sampled_from(routing.GENERATORS), st.integers(0, 50), st.integers(1, 20), st.data())
def test_generated_routings_are_valid(name, tokens, experts, data):
    top_k = data.draw(st.integers(1, experts))
    local = data.draw(st.integers(1, experts))
    ids = routing.generate(name, np.random.default_rng(0), tokens, experts, top_k, local)
    weights = routing.combine_weights(np.random.default_rng(1), ids)
    assert ids.shape == weights.shape == (tokens, top_k)
    assert ids.size == 0 or (ids.min() >= -1 and ids.max() < experts)
    for row in ids:
        taken = row[row >= 0]
        assert len(set(taken)) == len(taken) >= 1
    if tokens:
        assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights[ids < 0] == 0).all()
    if name == "one":
        assert ids.size == 0 or ids.max() < local


def test_zipf_is_skewed_and_uniform_is_not():
    rng = np.random.default_rng(0)
    for make, low, high in ((routing.uniform, 1.0, 1.2), (routing.zipf, 1.4, 8.0)):
        load = np.bincount(make(rng, 4000, 16, 2).ravel(), minlength=16)
        assert low <= routing.busiest_over_mean(load) <= high


def trace_file(tmp_path, **changed):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((30, 3, 8)), axis=-1)[..., :2].astype(np.uint8)
    arrays = {"expert_ids": ids, "gate_weight_1e4": np.full(ids.shape, 5000, np.uint16), "seq_lens": [10, 5, 15]}
    arrays |= changed
    path = tmp_path / "trace.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path), ids


def test_a_trace_is_read_and_spread_over_ranks(tmp_path):
    path, ids = trace_file(tmp_path)
    trace = routing.load(path)
    assert (trace.layers, trace.top_k, trace.experts) == (3, 2, 8)
    got, weights = trace.at(trace.prefill(rank=1, world=2, tokens=4, batch=0), layer=2)
    assert (got == ids[4:8, 2]).all()
    assert weights == pytest.approx(0.5)
    assert list(trace.prefill(0, 1, 20, 1)) == [*range(20, 30), *range(10)]
    assert [list(trace.decode(rank, 2, 0)) for rank in (0, 1)] == [[0, 15], [10]]
    assert [list(trace.decode(rank, 2, 7)) for rank in (0, 1)] == [[7, 22], []]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"expert_ids": None}, "must hold expert_ids"),
        ({"expert_ids": np.zeros((2, 3))}, "must hold expert_ids"),
        ({"seq_lens": [1, 2]}, "sum to 30 tokens, got 3"),
        ({"gate_weight_1e4": np.zeros((1, 2, 3), np.uint16)}, "shape of expert_ids"),
        ({"gate_weight_1e4": np.full((30, 3, 2), "x")}, "must be numbers"),
        ({"gate_weight_1e4": np.full((30, 3, 2), np.nan)}, "must be finite in float32, got nan"),
        ({"seq_lens": [40, -10]}, "at least 0, got -10"),
        ({"seq_lens": [[30]]}, r"integers \[sequences\], got int64 \[1, 1\]"),
        ({"seq_lens": [30.0]}, r"integers \[sequences\], got float64"),
        ({"seq_lens": np.array([2**63, 2**63, 30], np.uint64)}, "sum to 30 tokens"),
        ({"expert_ids": np.full((30, 3, 2), [0, -2])}, r"0\.\.65535, or -1 .*, got -2\.\.0"),
        ({"expert_ids": np.full((30, 3, 2), [0, 65536])}, r"got 0\.\.65536"),
        ({"expert_ids": np.full((30, 3, 2), -1)}, r"got -1\.\.-1"),
        ({"expert_ids": np.full((30, 3, 2), 5)}, r"distinct within a token, got \[5, 5\] for token 0 in layer 0"),
    ],
)
def test_the_error_of_a_wrong_trace_names_the_fault(tmp_path, changed, words):
    path, _ = trace_file(tmp_path, **changed)
    with pytest.raises(InputError, match=words):
        routing.load(path)


def counts_file(tmp_path, **changed):
    rng = np.random.default_rng(1)
    lengths = np.array([7, 1, 12])
    skewed = [[rng.random((length, 6)) + np.arange(6) / 3 for _ in range(2)] for length in lengths]
    chosen = [[np.argsort(layer, axis=-1)[:, :2].ravel() for layer in each] for each in skewed]
    counts = np.array([[np.bincount(layer, minlength=6) for layer in each] for each in chosen], np.uint16)
    arrays = {"counts": counts, "tokens": lengths} | changed
    np.savez(tmp_path / "counts.npz", **arrays)
    return str(tmp_path / "counts.npz"), counts


def test_a_trace_made_of_counts_has_these_counts(tmp_path):
    path, counts = counts_file(tmp_path)
    trace = routing.load(path)
    assert (trace.layers, trace.top_k, list(trace.lengths)) == (2, 2, [7, 1, 12])
    for each, ids in zip(counts, np.split(trace.ids, [7, 8])):
        for layer in range(2):
            assert list(np.bincount(ids[:, layer].ravel(), minlength=6)) == list(each[layer])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokens": np.array([7, 1, 13])}, "must sum to its tokens times k"),
        ({"tokens": np.array([7, 0, 12])}, "integers above 0"),
        ({"tokens": np.array([7, 1])}, r"tokens int64 \[2\]"),
        ({"counts": np.zeros((3, 2, 6))}, "counts float64"),
        ({"counts": np.zeros((3, 2, 6), int)}, "with the same k in all"),
        ({"counts": np.full((3, 2, 1), [[[14]], [[2]], [[24]]])}, r"in 0\.\.tokens of its sequence, got 2\.\.24"),
    ],
)
def test_the_error_of_wrong_counts_names_the_fault(tmp_path, changed, words):
    path, _ = counts_file(tmp_path, **changed)
    with pytest.raises(InputError, match=words):
        routing.load(path)


def single_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 3, 4), int))


def damaged(path):
    np.savez_compressed(path, expert_ids=np.arange(3000).reshape(10, 3, 100))
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_text("no"),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"PK\3\4"),
        single_array,
        damaged,
    ],
)
def test_a_file_that_is_no_trace_is_an_input_error(tmp_path, make):
    path = tmp_path / "trace.npz"
    make(path)
    with pytest.raises(InputError, match=r"cannot read the routing trace .*trace\.npz: ."):
        routing.load(str(path))


def test_choices_not_taken_may_repeat(tmp_path):
    path, _ = trace_file(
        tmp_path, expert_ids=np.full((30, 3, 2), [-1, -1]) + (np.arange(30) == 0)[:, None, None] * [3, 4]
    )
    assert routing.load(path).experts == 4
