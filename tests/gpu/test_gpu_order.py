"""A stress test of memory order between GPUs: one block publishes the rows of many blocks to a peer.

The kernels are those of cuda_order.py.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[cuda12]'")
from aristos.substrate.cuda.device import CudaDevice, count

if not count():
    pytest.skip("no GPU: the driver is missing or shows none", allow_module_level=True)
from cuda_order import CHECK, WRITE

from aristos.transport.ipc import IpcWindow

LIMIT, ROUNDS, ROW_BYTES, LINE = 2_000_000_000, 20_000, 4096, 128
MOST_BLOCKS = 65


@pytest.mark.ranks(2, timeout=300)
def test_rows_arrive_before_the_word_of_another_block(comm):
    """Rank 0's GPU stores rows, and rank 1's GPU checks every word of every round.

    If the ranks have two GPUs, the rows cross NVLink or PCIe.
    """
    gpu = CudaDevice.find(comm.rank)
    blocks = min(MOST_BLOCKS, 1 + gpu.sms // 2)  # all resident, also where the ranks share a GPU
    nbytes = (blocks - 1) * ROW_BYTES
    window = IpcWindow(comm, gpu, nbytes + LINE)
    own = gpu.allocate(nbytes + 3 * LINE)
    late, counted = own + nbytes, own + nbytes + LINE
    comm.Barrier()
    word = window.base[1] + nbytes
    back = window.base[0] + nbytes
    rounds = ROUNDS if len(set(comm.allgather(gpu.uuid))) == 2 else 50  # ranks on one GPU are time-sliced
    if comm.rank == 0:
        gpu.launch(gpu.load(WRITE), blocks, 0, own, window.base[1], word, back, counted, ROW_BYTES, rounds, LIMIT, late)
    else:
        gpu.launch(gpu.load(CHECK), 1, 0, window.base[1], word, back, nbytes, rounds, LIMIT, late, counted)
    gpu.synchronize()
    found = np.zeros(2 * LINE // 8, np.int64)
    gpu.copy_out(found, late)
    comm.Barrier()
    window.close()
    gpu.free(own)
    assert found[0] == 0, f"{found[0]} waits ran out"
    if comm.rank == 1:
        assert found[LINE // 8] == 0, f"{found[LINE // 8]} words were not those of their round"
