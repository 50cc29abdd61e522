"""Graphs: launches that are captured once and launched again and again, with the order that they had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .errors import InputError
from .launches import Launch
from .streams import Stream


class Graph:
    """Captured launches of a Machine, which `launch` queues as often as one likes."""

    def __init__(self, machine: Any):
        self.machine = machine
        self.launches: list[Launch] = []

    def launch(self, stream: Stream | None = None) -> None:
        """Queue the launches. They and the stream, by default device 0's default stream, wait for each other."""
        machine = self.machine
        stream = stream or machine.devices[0].default
        with machine.lock:
            before = machine.needs_of(stream)
            copies: dict[int, Launch] = {}
            for one in self.launches:
                needs = [copies[id(need)] for need in one.needs if id(need) in copies]
                copies[id(one)] = replace(one, needs=needs or list(before), after=[])
            machine.queue += copies.values()
            for copy in copies.values():
                copy.stream.last = copy
            stream.waits = list(copies.values())


@contextlib.contextmanager
def capture(machine: Any) -> Iterator[Graph]:
    """A block in which the launches of a Machine are not queued, but become a graph. Nothing may run in it."""
    graph = Graph(machine)
    streams = [stream for gpu in machine.devices for stream in (gpu.default, *gpu.streams)]
    saved: list[Any] = [(stream.last, list(stream.waits)) for stream in streams]
    first = len(machine.queue)
    if machine.capturing:
        raise InputError("a graph is being captured already")
    machine.capturing = True
    try:
        yield graph
    finally:
        machine.capturing = False
        graph.launches, machine.queue = machine.queue[first:], machine.queue[:first]
        for stream, (last, waits) in zip(streams, saved):
            stream.last, stream.waits = last, waits
    if any(launch.after for launch in graph.launches):
        raise InputError("a graph takes arrays of the machine, because NumPy arrays are copied at each launch")
