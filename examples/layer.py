"""The shortest useful program: `mpirun -n 2 python examples/layer.py`, any number of ranks."""

import numpy as np
from mpi4py import MPI

import aristos

rng = np.random.default_rng(0)
router, up, down = (rng.standard_normal(s, "f4") / 16 for s in [(256, 8), (8, 256, 1024), (8, 1024, 256)])
cfg = aristos.MoEConfig(hidden=256, ffn=1024, experts=8, top_k=2)
with aristos.MoE(cfg, comm=MPI.COMM_WORLD) as moe:
    moe.load(router=router, up=up, down=down)  # each rank keeps its own experts
    x = np.random.default_rng(moe.rank).standard_normal((512, 256), "f4")  # each rank brings tokens of its own
    y, stats = moe(x, return_stats=True)
    print(moe.rank, y.shape, "rows to each rank:", stats.rows_to_peer)
