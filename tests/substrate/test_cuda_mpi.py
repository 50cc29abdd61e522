"""`MoE(backend="cuda")` over real MPI: the package's kernels and host code, IPC within nodes, and MPI between nodes.

Each rank is a process with a device of the PTX machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import leftovers
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from cases import same, tokens
from mpi import inner_folder
from process_gpu import gpus

import aristos
from aristos import reference
from aristos.errors import AristosError, ClosedError, InputError, PeerInputError

pytestmark = pytest.mark.slow

CFG = aristos.MoEConfig(hidden=32, ffn=40, experts=5, top_k=2, activation="silu", gated=True, bias=True, max_tokens=24)
W = reference.weights(CFG)


def shared_folder() -> Path:
    found = inner_folder()
    assert found is not None
    return found


TAKING = [(2, "no node"), (2, "one node"), (2, "all nodes"), (4, "one node")]


@pytest.mark.parametrize(
    ("world", "taking"), [pytest.param(n, which, marks=pytest.mark.ranks(n, timeout=400)) for n, which in TAKING]
)
@pytest.mark.parallel
def test_nodes(comm, world, taking):
    """Nodes have one GPU or two. Outputs equal the float64 reference, with equal bits for every division into nodes.

    taking: the nodes whose MPI puts from device memory.
    """
    takes = taking == "all nodes" or (taking == "one node" and comm.rank < world // 2)
    with gpus(comm, shared_folder(), takes=takes) as gpu:
        found = []
        for per_node in (world, world // 2):
            with aristos.MoE(CFG, comm, backend="cuda", ranks_per_node=per_node) as moe:
                moe.load(**W)
                for n, count in enumerate((11, 0, 24)):
                    x = tokens(CFG, (count + 5 * comm.rank) % 25, seed=10 * n + comm.rank)
                    y = moe(x)
                    assert reference.error(y, reference.moe(CFG, x, **W)) < 1e-5
                    found.append(y)
                bad = tokens(CFG, 7, seed=1)
                bad[3, 4] = np.nan
                with pytest.raises(InputError if comm.rank == 0 else PeerInputError, match="finite"):
                    moe(bad if comm.rank == 0 else bad[:2])
                found.append(moe(bad[:2]))
            assert (gpu.put_from > 0) == (takes and per_node < world)
        for one, other in zip(found[:4], found[4:]):
            assert same(one, other)


@pytest.mark.parallel
@pytest.mark.ranks(2, timeout=300, isolated=True)
@pytest.mark.parametrize("per_node", [1, 2])
def test_a_rank_that_closes_while_another_calls(comm, per_node):
    """Both ranks raise at once, before the timeout."""
    hooks = leftovers.registered()
    with gpus(comm, shared_folder()), mock.patch("aristos.transport.group.Group.abort_at_exit"):
        moe = aristos.MoE(CFG, comm, backend="cuda", ranks_per_node=per_node, timeout=100)
        moe.load(**W)
        x = tokens(CFG, 5, seed=comm.rank)
        moe(x)
        comm.Barrier()
        began = time.monotonic()
        if comm.rank == 0:
            moe.close()
            with pytest.raises(ClosedError):
                moe(x)
        else:
            with pytest.raises(AristosError, match="rank 0 gave up in epoch 2"):
                moe(x)
        assert time.monotonic() - began < 60
    leftovers.run_since(hooks)  # a rank that failed cannot close its layer
