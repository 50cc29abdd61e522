"""Experts of your own: rows travel to the ranks that hold their experts and are computed there; outputs travel back.

mpirun -n 2 python examples/exchange.py
"""

import numpy as np
from mpi4py import MPI

import aristos

comm = MPI.COMM_WORLD
rng = np.random.default_rng(comm.rank)
hidden, experts, top_k = 64, 8, 2
scales = np.linspace(0.5, 2, experts, dtype=np.float32)  # this program's expert e computes y = tanh(scales[e] x)
with aristos.Exchange(comm, hidden=hidden, experts=experts, top_k=top_k, max_tokens=512) as exchange:
    x = rng.standard_normal((512, hidden), dtype=np.float32)
    ids = np.argsort(rng.random((512, experts)), axis=1)[:, :top_k]
    weights = np.full((512, top_k), 1 / top_k, np.float32)
    rows, h = exchange.dispatch(x, ids)  # [rows, H], ordered by expert, then by source rank
    outputs, start = np.empty_like(rows), 0
    for expert, counts in zip(h.experts, h.counts):  # counts: [ranks], rows of this expert from each of them
        end = start + int(counts.sum())
        outputs[start:end] = np.tanh(scales[expert] * rows[start:end])
        start = end
    y = exchange.combine(outputs, h, weights)
expected = np.mean([np.tanh(scales[ids[:, i], None] * x) for i in range(top_k)], axis=0)
assert np.allclose(y, expected, atol=1e-6)
print(f"rank {comm.rank}: {h.rows} rows from {comm.size} ranks for experts {h.experts}")
