"""Shared memory: is /dev/shm large enough for a layer, and what have killed jobs left there?"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from .. import models
from ..host.nodes import Nodes
from ..transport.capacity import MIB, SHM
from .finding import Finding, fail, ok, warn

# What MPICH, Intel MPI, Open MPI and UCX name their files there.
LEFT = re.compile(r"mpich_shm_|Intel_MPI_|psm2?_|sm_segment\.|vader_segment\.|osc_sm\.|ucx_shm_")
YOUNG = 60.0  # seconds: a job that just starts may not have mapped its file yet


def need(ranks: int, per_node: int) -> tuple[int, str]:
    """(bytes of shared memory that `per_node` ranks of `ranks` need for the default layer, its name).

    MPI takes both windows from there where ranks share a node, that for other nodes too (MPICH 5.0.2, Open MPI 5.0.11,
    seen by df); a rank alone on its node has its own in private memory, as everything else of a layer is.
    """
    from ..layer.collective import shape_of, widths
    from ..placement import Placement
    from ..substrate.windows import window_bytes

    shape = models.shape(models.DEFAULT, ranks)
    if per_node == 1:
        return 0, shape.name
    layout = shape_of(ranks, Placement(None, shape.cfg.experts, ranks), **widths(shape.cfg))
    nodes = Nodes.of(ranks, per_node)
    return sum(sum(window_bytes(layout, nodes, rank)[:2]) for rank in range(per_node)), shape.name


def shared(total: int, free: int, needed: int, layer: str, ranks: int) -> Finding:
    """Does the default layer of `ranks` ranks on this node fit? All in bytes."""
    values = {"total": total, "free": free, "needed": needed}
    text = f"{free / MIB:.0f} MiB of {total / MIB:.0f} free; "
    text += f"{layer} on {ranks} ranks of a node needs {needed / MIB:.0f}" if needed else "a rank alone needs none"
    if free >= needed:
        return ok(SHM, text, **values)
    size = 2 ** (needed // MIB).bit_length()
    fix = f"docker run --shm-size={size}m, or: mount -o remount,size={size}m {SHM}; or lower max_tokens"
    return fail(SHM, text, fix, **values)


def shared_here(ranks: int, per_node: int) -> Finding:
    try:
        info = os.statvfs(SHM)
    except OSError as why:
        return warn(SHM, f"cannot be looked at: {why}", "ranks of one node share memory there: mount a tmpfs on it")
    if ranks == 1:
        ranks = per_node = 2  # what comes next
    needed, layer = need(ranks, per_node)
    return shared(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize, needed, layer, per_node)


def leftovers(folder: str = SHM, young: float = YOUNG) -> list[tuple[str, int]]:
    """(path, bytes) of MPI's files of this user that no process has mapped. young: seconds; younger stay out."""
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
        if mine and LEFT.match(entry.name) and now - about.st_mtime >= young:
            found[entry.path] = about.st_blocks * 512
    used = in_use(set(found)) if found else set()
    return sorted((path, size) for path, size in found.items() if path not in used)


def in_use(paths: set[str]) -> set[str]:
    """Those of `paths` that a process of this machine has mapped or open, as far as this user may look."""
    used = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            maps = (process / "maps").read_text()
            files = {os.readlink(each.path) for each in os.scandir(process / "fd")}
        except OSError:
            continue
        used |= {path for path in paths if path in files or f" {path}\n" in maps}
    return used


def left(files: list[tuple[str, int]]) -> Finding:
    name = "left in shm"
    if not files:
        return ok(name, "nothing of killed jobs")
    size = sum(size for _, size in files)
    text = f"{len(files)} files of MPI jobs that no process here uses, {size / MIB:.0f} MiB: left by killed jobs"
    remedy = "\n".join(f"rm {path}" for path, _ in files[:3])
    if len(files) > 3:
        kinds = sorted({match[0] for path, _ in files if (match := LEFT.match(Path(path).name))})
        which = " -o ".join(f"-name '{kind}*'" for kind in kinds)
        mine = f"-maxdepth 1 -type f -uid {os.getuid()}"
        remedy = f"when no job of yours runs here: find {SHM} {mine} \\( {which} \\) -delete"
    return warn(name, text, remedy, files=[path for path, _ in files], bytes=size)
