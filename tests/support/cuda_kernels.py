"""Two small kernels for tests: each thread of `fill` stores a word; `reverse` needs much shared memory."""

from __future__ import annotations

from aristos.kernels.cuda.catalogue import Kernel
from aristos.kernels.cuda.compiler import cuda, types
from aristos.primitives import memory as mem

WORDS = 8192  # 64 KB of shared memory, more than a launch gets without a request


@cuda.jit
def fill(address, count, value):
    i = cuda.grid(1)
    if i < count:
        mem.store(address + 8 * i, value + i)


@cuda.jit
def reverse(source, target):
    """target[i] = source[WORDS - 1 - i], in words, through the block's shared memory."""
    shared = cuda.shared.array(0, types.int64)
    for i in range(cuda.threadIdx.x, WORDS, cuda.blockDim.x):
        shared[i] = mem.load(source + 8 * i)
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, WORDS, cuda.blockDim.x):
        mem.store(target + 8 * i, shared[WORDS - 1 - i])


FILL = Kernel("fill", fill, (types.int64,) * 3, 128, 0, 1)
REVERSE = Kernel("reverse", reverse, (types.int64,) * 2, 256, 8 * WORDS, 1)
