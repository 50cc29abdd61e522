"""Optimizer steps by compiled kernels have the bits of NumPy's operations in float32, made one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from aristos.layer.updates import Updates
from aristos.primitives import isa
from aristos.trainable import AdamScales, MomentumScales

SHAPES = [(), (1,), (37,), (5, 33), (3, 4, 7), (0, 5)]
F = np.float32


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_have_the_bits_of_numpy(shape, gaps):
    rng = np.random.default_rng(len(shape))
    wide = (*shape[:-1], shape[-1] + 3) if shape else shape

    def drawn() -> np.ndarray:
        made = rng.standard_normal(wide if gaps else shape).astype(F)
        return made[..., : shape[-1]] if shape else made

    w, g, m, v = (drawn() for _ in range(4))
    v[...] = np.abs(v)
    old = [array.copy() for array in (w, m, v)]
    by, keep, first, new, second, fresh, past, eps, rate = (
        F(a) for a in (0.3, 0.99, 0.9, 0.1, 0.999, 0.001, 0.002, 1e-8, 0.01)
    )
    updates = Updates(isa.chosen())
    updates.adam(w, g, m, v, AdamScales(by, keep, first, new, second, fresh, past, eps, rate))
    value = by * g
    mean, square = old[1] * first + new * value, old[2] * second + fresh * (value * value)
    right = old[0] * keep - rate * (mean / (np.sqrt(square / past) + eps))
    for got, wanted in zip((w, m, v), (right, mean, square)):
        assert got.tobytes() == np.asarray(wanted, F).tobytes()
    old = [array.copy() for array in (w, m)]
    updates.momentum(w, g, m, MomentumScales(by, keep, first, rate))
    velocity = old[1] * first + by * g
    assert m.tobytes() == np.asarray(velocity, F).tobytes()
    assert w.tobytes() == np.asarray(old[0] * keep - rate * velocity, F).tobytes()
    assert updates.square_sum(g) == pytest.approx(np.square(g, dtype="f8").sum(), rel=1e-14)
