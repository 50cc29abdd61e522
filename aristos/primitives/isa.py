"""Which instruction set the CPU kernels use: the best that this process may use, or the one that ARISTOS_ISA names.

float32 gives the same bits on every set with fused multiply-adds. The bits of other element types differ between sets,
so ranks that compute with such types agree on one set.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from llvmlite import binding
from numba.core import config as _config

from ..errors import EnvironmentProblem

NEEDS: dict[str, tuple[str, ...]] = {  # for each set its features, by LLVM's names; the best set first
    "amx": ("avx512f", "avx512vl", "avx512bw", "avx512vbmi", "amx-tile", "amx-bf16"),
    "avx512bf16": ("avx512f", "avx512vl", "avx512bw", "avx512vbmi", "avx512bf16"),
    "avx512": ("avx512f", "avx512vl"),
    "avx2": ("avx2", "fma", "f16c"),
    "neonbf16": ("neon", "bf16"),
    "neon": ("neon",),
    "generic": (),
}
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # numbers of Linux: system call, operation, tile state


def target() -> tuple[str, dict[str, bool]]:
    """(the CPU for which Numba compiles, whether it has each feature), by LLVM's names.

    This is the machine's CPU, unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another one.
    """
    cpu, features = getattr(_config, "CPU_NAME", None), getattr(_config, "CPU_FEATURES", None)
    if features is not None:
        known = {word[1:]: word[0] == "+" for word in features.split(",") if word}
    else:
        known = {} if cpu else dict(binding.get_host_cpu_features())
    return cpu or binding.get_host_cpu_name(), known


def available(cpu: str, features: Mapping[str, bool]) -> list[str]:
    """The instruction sets of a CPU, the best first. This does not say whether Linux permits the use of tiles."""
    has = [isa for isa, needs in NEEDS.items() if all(features.get(name) for name in needs)]
    if "avx512bf16" in has and not cpu.startswith("znver"):  # Intel's dot products are half as fast as float32
        has.remove("avx512bf16")
        has.insert(has.index("avx512") + 1, "avx512bf16")
    return has


@cache
def tiles_refused() -> str:
    """Ask for the permission to use AMX tiles. Returns why Linux refuses it; '' if it does not.

    If Linux grants it, threads and forks of this process have it too. A program started by exec must ask again.
    Linux refuses if a signal stack is too small for tiles.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"AMX needs Linux on x86-64, got {platform.system()} on {platform.machine()}"
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) != 0:
        return f"Linux refused the permission to use AMX tiles: {os.strerror(ctypes.get_errno())}"
    return ""


def choose(has: list[str], wanted: str | None, refused: str) -> str:
    """The best of the instruction sets `has`, or `wanted` if it is given. refused: why tiles may not be used, or ''.

    Raises EnvironmentProblem if `wanted` cannot be used.
    """
    usable = [isa for isa in has if isa != "amx" or not refused]
    if not wanted:
        return usable[0]
    if wanted not in usable:
        why = f" ({refused})" if wanted == "amx" and wanted in has else ""
        raise EnvironmentProblem(
            f"ARISTOS_ISA must be one of {', '.join(usable)} for this process, got {wanted!r}{why}"
        )
    return wanted


@cache
def usable() -> tuple[str, ...]:
    """The instruction sets that this process may use, the best first. ARISTOS_ISA names the best of them, if it is set.

    Kernels that run as plain Python may use any set.
    """
    wanted = os.environ.get("ARISTOS_ISA")
    has = available(*target())
    if getattr(_config, "DISABLE_JIT", 0):
        best = choose(list(NEEDS), wanted or has[0], "")
        has = has if best in has else list(NEEDS)
    else:
        best = choose(has, wanted, tiles_refused() if "amx" in has else "")
    return tuple(has[has.index(best) :])


def chosen() -> str:
    """The instruction set of this process's kernels."""
    return usable()[0]


class Offer(NamedTuple):
    """A rank's offer for the choice of one instruction set: `usable`, and whether ARISTOS_ISA names its first set."""

    sets: tuple[str, ...]
    forced: bool


def offer() -> Offer:
    """This process's offer."""
    return Offer(usable(), bool(os.environ.get("ARISTOS_ISA")))


def agreed(offers: list[Offer]) -> str:
    """The best instruction set that all ranks have. It does not depend on the order of the ranks.

    The best set is the one with the lowest mean place in the ranks' lists. A set that ARISTOS_ISA names on a rank comes
    before other sets.
    """
    common = [isa for isa in NEEDS if all(isa in offer.sets for offer in offers)]
    named = [isa for isa in common if any(offer.forced and offer.sets[0] == isa for offer in offers)]
    return min(named or common, key=lambda isa: sum(offer.sets.index(isa) for offer in offers))


def passed_over(isa: str, offers: list[Offer]) -> str:
    """A text that says which ranks have a better instruction set than the agreed one; '' if none has."""
    better: dict[str, list[int]] = {}
    for rank, offer in enumerate(offers):
        if offer.sets[0] != isa:
            better.setdefault(offer.sets[0], []).append(rank)
    return "; ".join(
        f"{best} on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" for best, ranks in better.items()
    )
