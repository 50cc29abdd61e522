"""The builder of jobs: the CPU and CUDA substrates, the proxy and the schedule explorer all fill jobs here.

A job is filled part by part, as schema.py has the parts. Some last from call to call: `engine` (all calls of a
runtime), `tile` (the kernel that runs it), `object` (a layer or an exchange), `weights`, `kind` (which calls of the
object), `backward`, `landing` (where rows of an exchange go). `start`, `call`, `tape` and `events` are filled for each
call. A part is filled whole and once; where it changes, `renew` comes first. `check` looks at a job before its call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from . import schema, words
from .layout import EngineShape, PairLayout, StateLayout

SUBSTRATES = schema.CPU, schema.CUDA
BITS = {(s, part): 1 << i for i, (s, part) in enumerate((s, part) for s in SUBSTRATES for part in schema.PARTS)}
ALL_OF = {s: sum(BITS[s, part] for part in schema.PARTS) for s in SUBSTRATES}
LASTING = sum(bit for (_, part), bit in BITS.items() if part in schema.LASTING)
OF_CALL = sum(bit for (_, part), bit in BITS.items() if part in schema.OF_CALL)


def size(experts: int, world: int, foreign: int = 0) -> int:
    """Words of a job. foreign: experts of local peers that it may compute. Without experts a job only reaches peers."""
    return words.JOB_WORDS + experts + world + 1 + words.FOREIGN_WORDS * foreign


@cache
def places(part: str, substrate: str) -> Mapping[str, int]:
    """The words of a part on a substrate, by keyword. A region's offsets are not among them: its layout writes them."""
    found = [w for w in (*schema.JOB_SCALARS, *schema.JOB_CHECKS) if w.part == part]
    names = [w.name for w in found if w.substrate in (schema.ALL, substrate) and not w.name.startswith("P_")]
    return MappingProxyType({name.lower(): getattr(words, name) for name in names})


def fill(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write a part. Raises TypeError unless `values` names all words that the part has on this substrate.

    Raises RuntimeError where the part is filled already, or a part was filled for the other substrate.
    """
    at = places(part, substrate)
    if at.keys() != values.keys():
        missing, unknown = sorted(at.keys() - values.keys()), sorted(values.keys() - at.keys())
        raise TypeError(f"part {part!r} of a job for {substrate}: missing {missing}, unknown {unknown}")
    filled, bit = int(job[words.FILLED]), BITS[substrate, part]
    if filled & bit:
        raise RuntimeError(f"part {part!r} of a job is filled twice: renew() it where it changes")
    if filled & ~ALL_OF[substrate]:
        raise RuntimeError(f"part {part!r} is filled for {substrate}, other parts of the job are not")
    job[words.FILLED] = filled | bit
    for name, value in values.items():
        job[at[name]] = value


def fill_some(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write a part; words that `values` does not name are 0. Raises as `fill` does."""
    fill(job, part, substrate, **dict.fromkeys(places(part, substrate), 0) | values)


def leave_out(job: Any, substrate: str, *parts: str) -> None:
    """Fill parts that a job does not use with 0."""
    for part in parts:
        fill_some(job, part, substrate)


def renew(job: Any, *parts: str) -> None:
    """Let parts be filled again."""
    job[words.FILLED] = int(job[words.FILLED]) & ~sum(BITS[s, part] for s in SUBSTRATES for part in parts)


def renew_call(job: Any) -> None:
    """Let the parts of a call be filled again."""
    job[words.FILLED] = int(job[words.FILLED]) & ~OF_CALL


def check(job: Any, substrate: str, layout: int, later: Sequence[str] = ()) -> None:
    """Raise RuntimeError unless a job is filled: all parts, for this substrate and this layout of windows and tables.

    later: parts that are filled elsewhere. The parts of the call are then used up: the next call fills them again.
    """
    filled = int(job[words.FILLED])
    missing = ALL_OF[substrate] & ~filled & ~sum(BITS[substrate, part] for part in later)
    if missing:
        parts = [part for part in schema.PARTS if BITS[substrate, part] & missing]
        raise RuntimeError(f"a job for {substrate} lacks the parts {', '.join(parts)}")
    if job[words.LAYOUT] != layout:
        raise RuntimeError(f"a job must be filled for layout {layout}, got one for layout {int(job[words.LAYOUT])}")
    job[words.FILLED] = filled & LASTING


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
