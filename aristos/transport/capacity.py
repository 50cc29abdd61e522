"""Checks, before allocation, that every machine has the memory that its ranks need. All ranks get the same answer.

A write to shared memory that does not fit ends in SIGBUS. If one rank raised an error alone, the other ranks would stay
in a collective call. Nothing is allocated here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..host import memory_limit
from ..host.mpi_files import SHM

MIB = 2**20


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free on this node; None if unknown."""
    try:
        info = os.statvfs(SHM)
    except OSError:
        return None
    return info.f_bavail * info.f_frsize


def free_memory() -> int | None:
    """Bytes of main memory that are free on this node, within the limits of control groups; None if unknown."""
    known = []
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit = memory_limit.room()
    return min(known if limit is None else [*known, limit], default=None)


def machine() -> tuple[str, str]:
    """(boot id, host name). The pair differs between machines, and between a host and a container with its own name."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, os.uname().nodename


@dataclass(frozen=True)
class Need:
    """What a rank will allocate, in bytes, and what is free on its machine (None: unknown)."""

    local: int  # bytes of the window for local peers
    remote: int  # bytes of the window for remote peers; it lies in shared memory too if ranks share a machine
    private: int
    machine: tuple[str, str]
    free: int | None
    free_shared: int | None

    @classmethod
    def here(cls, local: int, remote: int = 0, private: int = 0) -> Need:
        """The need of this rank."""
        return cls(local, remote, private, machine(), free_memory(), free_shared_memory())


def least(known: Iterable[int | None]) -> float:
    """The smallest known number; infinite if none is known."""
    return min((n for n in known if n is not None), default=float("inf"))


def shortage(needs: list[Need]) -> str | None:
    """The message for the first machine that cannot hold what its ranks need; None if all can."""
    for place in dict.fromkeys(need.machine for need in needs):
        mine = [need for need in needs if need.machine == place]
        ranks = f"the {len(mine)} ranks on {place[1]}" if len(mine) > 1 else f"the rank on {place[1]}"
        have = least(need.free for need in mine)
        windows = sum(need.local + need.remote for need in mine)
        everything = windows + sum(need.private for need in mine)
        shared = min(have, least(need.free_shared for need in mine))
        if len(mine) > 1 and windows > shared:
            return (
                f"the windows of {ranks} need {windows / MIB:.1f} MiB of shared memory in {SHM}, but only"
                f" {shared / MIB:.1f} MiB are free: make {SHM} larger (docker run --shm-size), remove files that killed"
                " jobs left there, or lower max_tokens"
            )
        if everything > have:
            return (
                f"{ranks} need{'' if len(mine) > 1 else 's'} {everything / MIB:.1f} MiB of memory, but only"
                f" {have / MIB:.1f} MiB are free: lower max_tokens, top_k or threads, or use fewer ranks on this node"
                " (MoE.memory() returns a rank's need)"
            )
    return None
