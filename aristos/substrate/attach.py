"""Finds the runtime that serves a communicator. Each communicator and backend has one, made on first use."""

from __future__ import annotations

import itertools
from typing import Any

from kernel_cache.compile import report_as

from ..errors import MismatchError
from ..transport.group import Group, warn_if_launched
from ..transport.limits import Limits
from .cpu.runtime import CpuRuntime
from .failure import Failure
from .runtime import Runtime

_runtimes: dict[tuple[int, str], Runtime] = {}
_keyval: int | None = None
_numbers = itertools.count()


def attach(comm: Any, limits: Limits, ranks_per_node: int | None = None, backend: str = "cpu") -> Runtime:
    """The runtime of a communicator and backend, made on first use. Collective. Every `attach` needs one `release`."""
    if comm is None:
        warn_if_launched()
    key = (_key(comm), backend)
    runtime = _runtimes.get(key)
    if runtime is None or runtime.broken is not None:
        runtime = _runtimes[key] = _new_runtime(Group(comm, limits, ranks_per_node), backend)
    runtime.group.limits = runtime.group.limits.union(limits)
    runtime.users += 1
    return runtime


def standing() -> str:
    """A text about what every engine of this process is doing, for a program that hangs.

    Any thread may call this function. The call may take seconds.
    """
    found = [f"{backend}: {runtime.standing()}" for (_, backend), runtime in list(_runtimes.items())]
    return "\n".join(found) or "no layer is made in this process"


def _new_runtime(group: Group, backend: str) -> Runtime:
    """Make a runtime. Collective. Raises MismatchError if ranks have different backends."""
    try:
        for rank, theirs in enumerate(group.allgather(backend, "their backends")):
            if theirs != backend:
                raise MismatchError(
                    f"rank {group.rank} has backend {backend!r} and rank {rank} has {theirs!r}: pass the same backend="
                    " on all ranks"
                )
        group.keep_job()
        if group.world > 1:
            report_as(group.rank)
        return _runtime_class(group, backend)(group, _forget)
    except BaseException as error:
        Failure(group).cannot_make(error)
        raise


def _runtime_class(group: Group, backend: str) -> type[Runtime]:
    """The class of a backend's runtimes. If a rank lacks a package for it, every rank raises."""
    return CpuRuntime if backend == "cpu" else group.on_all(_cuda_runtime, "packages for CUDA")


def _cuda_runtime() -> type[Runtime]:
    from .cuda.runtime import CudaRuntime

    return CudaRuntime


def _key(comm: Any) -> int:
    """The number of a communicator, which no other communicator has while this one lives."""
    global _keyval
    if comm is None:
        return -1
    from mpi4py import MPI

    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval()
    number = comm.Get_attr(_keyval)
    if number is None:
        number = next(_numbers)
        comm.Set_attr(_keyval, number)
    return number


def _forget(runtime: Runtime) -> None:
    for key, value in list(_runtimes.items()):
        if value is runtime:
            del _runtimes[key]
