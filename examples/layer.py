"""The shortest useful program: `python examples/layer.py`, or `mpirun -n 2 python examples/layer.py`."""

import numpy as np
from mpi4py import MPI

from aristos import MoE, MoEConfig, reference

cfg = MoEConfig(hidden=256, ffn=1024, experts=8, top_k=2, max_tokens=128)
weights = reference.weights(cfg, seed=0)  # router [H, E], up [E, H, F], down [E, F, H]; each rank keeps its experts
x = np.random.default_rng(MPI.COMM_WORLD.rank).standard_normal((128, cfg.hidden), dtype=np.float32)
with MoE(cfg, comm=MPI.COMM_WORLD) as moe:
    moe.load(**weights)
    y = moe(x)
    error = reference.error(y, reference.moe(cfg, x, **weights))
    print(f"rank {moe.rank} of {moe.world}: y {y.shape} {y.dtype}, {error:.0e} from the float64 reference")
