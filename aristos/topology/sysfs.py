"""Facts of this machine from Linux's /sys: CPUs, cores, caches, NUMA domains, memory. The module only reads files."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from kernel_cache import regular
from kernel_cache.texts import whole

from . import cpusets
from .model import Cache, Node, Numa

SYS = Path("/sys")
MOST = 1 << 20  # the most bytes of one file


def read(path: Path) -> str:
    """A file's text without white space at its ends; '' if it cannot be read."""
    try:
        return regular.read(path, MOST).decode(errors="replace").strip()
    except OSError:
        return ""


def natural(name: str) -> list[str | int]:
    """A sort key that puts n2 before n10."""
    return [number if (number := whole(part)) is not None else part for part in re.split(r"([0-9]{1,18})", name)]


def cpus_in(path: Path) -> frozenset[int]:
    """A file's list of CPUs; empty if there is no such file, or if it holds no list of CPUs."""
    try:
        return cpusets.parse(read(path))
    except ValueError:
        return frozenset()


def node(name: str | None = None, root: Path = SYS, allowed: frozenset[int] | None = None) -> Node:
    """This machine without its devices. root: the folder /sys; /proc is beside it.

    allowed: the CPUs that this process may use; by default those that the kernel allows.
    """
    allowed = frozenset(os.sched_getaffinity(0)) if allowed is None else allowed
    cpus = cpus_in(root / "devices/system/cpu/online") or allowed
    return Node(
        name=name or platform.node(),
        numa=numa(root),
        caches=caches(root, cpus),
        cores=cores(root, cpus),
        cpus=cpus,
        allowed=allowed,
        memory=_memory(root.parent / "proc/meminfo"),
        complete=True,
    )


def _memory(path: Path) -> int | None:
    """The bytes that a file meminfo names as the total; None if it names none."""
    total = re.search(r"MemTotal:\s*([0-9]{1,15}) kB", read(path))
    return int(total[1]) * 1024 if total else None


def numa(root: Path = SYS) -> tuple[Numa, ...]:
    """The NUMA domains, including those of GPU memory, which have no CPUs; empty if the kernel lists none."""
    listed = ((whole(path.name[4:]), path) for path in (root / "devices/system/node").glob("node[0-9]*"))
    folders = {number: path for number, path in listed if number is not None}
    found = []
    for index in sorted(folders):
        at = folders[index]
        distances = [n for word in read(at / "distance").split() if (n := whole(word)) is not None]
        # the file has one number for each domain that is online, in order
        distance = dict(zip(sorted(folders), distances)) if len(distances) == len(folders) else {}
        found.append(Numa(index, cpus_in(at / "cpulist"), _memory(at / "meminfo"), distance))
    return tuple(found)


def caches(root: Path, cpus: frozenset[int]) -> tuple[Cache, ...]:
    """All data and unified caches, each once."""
    found: dict[tuple[int, frozenset[int]], Cache] = {}
    for cpu in sorted(cpus):
        for at in sorted((root / f"devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*")):
            level, size = whole(read(at / "level")), re.fullmatch(r"([0-9]{1,9})([KMG]?)", read(at / "size"))
            shared = cpus_in(at / "shared_cpu_list")
            if level is not None and size and shared and read(at / "type") != "Instruction":
                amount = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
                found.setdefault((level, shared), Cache(level, amount, shared))
    return tuple(sorted(found.values(), key=lambda c: (c.level, min(c.cpus))))


def cores(root: Path, cpus: frozenset[int]) -> tuple[frozenset[int], ...]:
    """The hardware threads of each core that are online; one CPU for each core if the kernel does not list them."""
    found: dict[frozenset[int], None] = {}
    for cpu in sorted(cpus):
        at = root / f"devices/system/cpu/cpu{cpu}/topology"
        threads = cpus_in(at / "core_cpus_list") or cpus_in(at / "thread_siblings_list")
        found.setdefault((threads & cpus) | {cpu})
    return tuple(found)
