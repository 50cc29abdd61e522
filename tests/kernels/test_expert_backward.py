"""Gradients of one expert by the CPU kernels equal the float64 reference, and have equal bits however rows are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from aristos import MoEConfig, _reference_backward, reference
from aristos.config import ACTIVATIONS
from aristos.kernels.common import activations as act
from aristos.kernels.common.backward_records import Expert, Rows, Sums
from aristos.kernels.cpu import expert_backward as kernel
from aristos.kernels.cpu.elements import ELEMENTS
from aristos.kernels.cpu.panels import padded
from aristos.primitives.arithmetic import ExpertWeights, TransposedWeights
from aristos.primitives.buffers import aligned

NAMES = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
FLOAT32 = ELEMENTS["float32"]
SHAPES = [(1, 1, 1), (5, 7, 520), (7, 100, 130), (13, 1030, 40), (256, 48, 96), (300, 33, 31)]
GATES = [(False, None, False), (True, None, False), (True, 0.5, False), (True, 0.25, True)]  # gated, limit, after


def expert(cfg: MoEConfig) -> dict[str, np.ndarray]:
    made = reference.weights(replace(cfg, experts=1, top_k=1), 1)
    return {name: array[0] for name, array in made.items() if name != "router"}


class Gradients:
    """One expert's packed weights, and the gradients that calls add to."""

    def __init__(self, cfg: MoEConfig, one: dict[str, np.ndarray]) -> None:
        self.cfg, self.code = cfg, act.word(cfg.activation, cfg.limit, cfg.limit_after)
        pack, bias = FLOAT32.pack, FLOAT32.pack_bias
        self.packed = {n: bias(a) if "bias" in n else pack(a) for n, a in one.items()}
        self.transposed = {n: pack(one[n], True) for n in NAMES[:3] if n in one}
        self.sums = {n: aligned((*a.shape[:-1], padded(a.shape[-1]))) for n, a in one.items()}
        for array in self.sums.values():
            array[:] = 0

    def __call__(self, x: np.ndarray, dy: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the gradients of these rows, at most MOST_ROWS. Returns dx and dw."""
        m, (hidden, ffn), gated = len(x), (self.cfg.hidden, self.cfg.ffn), self.cfg.gated
        dx, dw = aligned((m, padded(hidden))), np.full(m, np.nan, np.float32)
        saved = aligned((m, kernel.kept_bytes(ffn, gated)), np.uint8)
        nbytes = max(kernel.scratch_bytes(m, hidden, ffn), kernel.gradient_bytes(m, hidden, ffn))
        scratch = aligned((nbytes,), np.uint8)
        saved[:], scratch[:], dx[:] = 255, 255, np.nan  # what the kernel does not write is NaN
        tables = [a.ctypes.data + a.strides[0] * np.arange(m) for a in (x, dy, dx, saved)]
        from_x, from_dy, to_dx, kept = (table.ctypes.data for table in tables)
        weights, transposed = self.addresses(self.packed), self.addresses(self.transposed)[:3]
        expert = Expert(ExpertWeights(*weights), TransposedWeights(*transposed), self.code, hidden, ffn)
        rows = Rows(m, from_x, from_dy, w.ctypes.data, to_dx, dw.ctypes.data, kept, 0)
        kernel.expert_rows(rows, expert, scratch.ctypes.data, 0)
        kernel.weight_gradients(rows, Sums(self.addresses(self.sums), hidden, ffn, 1, 0), scratch.ctypes.data)
        return dx[:, :hidden], dw

    @staticmethod
    def addresses(arrays: dict[str, np.ndarray]) -> tuple[int, ...]:
        return tuple(arrays[n].ctypes.data if n in arrays else 0 for n in NAMES)

    def found(self) -> dict[str, np.ndarray]:
        """The gradients without the columns that pad them."""
        wide = {"up": self.cfg.ffn, "gate": self.cfg.ffn, "down": self.cfg.hidden}
        return {n: a[..., : wide[n.removesuffix("_bias")]] for n, a in self.sums.items()}


def rows_of(cfg: MoEConfig, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, dy = tokens(cfg, rows, seed=rows), tokens(cfg, rows, seed=rows + 1)
    return x, dy, np.random.default_rng(rows).standard_normal(rows).astype(np.float32)


def stored(rows: int, hidden: int, ffn: int, gated: bool) -> np.ndarray:
    """Rows in a store, filled with random numbers."""
    store = aligned((rows, kernel.place_bytes(hidden, ffn, gated) // 4))
    store[:] = np.random.default_rng(0).standard_normal(store.shape)
    return store


def close(got: np.ndarray, right: np.ndarray) -> None:
    assert np.abs(got - right).max() <= 1e-5 * np.abs(right).max() + 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_the_float64_reference(activation):
    for rows, hidden, ffn in SHAPES:
        for gated, limit, after in GATES[ACTIVATIONS[activation].gate_only :]:
            cfg = MoEConfig(
                hidden,
                ffn,
                experts=1,
                top_k=1,
                activation=activation,
                gated=gated,
                bias=rows != 7,
                limit=limit,
                limit_after=after,
            )
            one, (x, dy, w) = expert(cfg), rows_of(cfg, rows)
            wide = {n: np.float64(a) for n, a in one.items()}
            right = _reference_backward.expert(cfg, np.float64(x), np.float64(w)[:, None] * dy, wide)
            layer = Gradients(cfg, one)
            parts = [layer(x[i : i + 256], dy[i : i + 256], w[i : i + 256]) for i in range(0, rows, 256)]
            close(np.concatenate([dx for dx, _ in parts]), right.dx)
            close(np.concatenate([dw for _, dw in parts]), (right.y * dy).sum(axis=1))
            for name, gradient in layer.found().items():
                close(gradient, right.arrays[name])


@settings(max_examples=20)
@given(st.integers(2, 60), st.integers(1, 70), st.integers(1, 70), st.data())
def test_bits_do_not_depend_on_where_rows_are_cut(rows, hidden, ffn, data):
    cfg = MoEConfig(hidden, ffn, experts=1, top_k=1, gated=True, bias=True, activation="silu")
    one, (x, dy, w) = expert(cfg), rows_of(cfg, rows)
    whole, parts = Gradients(cfg, one), Gradients(cfg, one)
    dx, dw = whole(x, dy, w)
    cut = data.draw(st.integers(1, rows - 1))
    for part in (slice(0, cut), slice(cut, rows)):
        dx_part, dw_part = parts(x[part], dy[part], w[part])
        assert dx_part.tobytes() == dx[part].tobytes()
        assert dw_part.tobytes() == dw[part].tobytes()
    for name, gradient in whole.found().items():
        assert parts.found()[name].tobytes() == gradient.tobytes(), name


def test_a_gradient_is_one_chain_in_order_of_rows():
    """The sum of these numbers depends on the order. Fused multiply-adds are written as exact products in float64."""
    cfg = MoEConfig(1, 1, experts=1, top_k=1, activation="relu")
    one: dict[str, Any] = {"up": np.ones((1, 1), "f4"), "down": np.ones((1, 1), "f4")}
    x = np.float32([[3.0], [1e-8], [1e8], [0.1], [7.0]])
    dy = np.float32([[0.7], [1e9], [-3e-9], [1e7], [0.3]])
    layer, total = Gradients(cfg, one), np.float32(0)
    layer(x, dy, np.ones(5, np.float32))
    for a, b in zip(x[:, 0], dy[:, 0]):
        total = np.float32(np.float64(total) + np.float64(a) * np.float64(b))
    assert layer.found()["up"][0, 0] == total


@pytest.mark.parametrize("gated", [False, True])
def test_parts_of_stored_gradients_are_those_of_the_whole(gated):
    """Calls for some rows of one matrix, in any order, give the bits of one call for all matrices.

    Biases are added once.
    """
    cfg = MoEConfig(hidden=37, ffn=21, experts=1, top_k=1, activation="silu", gated=gated, bias=True, max_tokens=300)
    one, (hidden, ffn), rows = expert(cfg), (37, 21), 300
    store = stored(rows, hidden, ffn, gated)
    places = store.ctypes.data + store.strides[0] * np.arange(rows)
    scratch = aligned((kernel.stored_bytes(hidden, ffn),), np.uint8)
    ends = {kernel.UP: hidden, kernel.GATE: hidden, kernel.DOWN: ffn}
    cut = [(which, *span) for which, end in ends.items() for span in ((end // 3, end), (0, end // 3))]
    found = []
    for parts in ([(kernel.ALL, 0, 0)], cut):
        made = Gradients(cfg, one)
        for part in parts:
            to = made.addresses(made.sums)
            kernel.stored_gradients(rows, places.ctypes.data, to, hidden, ffn, 1, scratch.ctypes.data, *part)
        found.append({name: array.tobytes() for name, array in made.found().items()})
    assert found[0] == found[1]


@pytest.mark.parametrize(("rows", "hidden", "ffn"), [(5, 37, 21), (9, 515, 600), (1100, 33, 18)])
def test_gradients_that_are_written_are_those_added_to_zeros(rows, hidden, ffn):
    """Gradients are small, or large enough to be written past the caches, or have rows for two passes."""
    cfg = MoEConfig(hidden, ffn, experts=1, top_k=1, activation="silu", gated=True, bias=True, max_tokens=rows)
    store = stored(rows, hidden, ffn, True)
    places = store.ctypes.data + store.strides[0] * np.arange(rows)
    scratch = aligned((kernel.stored_bytes(hidden, ffn),), np.uint8)
    found = []
    for carry in (1, 0):
        made = Gradients(cfg, expert(cfg))
        for array in made.sums.values():
            array[:] = 0 if carry else np.nan
        to = made.addresses(made.sums)
        kernel.stored_gradients(rows, places.ctypes.data, to, hidden, ffn, carry, scratch.ctypes.data, kernel.ALL, 0, 0)
        found.append({name: array.tobytes() for name, array in made.found().items()})
    assert found[0] == found[1]
