"""Streams of a device, and events: what a launch waits for before it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import InputError
from .launches import Launch


@dataclass(eq=False)
class Stream:
    """A queue of launches of one device, which begin in order.

    Launches of different streams run at the same time. blocking: whether the stream and the device's default stream
    wait for each other, as with a stream of cudaStreamCreate. last: the launch queued last. waits: launches that the
    next launch of the stream also waits for. graph: the executable graph whose nodes alone the stream has, else None.
    """

    device: int
    blocking: bool = True
    last: Launch | None = None
    waits: list[Launch] = field(default_factory=list)
    graph: Any = None

    def record(self) -> Event:
        """An event that is over when all launches so far have ended."""
        return Event([*([self.last] if self.last else []), *self.waits])

    def wait(self, event: Event) -> None:
        """Let later launches of this stream begin only when the event is over."""
        if not isinstance(event, Event):
            raise InputError(f"wait takes what Stream.record returned, got {type(event).__name__}")
        self.waits += event.launches


@dataclass(frozen=True)
class Event:
    """A moment in a stream. launches: these, and all that precede them in their streams, end before the moment."""

    launches: list[Launch]


def needs_of(stream: Stream, default: Stream, streams: list[Stream]) -> list[Launch]:
    """The launches that must end before the next launch of a stream begins.

    default: the default stream of the device. streams: the device's other streams.
    """
    others = streams if stream is default else [default]
    legacy = [one for other in others if stream.blocking and other.blocking for one in (*other.waits, other.last)]
    return [one for one in (*legacy, *stream.waits, stream.last) if one is not None]


def places(launches: list[Launch]) -> tuple[dict[int, tuple[int, int]], list[list[int]]]:
    """Number the streams of a run's launches.

    Returns (launch's id -> (stream, place in it, from 1), for each stream the numbers of its launches).
    """
    numbers: dict[Any, int] = {}
    lists: list[list[int]] = []
    found = {}
    for number, launch in enumerate(launches):
        stream = numbers.setdefault(id(launch.stream), len(numbers))
        if stream == len(lists):
            lists.append([])
        lists[stream].append(number)
        found[id(launch)] = stream, len(lists[stream])
    return found, lists
