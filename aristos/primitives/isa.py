"""Which instruction set the CPU kernels use: the best that the CPU has, or the one that ARISTOS_ISA names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from llvmlite import binding
from numba.core import config as _config

from ..errors import EnvironmentProblem

NEEDS = {"avx512": ("avx512f", "avx512vl"), "avx2": ("avx2", "fma"), "generic": ()}  # features, as LLVM names them


def target() -> tuple[str, dict[str, bool]]:
    """The CPU that Numba compiles for, and its features: this one, or that of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    cpu, features = getattr(_config, "CPU_NAME", None), getattr(_config, "CPU_FEATURES", None)
    if features is not None:
        known = {word[1:]: word[0] == "+" for word in features.split(",") if word}
    else:
        known = {} if cpu else dict(binding.get_host_cpu_features())
    return cpu or binding.get_host_cpu_name(), known


def choose(features: Mapping[str, bool], wanted: str | None) -> str:
    """The best ISA that a CPU with these features has, or `wanted`. Raises EnvironmentProblem if it lacks that."""
    has = [isa for isa, needs in NEEDS.items() if all(features.get(name) for name in needs)]
    if not wanted:
        return has[0]
    if wanted not in has:
        raise EnvironmentProblem(f"ARISTOS_ISA must be one of {', '.join(has)} on this CPU, got {wanted!r}")
    return wanted


@cache
def chosen() -> str:
    """The ISA of this process's kernels."""
    return choose(target()[1], os.environ.get("ARISTOS_ISA"))
