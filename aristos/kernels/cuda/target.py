"""The GPU that kernels are compiled for: its architecture, and the limits by which tiles are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from kernel_cache import sm_limits
from kernel_cache.offline import capability
from kernel_cache.sm_limits import Limits

from ...errors import EnvironmentProblem

OLDEST = "sm_80"  # for the layer's kernels: asynchronous copies, products of bfloat16
NEEDED = f"a layer's kernels need {OLDEST} (A100) or later"


@dataclass(frozen=True)
class Target:
    """arch: such as sm_90, by which the compiler chooses instructions. limits: of one SM, by which we choose tiles."""

    arch: str
    limits: Limits

    @classmethod
    def named(cls, arch: str) -> Target:
        """The target of an architecture whose GPU is not here. Raises InputError for a name that means nothing."""
        return cls(arch, sm_limits.limits_of_name(arch))

    def check(self) -> None:
        """Raise EnvironmentProblem for a GPU that is too old."""
        if capability(self.arch) < capability(OLDEST):
            raise EnvironmentProblem(f"the GPU is {self.arch}: {NEEDED}")

    @property
    def generation(self) -> int:
        """The major number of its compute capability: 9 of sm_90, 12 of sm_120."""
        return int(capability(self.arch)[0])

    def most_blocks(self, threads: int, shared: int) -> int:
        """How many blocks of `threads` threads, with `shared` bytes of shared memory each, an SM can hold; 0: none.

        Registers are no part of it: the compiler keeps to as many as that number of blocks leaves.
        """
        if shared > self.limits.shared_block or threads > self.limits.block_threads:
            return 0
        return sm_limits.resident(self.limits, threads, shared, registers=1)
