"""The builder of jobs: the CPU and CUDA substrates, the proxy and the schedule explorer all fill jobs here.

A job is filled part by part, as schema.py has the parts: `engine` (all calls of a runtime), `tile` (the kernel that
runs it), `object` (a layer or an exchange), `weights` and `call`. A part names all of its words or raises TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import schema, words
from .layout import EngineShape, PairLayout, StateLayout


def size(experts: int, world: int, foreign: int = 0) -> int:
    """Words of a job. foreign: experts of local peers that it may compute. Without experts a job only reaches peers."""
    return words.JOB_WORDS + experts + world + 1 + words.FOREIGN_WORDS * foreign


def names(part: str, substrate: str) -> set[str]:
    """Keywords of a part on a substrate. A region's offsets are not among them: its layout writes them."""
    found = [w for w in schema.JOB_SCALARS if w.part == part and w.substrate in (schema.ALL, substrate)]
    return {w.name.lower() for w in found if not w.name.startswith("P_")}


def fill(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write a part. Raises TypeError unless `values` names all words that the part has on this substrate."""
    wanted = names(part, substrate)
    if wanted != set(values):
        missing, unknown = sorted(wanted - set(values)), sorted(set(values) - wanted)
        raise TypeError(f"part {part!r} of a job for {substrate}: missing {missing}, unknown {unknown}")
    update(job, **values)


def update(job: Any, **values: int) -> None:
    """Write some words of a job."""
    for name, value in values.items():
        job[getattr(words, name.upper())] = value


def fill_layout(job: Any, shape: EngineShape, tables: StateLayout) -> None:
    """Write where everything lies: rings, regions and the tables of the state."""
    PairLayout.of(shape).fill(job)
    tables.fill(job)
    update(job, **_of_shape(shape))


def fill_engine(job: Any, substrate: str, shape: EngineShape, tables: StateLayout, **values: int) -> None:
    """Write the part `engine`, with all that `fill_layout` writes."""
    fill_layout(job, shape, tables)
    fill(job, schema.ENGINE, substrate, **_of_shape(shape), **values)


def _of_shape(shape: EngineShape) -> dict[str, int]:
    return {
        "stride": shape.stride,
        "ring_rows": shape.ring_rows,
        "slots": shape.slots,
        "max_computed": shape.max_held + shape.foreign,
        "max_rows": shape.return_rows,
    }


def fill_placement(job: Any, slot_of: Any, start: Any, foreign: Sequence[tuple[int, int]] = ()) -> None:
    """Write the tables of a job. slot_of: [experts], start: [world + 1]; see schema.JOB_TABLES.

    foreign: (slot, rank that holds it) of each expert of a local peer that this rank may compute, in the order of
    slots. The weights fill in their addresses.
    """
    first = words.JOB_WORDS
    middle = first + len(slot_of)
    end = middle + len(start)
    job[words.SLOT_OF], job[words.SLOT_START], job[words.FOREIGN] = first, middle, end
    job[first:middle], job[middle:end] = slot_of, start
    for i, (slot, owner) in enumerate(foreign):
        record = end + words.FOREIGN_WORDS * i
        job[words.foreign_slot(record)], job[words.foreign_owner(record)] = slot, owner
