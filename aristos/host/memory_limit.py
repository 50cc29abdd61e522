"""How much memory the control groups of containers, Slurm and systemd leave to this process.

A process is in one group of a hierarchy, and the limits of all groups above that group bind the process too. Version 2
has one hierarchy for everything, version 1 has one for memory; a machine may mount both. The kernel's documents are
cgroup-v2.rst and cgroup-v1/memory.rst. A limit that cannot be read or understood counts as none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from kernel_cache import regular
from kernel_cache.texts import whole

MOST = 16 << 20  # the most bytes of one file; hosts of many containers have thousands of mounts
LONGEST, MOUNTS = 4096, 64  # most characters of a path; most mounts of hierarchies that are read
ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes a blank in a path as \040


@dataclass(frozen=True)
class Files:
    """Names of the files of one version of control groups.

    limit, used: files with the limit and the use in bytes. cached: counters in memory.stat, in bytes, of cached file
    contents. The kernel drops these contents before it refuses memory.
    """

    limit: str
    used: str
    cached: tuple[str, str]


V1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def room(root: Path = Path("/")) -> int | None:
    """The bytes that this process may still take under the limits of all its groups; None if there is no limit.

    root: the folder that contains /proc and the mounts.
    """
    rooms = (_of_group(group, files) for files, group in _groups(root))
    return min((n for n in rooms if n is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[Files, Path]]:
    """(the names of the files, the folder) of each group that this process is in."""
    mine = dict(_own(root))
    mounts = [mount for mount in islice(_mounts(root), MOUNTS) if mount[0] in mine]
    for files, top, point in mounts:
        own = mine[files]
        if own.is_relative_to(top) and ".." not in own.parts:
            inside = own.relative_to(top)
        elif any(files == other and mine[files].is_relative_to(its) for other, its, _ in mounts):
            continue
        else:
            inside = PurePosixPath()  # a namespace hides this process's group, so only the mounted group is known
        for part in (inside, *inside.parents):
            yield files, root / point / part


def _own(root: Path) -> Iterator[tuple[Files, PurePosixPath]]:
    """This process's group in each hierarchy that limits memory, from lines like `4:memory:/slurm/job_7`."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/") or len(path) > LONGEST:
            continue
        if number == "0" and not controllers:
            yield V2, PurePosixPath(path)
        elif "memory" in controllers.split(","):
            yield V1, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[tuple[Files, PurePosixPath, str]]:
    """(files, the group that is mounted, the mount point without its first slash) of each mounted hierarchy."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        top, point = (ESCAPE.sub(lambda found: chr(int(found[1], 8)), text) for text in fields[3:5])
        if max(len(top), len(point)) > LONGEST or ".." in PurePosixPath(point).parts:
            continue
        if kind[0] == "cgroup2":
            yield V2, PurePosixPath(top), point.lstrip("/")
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield V1, PurePosixPath(top), point.lstrip("/")


def _of_group(group: Path, files: Files) -> int | None:
    """Bytes that a group's own limit leaves; None without a limit."""
    limit, used = (whole(_text(group / name).strip()) for name in (files.limit, files.used))
    if limit is None or used is None:  # "max", or in version 1 a number near 2^63
        return None
    stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    cached = sum(whole(stat.get(name, "")) or 0 for name in files.cached)
    return max(0, limit - max(0, used - cached))


def _text(path: Path) -> str:
    try:
        return os.fsdecode(regular.read(path, MOST))
    except (OSError, ValueError):  # ValueError: a null byte in a path
        return ""
