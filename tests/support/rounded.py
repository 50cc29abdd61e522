"""An expert of kernels with panels of 32 columns: random weights, kernel calls, and a float64 reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from aristos import reference
from aristos.kernels.common import activations
from aristos.kernels.cpu import elements, operands, rounded_expert
from aristos.kernels.cpu.target import ISA
from aristos.primitives.arithmetic import DownColumns, ExpertRows, ExpertWeights, UpColumns
from aristos.primitives.buffers import aligned

DTYPES = ("bfloat16", "float16")
SPLIT = ("float32",) if ISA == "amx" else ()  # types that have precision="high"


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def rounded(values: np.ndarray, name: str) -> np.ndarray:
    """Values of a dtype, by NumPy's or ml_dtypes' own rounding."""
    return values.astype(np.float32).astype(numpy_dtype(name))


def addresses(m: np.ndarray) -> np.ndarray:
    return m.ctypes.data + m.strides[0] * np.arange(len(m))


class Expert:
    """An expert with SiLU."""

    def __init__(self, dtype: str, hidden: int, ffn: int, gated: bool, bias: bool) -> None:
        self.element, self.dtype = elements.element_type(dtype, "high" if dtype == "float32" else "highest"), dtype
        self.hidden, self.ffn, self.gated = hidden, ffn, gated
        rng = np.random.default_rng(hidden + ffn)
        shapes = {"up": (hidden, ffn), "gate": (hidden, ffn), "down": (ffn, hidden)}
        self.weights = {
            name: rounded(rng.standard_normal(shape) / np.sqrt(shape[0]), dtype)
            for name, shape in shapes.items()
            if gated or name != "gate"
        }
        self.biases = {
            f"{name}_bias": rng.standard_normal(w.shape[1]).astype(np.float32) if bias else None
            for name, w in self.weights.items()
        }
        self._rng = rng
        self._pack()

    def copy_from(self, other: Expert) -> None:
        """Take the weights of an expert with a narrower hidden dimension, with zeros beside them."""
        for name, w in self.weights.items():
            theirs = other.weights[name]
            w[:] = 0
            w[: theirs.shape[0], : theirs.shape[1]] = theirs
        for name, b in other.biases.items():
            if b is not None:
                mine = self.biases[name]
                assert mine is not None
                mine[:] = 0
                mine[: len(b)] = b
        self._pack()

    def _pack(self) -> None:
        self._packed: list[np.ndarray | None] = [
            None if (w := self.weights.get(n)) is None else self.element.pack(w) for n in ("up", "gate", "down")
        ]
        for name in ("up_bias", "gate_bias", "down_bias"):
            b = self.biases.get(name)
            self._packed.append(None if b is None else self.element.pack_bias(b))
        self._at = ExpertWeights(*(0 if p is None else p.ctypes.data for p in self._packed))
        self._code = activations.word("silu", None)

    def rows(self, m: int) -> np.ndarray:
        """[m, hidden] random rows."""
        return rounded(self._rng.standard_normal((m, self.hidden)), self.dtype)

    def _out(self, m: int) -> np.ndarray:
        y = aligned((m, elements.up(self.hidden) * self.element.nbytes // 2), np.uint16)
        y[:] = 0x7FFF
        return y

    def _result(self, y: np.ndarray) -> np.ndarray:
        end = self.hidden * self.element.nbytes // 2
        if self.dtype == "float32":
            assert (y[:, end:] == 0x7FFF).all(), "written beyond a row"
        return np.ascontiguousarray(y[:, :end]).view(numpy_dtype(self.dtype))

    def _scratch(self, m: int) -> np.ndarray:
        nbytes = rounded_expert.scratch_bytes(self.element.code, m, self.hidden, self.ffn, self.gated)
        return aligned((nbytes,), np.uint8)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[m, hidden] -> [m, hidden], by the kernels."""
        y, scratch = self._out(len(x)), self._scratch(len(x))
        from_x, to_y = addresses(x), addresses(y)
        call = ExpertRows(
            rows=len(x),
            x=from_x.ctypes.data,
            y=to_y.ctypes.data,
            weights=self._at,
            activation=self._code,
            hidden=self.hidden,
            ffn=self.ffn,
            scratch=scratch.ctypes.data,
            wire=0,
            kept=0,
        )
        rounded_expert.expert_rows(self.element.code, call)
        return self._result(y)

    def by_columns(self, x: np.ndarray, share: int) -> np.ndarray:
        """The outputs, computed as shares of columns, the last share first."""
        m, code = len(x), self.element.code
        y, scratch = self._out(m), self._scratch(m)
        kept = aligned((rounded_expert.activation_bytes(code, m, self.ffn),), np.uint8)
        from_x, to_y = addresses(x), addresses(y)
        for first in reversed(range(0, self.ffn, share)):
            up = UpColumns(
                rows=m,
                x=from_x.ctypes.data,
                activations=kept.ctypes.data,
                weights=self._at,
                activation=self._code,
                hidden=self.hidden,
                ffn=self.ffn,
                first=first,
                columns=min(share, self.ffn - first),
                scratch=scratch.ctypes.data,
                wire=0,
                kept=0,
            )
            rounded_expert.up_columns(code, up)
        for first in reversed(range(0, self.hidden, share)):
            down = DownColumns(
                rows=m,
                activations=kept.ctypes.data,
                y=to_y.ctypes.data,
                weights=self._at,
                ffn=self.ffn,
                first=first,
                last=min(self.hidden, first + share),
                scratch=scratch.ctypes.data,
                wire=0,
            )
            rounded_expert.down_columns(code, down)
        return self._result(y)

    def sums(self, x: np.ndarray, panel: int, start: np.ndarray | None = None) -> np.ndarray:
        """[m, 32] float32: x times one packed panel at address `panel`, added to `start`."""
        m, k = x.shape
        code, from_x = self.element.code, addresses(x)
        a = aligned((operands.operand_bytes(code, m, k),), np.uint8)
        spare, total = aligned((operands.SPARE_BYTES,), np.uint8), aligned((m, 32))
        total[:] = np.nan if start is None else start
        operands.begin(spare.ctypes.data)
        operands.pack_operand(code, m, from_x.ctypes.data, k, a.ctypes.data)
        at = panel, total.ctypes.data, int(start is not None), panel, spare.ctypes.data
        operands.panel_sums(code, m, a.ctypes.data, k, *at)
        operands.end()
        return total

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The outputs in float64. Hidden activations and outputs are each rounded once, to the dtype."""
        w = {name: value.astype("f8") for name, value in self.weights.items()}
        bias = {name: 0.0 if value is None else value.astype("f8") for name, value in self.biases.items()}
        up = x.astype("f8") @ w["up"] + bias["up_bias"]
        act = reference.ACTIVATIONS["silu"]
        h = act(x.astype("f8") @ w["gate"] + bias["gate_bias"]) * up if self.gated else act(up)
        out: np.ndarray = rounded(rounded(h, self.dtype).astype("f8") @ w["down"] + bias["down_bias"], self.dtype)
        return out.astype("f8")
