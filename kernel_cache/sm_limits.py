"""The limits of a streaming multiprocessor (SM) by architecture, and how many blocks of a kernel an SM holds at once.

The numbers are from the table of technical specifications in the CUDA programming guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import input_error
from .offline import capability


@dataclass(frozen=True)
class Limits:
    """The limits of one SM: threads, blocks, registers, and bytes of shared memory in all and for one block."""

    threads: int
    blocks: int
    shared: int
    shared_block: int
    registers: int = 65536
    block_threads: int = 1024


ARCHITECTURES = {
    (7, 0): Limits(2048, 32, 98304, 98304),
    (7, 5): Limits(1024, 16, 65536, 65536),
    (8, 0): Limits(2048, 32, 167936, 166912),
    (8, 6): Limits(1536, 16, 102400, 101376),
    (8, 7): Limits(1536, 16, 167936, 166912),
    (8, 9): Limits(1536, 24, 102400, 101376),
    (9, 0): Limits(2048, 32, 233472, 232448),
    (10, 0): Limits(2048, 32, 233472, 232448),
    (10, 3): Limits(2048, 32, 233472, 232448),
    (12, 0): Limits(1536, 24, 102400, 101376),
    (12, 1): Limits(1536, 24, 102400, 101376),
}
RESERVED_SHARED = 1024  # bytes of shared memory that the system takes for each block
WARP = 32


def limits_of_name(arch: str) -> Limits:
    """The limits of an architecture by its name, such as sm_90."""
    return limits_of(capability(arch))


def limits_of(cc: tuple[Any, ...]) -> Limits:
    """The limits of a compute capability. If it is not known, the limits of the nearest lower one that is known."""
    known = [key for key in ARCHITECTURES if key <= cc[:2]]
    if not known:
        raise input_error(f"the compute capability must be at least {min(ARCHITECTURES)}, got {cc}")
    return ARCHITECTURES[max(known)]


def resident(limits: Limits, threads: int, shared: int, registers: int) -> int:
    """How many blocks of a kernel one SM holds at once. Raises InputError if one block is too large.

    threads: threads of a block. shared: bytes of shared memory of a block. registers: registers of a thread.
    """
    if not 1 <= threads <= limits.block_threads:
        raise input_error(f"a block must have 1 to {limits.block_threads} threads, got {threads}")
    if shared > limits.shared_block:
        raise input_error(f"a block must have at most {limits.shared_block} bytes of shared memory, got {shared}")
    warps = -(-threads // WARP)
    each = -(-registers * WARP // 256) * 256 * warps
    by_registers = max(limits.registers // each, 1)
    by_shared = limits.shared // (shared + RESERVED_SHARED)
    return max(1, min(limits.blocks, limits.threads // (warps * WARP), by_registers, by_shared))
