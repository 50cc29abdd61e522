"""Checks of shared memory: whether a layer fits into /dev/shm, files that killed jobs have left there, huge pages."""

from __future__ import annotations

import os
from pathlib import Path

from .. import models
from ..host.mpi_files import NAMES, SHM
from ..host.nodes import Nodes
from ..transport import memfd
from ..transport.capacity import MIB
from .finding import Finding, fail, ok, warn


def need(ranks: int, per_node: int) -> tuple[int, str]:
    """(bytes of shared memory that `per_node` ranks of `ranks` need for the default layer, its name).

    If ranks share a node, MPI allocates a rank's two windows there, even the window for other nodes (MPICH 5.0.2, Open
    MPI 5.0.11, by df). A rank alone on its node has its window in private memory, like the rest of a layer.
    """
    from ..layer.collective import shape_of, widths
    from ..placement import Placement
    from ..substrate.windows import window_bytes

    shape = models.shape(models.DEFAULT, ranks)
    if per_node == 1:
        return 0, shape.name
    layout = shape_of(ranks, Placement(None, shape.cfg.experts, ranks), **widths(shape.cfg))
    nodes = Nodes.split(ranks, per_node)
    return sum(sum(window_bytes(layout, nodes, rank)[:2]) for rank in range(per_node)), shape.name


def shared(total: int, free: int, needed: int, layer: str, ranks: int) -> Finding:
    """Whether the default layer of `ranks` ranks on this node fits. total, free, needed: bytes."""
    values = {"total": total, "free": free, "needed": needed}
    text = f"free: {free / MIB:.0f} of {total / MIB:.0f} MiB; "
    wanted = f"{layer} on {ranks} ranks of a node needs {needed / MIB:.0f} MiB"
    text += wanted if needed else "a rank alone on its node needs none"
    if free >= needed:
        return ok(SHM, text, **values)
    size = 2 ** (needed // MIB).bit_length()
    fix = f"docker run --shm-size={size}m, or: mount -o remount,size={size}m {SHM}; or lower max_tokens"
    return fail(SHM, text, fix, **values)


def shared_here(ranks: int, per_node: int) -> Finding:
    """The finding of `shared` for this node. ranks: number in the job. per_node: number on this node."""
    try:
        info = os.statvfs(SHM)
    except OSError as why:
        return warn(SHM, f"cannot be examined: {why}", "ranks of one node share memory there: mount a tmpfs on it")
    if ranks == 1:
        ranks = per_node = 2  # a user's next step is a job of two ranks
    needed, layer = need(ranks, per_node)
    return shared(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize, needed, layer, per_node)


def left(files: list[tuple[str, int]]) -> Finding:
    """The files that killed MPI jobs have left. files: (path, bytes), see `mpi_files.leftovers`."""
    name = "left in shm"
    if not files:
        return ok(name, "no files of killed jobs")
    size = sum(size for _, size in files)
    many = f"{len(files)} file{'s' * (len(files) != 1)} of MPI jobs"
    text = f"{many}, which no process here uses, {size / MIB:.0f} MiB: left by killed jobs"
    remedy = "\n".join(f"rm {path}" for path, _ in files[:3])
    if len(files) > 3:
        kinds = sorted({match[0] for path, _ in files if (match := NAMES.match(Path(path).name))})
        which = " -o ".join(f"-name '{kind}*'" for kind in kinds)
        mine = f"-maxdepth 1 -type f -uid {os.getuid()}"
        remedy = f"when no job of yours runs here: find {SHM} {mine} \\( {which} \\) -delete"
    return warn(name, text, remedy, files=[path for path, _ in files], bytes=size)


def in_place() -> Finding:
    """Whether layers with moves="auto" can compute experts of local peers in place on this machine."""
    problem = memfd.lacking()
    if problem:
        return ok("experts in place", f"no: tokens are always sent ({problem})", huge_pages=False)
    text = "yes: ranks of a node read each other's experts from huge pages where that is cheaper than sending rows"
    return ok("experts in place", text, huge_pages=True)
