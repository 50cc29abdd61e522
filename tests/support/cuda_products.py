"""Products of rows, weights and biases by the shipped kernels on the PTX machine, and their float64 references."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from kept_ptx import ptx

import ptxsim
from aristos.kernels.common.activations import word
from aristos.kernels.cuda.catalogue import product_kernel
from aristos.kernels.cuda.epilogue import NONE
from aristos.kernels.cuda.pack import interleaved, narrow, outputs, pack, pack_bias, unpacked, widen
from aristos.reference import ACTIVATIONS, gated


@dataclass
class Product:
    """y = act(x up + b) or act(x gate + g) (x up + b): x [M, K], up and gate [K, N], float32 before rounding."""

    kind: str
    x: Any
    up: Any
    bias: Any = None
    gate: Any = None
    gate_bias: Any = None
    activation: str | None = None
    limit: float | None = None
    after: bool = False
    arrays: Any = field(default_factory=list)

    def weights(self):
        """The packed weight and its bias."""
        if self.gate is None:
            packed = pack(self.up, self.kind)
            return packed, pack_bias(self.bias, outputs(packed))
        packed = pack(interleaved(self.up, self.gate), self.kind)
        n = self.up.shape[1]
        biases = [np.zeros((1, n), np.float32) if b is None else b[None] for b in (self.bias, self.gate_bias)]
        return packed, pack_bias(interleaved(*biases)[0], outputs(packed))

    def run(self, tile, order=None, seed=0, check=True, peer=0, alone=None):
        """Run the kernel of a tile. Returns (y [M, N] in the arithmetic's type, profile).

        order: the order of the rows in the kernel's tables. peer: the device whose memory y lies in; the kernel runs on
        device 0. alone: the PTX of a kernel that replaces the tile's; one of its blocks computes all columns.
        """
        machine = ptxsim.Machine(devices=2, seed=seed, check=check)
        device = machine.device(0)
        x = narrow(self.x, self.kind)
        m, n = len(x), self.up.shape[1]
        order = np.arange(m) if order is None else order
        step = 16 // x.itemsize  # rows start at multiples of 16 bytes, and their space is a whole number of 16 bytes
        wide = np.full((m, -(-x.shape[1] // step) * step), 1, x.dtype)  # values after a row must not change results
        wide[:, : x.shape[1]] = x
        packed, bias = self.weights()
        d_x, d_w, d_b = device.array(wide), device.array(packed), device.array(bias)
        d_y = machine.device(peer).empty((m, -(-n // step) * step), x.dtype)
        a_rows = device.array(d_x.ptr + order.astype(np.int64) * wide.strides[0])
        c_rows = device.array(d_y.ptr + order.astype(np.int64) * d_y.strides[0])
        code = NONE if self.activation is None else word(self.activation, self.limit, self.after)
        text, entry = (alone, None) if alone else ptx(product_kernel(tile), machine.arch)
        device.launch(
            text,
            (-(-m // tile.m), 1 if alone else outputs(packed) // tile.n),
            tile.threads,
            a_rows.ptr,
            c_rows.ptr,
            m,
            d_w.ptr,
            unpacked(packed).strides[0],
            d_b.ptr,
            n,
            x.shape[1] * x.itemsize,
            code,
            int(self.gate is not None),
            shared=tile.shared_bytes,
            entry=entry,
        )
        reports = machine.run()
        assert not reports, [str(report) for report in reports]
        return d_y.copy_to_host()[:, :n], machine.profile()

    def reference(self):
        """The product of the rounded operands in float64. Its sums are not rounded."""

        def rounded(values):
            return widen(narrow(values, self.kind), self.kind).astype(np.float64)

        def side(weight, bias):
            return rounded(self.x) @ rounded(weight) + (0 if bias is None else bias.astype(np.float64))

        up = side(self.up, self.bias)
        if self.gate is not None:
            assert self.activation is not None
            return gated(self.activation, self.limit, side(self.gate, self.gate_bias), up, self.after)
        return up if self.activation is None else ACTIVATIONS[self.activation](up)


def drawn(kind, m, k, n, gated=False, bias=True, activation=None, limit=None, after=False, seed=0):
    """A product of random numbers."""
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    up, gate = numbers(k, n) / np.float32(k**0.5), numbers(k, n) / np.float32(k**0.5)
    return Product(
        kind,
        numbers(m, k),
        up,
        numbers(n) if bias else None,
        gate if gated else None,
        numbers(n) if gated and bias else None,
        activation,
        limit,
        after,
    )
