"""The GPU that kernels are compiled for: its architecture, and the limits by which tiles are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from kernel_cache import sm_limits
from kernel_cache.offline import capability
from kernel_cache.sm_limits import Limits

from ...errors import EnvironmentProblem

OLDEST = "sm_80"  # the layer's kernels need asynchronous copies and products of bfloat16
NEEDED = f"a layer's kernels need {OLDEST} (A100) or later"


@dataclass(frozen=True)
class Target:
    """A kind of GPU. arch: the architecture, such as sm_90, by which the compiler chooses instructions.

    limits: the limits of an SM, by which tiles are chosen.
    """

    arch: str
    limits: Limits

    @classmethod
    def named(cls, arch: str) -> Target:
        """The target of an architecture, without a GPU. Raises InputError for an unknown name."""
        return cls(arch, sm_limits.limits_of_name(arch))

    def check(self) -> None:
        """Raise EnvironmentProblem for a GPU that is too old."""
        if capability(self.arch) < capability(OLDEST):
            raise EnvironmentProblem(f"{NEEDED}, got a GPU of {self.arch}: use another GPU, or backend='cpu'")

    @property
    def generation(self) -> int:
        """The major number of the compute capability: 9 for sm_90, 12 for sm_120."""
        return int(capability(self.arch)[0])

    def most_blocks(self, threads: int, shared: int) -> int:
        """How many blocks of `threads` threads, with `shared` bytes of shared memory each, an SM can hold; 0: none.

        Registers are not counted, because the compiler limits them so that this number of blocks fits.
        """
        if shared > self.limits.shared_block or threads > self.limits.block_threads:
            return 0
        return sm_limits.resident(self.limits, threads, shared, registers=1)
