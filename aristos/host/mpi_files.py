"""The files of MPI libraries in /dev/shm, and which of them killed jobs have left there."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from kernel_cache.texts import whole

from .mpi_facts import SHARED_FILES

SHM = "/dev/shm"
NAMES = re.compile(SHARED_FILES)
KEPT = re.compile("mpich_shm_[^/]*")  # files whose names `forget_names` removes
YOUNG = 60.0  # seconds; a job that is starting may not have mapped a file younger than this yet


def leftovers(folder: str = SHM, young: float = YOUNG) -> list[tuple[str, int]]:
    """(path, bytes) of this user's MPI files that no process uses. Files younger than `young` seconds are left out."""
    found = {}
    now = time.time()
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    for entry in entries:
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        mine = about.st_uid == os.getuid() and entry.is_file(follow_symlinks=False)
        if mine and NAMES.match(entry.name) and now - about.st_mtime >= young:
            found[entry.path] = about.st_blocks * 512
    used = in_use(set(found)) if found else set()
    return sorted((path, size) for path, size in found.items() if path not in used)


def forget_names(maps: str = "/proc/self/maps", folder: str = SHM) -> int:
    """Remove, from `folder`, the names of MPICH's files that this process has mapped. Returns how many.

    The files' memory stays until the last process unmaps it.

    MPICH keeps the name until MPI_Finalize, so a killed job would leave the file. Call this when all ranks of this
    machine have left MPI_Init, because they have then mapped the file.
    """
    removed = 0
    with contextlib.suppress(OSError):
        for line in os.fsdecode(Path(maps).read_bytes()).split("\n"):
            words = line.split(maxsplit=5)
            place, _, name = words[5].rpartition("/") if len(words) == 6 else ("", "", "")
            if place != folder or not KEPT.fullmatch(name) or name.endswith(" (deleted)"):
                continue
            with contextlib.suppress(OSError, ValueError):
                about = os.stat(words[5], follow_symlinks=False)
                device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
                # the mapped file itself, not a later job's file of this name
                if [device, str(about.st_ino)] == words[3:5]:
                    os.unlink(words[5])
                    removed += 1
    return removed


def in_use(paths: set[str]) -> set[str]:
    """The files of `paths` that a process of this machine has mapped or open, as far as this user can see."""
    used = set()
    for process in Path("/proc").iterdir():
        if whole(process.name) is None:
            continue
        try:
            maps = os.fsdecode((process / "maps").read_bytes())
            files = {os.readlink(each.path) for each in os.scandir(process / "fd")}
        except OSError:
            continue
        used |= {path for path in paths if path in files or f" {path}\n" in maps}
    return used
