"""Runs the layer's own host code on ranks that are threads. Each is a process of the fake driver (fake_cuda.py)."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fake_cuda
import fake_kernels
from simt_gpu import Together, as_threads

from aristos.substrate.cuda import driver as calls


@contextlib.contextmanager
def installed(driver: fake_cuda.Driver) -> Iterator[None]:
    """Put the fake driver in the place of cuda.bindings' module."""
    before = sys.modules.get(calls.MODULE)
    sys.modules[calls.MODULE] = driver  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[calls.MODULE]
        else:
            sys.modules[calls.MODULE] = before


def threads_of_ranks(driver: fake_cuda.Driver) -> SimpleNamespace:
    """A replacement for `threading`: a new thread belongs to the process of the thread that makes it."""

    class OfRank(threading.Thread):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.process = driver.process

        def run(self) -> None:
            driver.here.process = self.process
            super().run()

    return SimpleNamespace(Thread=OfRank)


def patches(driver: fake_cuda.Driver) -> tuple[Any, ...]:
    """Context managers that put the fake driver in the place of CUDA's."""
    return (
        installed(driver),
        mock.patch("aristos.substrate.cuda.device.build", fake_kernels.build),
        mock.patch("aristos.substrate.cuda.runtime.threading", threads_of_ranks(driver)),
        mock.patch("aristos.substrate.cuda.runtime.NAP_SECONDS", 0.0),  # GPUs go on only when they are queried
    )


def on_driver(
    world: int,
    body: Callable[[Any, int, fake_cuda.Driver], Any],
    visible: Any = None,
    first_here: bool = False,
    **of_machine: Any,
) -> list[Any]:
    """Run body(comm, rank, driver) on `world` ranks. Returns their results, or raises the first error.

    visible: for each rank the numbers of the GPUs that it sees. first_here: see `as_threads`. of_machine: see
    `fake_cuda.Machine`. Fails if a rank has done what CUDA leaves undefined.
    """
    machine = fake_cuda.Machine(**{"gpus": world, "eager": 0.5, "sms": 1} | of_machine)
    processes = [fake_cuda.Process(machine, visible and visible[rank]) for rank in range(world)]
    driver = fake_cuda.Driver(processes[0])

    def run(comm: Any, rank: int) -> Any:
        driver.here.process = processes[rank]
        return body(comm, rank, driver)

    results = as_threads(Together(world, None), run, *patches(driver), first_here=first_here)
    assert not machine.violations, machine.violations
    return results
