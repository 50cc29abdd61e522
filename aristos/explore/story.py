"""The story of a run for readers: step, actor, function, and word with its value before and after."""

from __future__ import annotations

from .memory_model import Event, Memory


def text(memory: Memory, last: int = 60) -> str:
    """The last events, one on each line."""
    events = memory.story or []
    lines = [f"{len(events) - last} earlier events are left out"] if len(events) > last else []
    return "\n".join(lines + [_line(memory, event) for event in events[-last:]])


def _line(memory: Memory, e: Event) -> str:
    change = "" if e.what.startswith("put") else f": {_number(e.old)} -> {_number(e.new)}"
    return f"{e.step:6d}  {e.actor:16s} {e.where:24s} {e.what:10s} {memory.name(e.at)}{change}"


def _number(value: int) -> str:
    return str(value) if abs(value) < 10**12 else f"#{value % 10**6:06d}"
