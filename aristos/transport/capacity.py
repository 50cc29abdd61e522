"""Does what every rank needs fit its machine? Asked before anything is allocated, answered alike on all ranks.

Shared memory that is not there would be a SIGBUS when it is written to, and one rank that raises alone would leave the
others in a collective call. It refuses to allocate.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHM = "/dev/shm"
MIB = 2**20


def free_shared_memory() -> int | None:
    """Bytes that new shared memory may take on this node, or None where nobody says."""
    try:
        info = os.statvfs(SHM)
    except OSError:
        return None
    return info.f_bavail * info.f_frsize


def free_memory() -> int | None:
    """Bytes of main memory that this node, or this container, can still give; None where nobody says."""
    known = []
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        known.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    return min(known, default=None)


def machine() -> tuple[str, str]:
    """What tells this machine from others, and a container with a host name of its own from its host."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, os.uname().nodename


@dataclass(frozen=True)
class Need:
    """What a rank is about to allocate, in bytes, and what its machine can give (None: nobody says)."""

    near: int  # window for ranks of its node
    far: int  # window for ranks of others, which MPI takes from shared memory too where ranks share a machine
    private: int
    machine: tuple[str, str]
    free: int | None
    free_shared: int | None

    @classmethod
    def here(cls, near: int, far: int = 0, private: int = 0) -> Need:
        """Of this rank."""
        return cls(near, far, private, machine(), free_memory(), free_shared_memory())


def least(known: Iterable[int | None]) -> float:
    """The smallest of those that are known; infinite if none is."""
    return min((n for n in known if n is not None), default=float("inf"))


def shortage(needs: list[Need]) -> str | None:
    """What is wrong on the first machine that cannot hold what its ranks need; None if all can."""
    for place in dict.fromkeys(need.machine for need in needs):
        mine = [need for need in needs if need.machine == place]
        who = f"for {len(mine)} ranks on {place[1]}" if len(mine) > 1 else f"for a rank on {place[1]}"
        have = least(need.free for need in mine)
        windows = sum(need.near + need.far for need in mine)
        everything = windows + sum(need.private for need in mine)
        room = min(have, least(need.free_shared for need in mine))
        if len(mine) > 1 and windows > room:
            return (
                f"windows need {windows / MIB:.1f} MiB of shared memory in {SHM} {who}, {room / MIB:.1f} MiB are free"
                " there or in main memory: make it larger (docker run --shm-size=...), lower max_tokens, or remove what"
                " killed jobs left there"
            )
        if everything > have:
            return (
                f"{everything / MIB:.1f} MiB of memory are needed {who}, {have / MIB:.1f} MiB are free: lower"
                " max_tokens, top_k or threads, or use fewer ranks on this node (see MoE.memory())"
            )
    return None
