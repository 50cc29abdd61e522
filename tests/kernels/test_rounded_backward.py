"""Gradients of one expert with rows of bfloat16, by the CPU kernels of each instruction set that this machine has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import tokens

from aristos import MoEConfig, _reference_backward, reference
from aristos.kernels.by_isa import module
from aristos.kernels.common import activations as act
from aristos.primitives import isa
from aristos.primitives.arithmetic import ExpertBlocks, ExpertWeights, TransposedWeights
from aristos.primitives.buffers import aligned

NAMES = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
# (rows, H, F): odd numbers, and numbers that need a second block of 32 rows, of 256 rows or of 512 columns of F
SHAPES = [(1, 1, 1), (7, 100, 520), (13, 1030, 40), (300, 33, 31)]
CLOSE = 2**-7  # each value is rounded a few times, at 2**-9
ISAS = [pytest.param(name, marks=[pytest.mark.slow] * (name != isa.chosen())) for name in isa.usable()]


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


class Gradients:
    """One expert's packed weights, and the gradients that calls add to."""

    def __init__(self, cfg: MoEConfig, used: str | None = None) -> None:
        self.cfg, used = cfg, used or isa.chosen()
        self.kernel = module("rounded_backward", used)
        element = module("elements", used).ELEMENTS["bfloat16"]
        padded = module("panels", used).padded
        made = reference.weights(replace(cfg, experts=1, top_k=1), 1)
        one = {name: array[0] for name, array in made.items() if name != "router"}
        self.one = {n: a if "bias" in n else rounded(a) for n, a in one.items()}
        self.packed = {n: element.pack_bias(a) if "bias" in n else element.pack(a) for n, a in self.one.items()}
        self.transposed = {n: element.pack(self.one[n], True) for n in NAMES[:3] if n in self.one}
        self.sums = {n: aligned((*a.shape[:-1], padded(a.shape[-1]))) for n, a in self.one.items()}
        for array in self.sums.values():
            array[:] = 0

    def __call__(self, x: np.ndarray, dy: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the gradients of these rows. Returns dx and dw."""
        kernel, cfg, rows = self.kernel, self.cfg, len(x)
        dx, dw = np.full((rows, cfg.hidden), np.nan, np.float32), np.full(rows, np.nan, np.float32)
        saved = aligned((kernel.saved_bytes(cfg.hidden, cfg.ffn, cfg.gated),), np.uint8)
        scratch = aligned((kernel.blocks_bytes(cfg.hidden, cfg.ffn),), np.uint8)
        saved[:], scratch[:] = 255, 255  # what the kernel does not write is NaN
        from_x, from_dy, to_dx = (a.ctypes.data + a.strides[0] * np.arange(rows) for a in (x, dy, dx))
        call = ExpertBlocks(
            rows=rows,
            x=from_x.ctypes.data,
            dy=from_dy.ctypes.data,
            w=w.ctypes.data,
            dx=to_dx.ctypes.data,
            dw=dw.ctypes.data,
            weights=ExpertWeights(*self.addresses(self.packed)),
            transposed=TransposedWeights(*self.addresses(self.transposed)[:3]),
            gradients=self.addresses(self.sums),
            activation=act.word(cfg.activation, cfg.limit, cfg.limit_after),
            hidden=cfg.hidden,
            ffn=cfg.ffn,
            carry=1,
            saved=saved.ctypes.data,
            scratch=scratch.ctypes.data,
        )
        kernel.expert_blocks(call)
        return dx, dw

    @staticmethod
    def addresses(arrays: dict[str, np.ndarray]) -> tuple[int, ...]:
        return tuple(arrays[n].ctypes.data if n in arrays else 0 for n in NAMES)

    def found(self) -> dict[str, np.ndarray]:
        """The gradients without the columns that pad them."""
        return {n: a[..., : self.one[n].shape[-1]] for n, a in self.sums.items()}


def rows_of(cfg: MoEConfig, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, dy = (rounded(tokens(cfg, rows, seed=seed)) for seed in (rows, rows + 1))
    return x, dy, np.random.default_rng(rows).standard_normal(rows).astype(np.float32)


def close(got: np.ndarray, right: np.ndarray) -> None:
    assert np.abs(got - right).max() <= CLOSE * np.abs(right).max()


@pytest.mark.parametrize("used", ISAS)
def test_gradients_are_those_of_the_float64_reference(used: str) -> None:
    for rows, hidden, ffn in SHAPES:
        for gated, limit, after in ((False, None, False), (True, None, False), (True, 0.25, True)):
            cfg = MoEConfig(
                hidden,
                ffn,
                experts=1,
                top_k=1,
                activation="silu",
                gated=gated,
                bias=rows != 7,
                limit=limit,
                limit_after=after,
            )
            layer, (x, dy, w) = Gradients(cfg, used), rows_of(cfg, rows)
            wide: dict[str, Any] = {n: np.float64(a) for n, a in layer.one.items()}
            right = _reference_backward.expert(cfg, np.float64(x), np.float64(w)[:, None] * dy, wide)
            dx, dw = layer(x, dy, w)
            close(dx, right.dx)
            close(dw, (right.y * dy).sum(axis=1))
            for name, gradient in layer.found().items():
                close(gradient, right.arrays[name])


def test_bits_of_a_row_depend_on_it_alone_and_gradients_are_cut_at_blocks_of_rows() -> None:
    cfg = MoEConfig(70, 45, experts=1, top_k=1, gated=True, bias=True, activation="silu")
    x, dy, w = rows_of(cfg, 85)
    whole, parts = Gradients(cfg), Gradients(cfg)
    dx, dw = whole(x, dy, w)
    for part in (slice(0, 32), slice(32, 64), slice(64, 85)):
        dx_part, dw_part = parts(x[part], dy[part], w[part])
        assert dx_part.tobytes() == dx[part].tobytes()
        assert dw_part.tobytes() == dw[part].tobytes()
    for name, gradient in whole.found().items():
        assert parts.found()[name].tobytes() == gradient.tobytes(), name
    other = Gradients(cfg)
    dx_part, _ = other(x[3:50], dy[3:50], w[3:50])
    assert dx_part.tobytes() == dx[3:50].tobytes()


@pytest.mark.parametrize("used", ISAS)
@pytest.mark.parametrize(("rows", "hidden", "ffn"), [(5, 37, 21), (70, 515, 600), (1100, 33, 18), (700, 41, 40)])
def test_stored_gradients_are_cut_at_blocks_of_rows_alone(used: str, rows: int, hidden: int, ffn: int) -> None:
    """One call for all rows, or calls for parts of matrices, give the bits of one call for each block of rows.

    Gradients are added to zeros or written, past the caches or not, in one pass or several.
    """
    cfg = MoEConfig(hidden, ffn, experts=1, top_k=1, activation="silu", gated=True, bias=True, max_tokens=rows)
    kernel = module("rounded_backward", used)
    step = kernel.place_bytes(hidden, ffn, True)
    values = np.random.default_rng(0).standard_normal((rows, step // 2), np.float32)
    store = aligned((rows, step // 2), np.uint16)
    store[:] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    store[:, -32:] = 0
    store[:, -32:-30] = values[:, :1].copy().view(np.uint16)  # the combine weight, float32
    places = store.ctypes.data + step * np.arange(rows)
    scratch = aligned((kernel.stored_bytes(hidden, ffn),), np.uint8)
    ends = {kernel.UP: hidden, kernel.GATE: hidden, kernel.DOWN: ffn}
    halves = [(which, *span) for which, end in ends.items() for span in ((end // 3, end), (0, end // 3))]
    blocks = [slice(at, min(rows, at + 32)) for at in range(0, rows, 32)]
    found = []
    for carry, runs, parts in (
        (1, blocks, [(kernel.ALL, 0, 0)]),
        (0, [slice(0, rows)], [(kernel.ALL, 0, 0)]),
        (0, [slice(0, rows)], halves),
    ):
        made = Gradients(cfg, used)
        for array in made.sums.values():
            array[:] = 0 if carry else np.nan
        for run in runs:
            at = np.ascontiguousarray(places[run])
            for part in parts:
                kernel.stored_gradients(
                    len(at), at.ctypes.data, made.addresses(made.sums), hidden, ffn, carry, scratch.ctypes.data, *part
                )
        found.append({name: array.tobytes() for name, array in made.found().items()})
    assert found[0] == found[1] == found[2]
