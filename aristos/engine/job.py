"""Functions that fill jobs, for the CPU and CUDA substrates, the proxy and the schedule explorer.

A job is filled part by part; schema.py lists the parts. Some parts last from call to call: `engine` (for all calls of a
runtime), `tile` (for the kernel that runs the job), `object` (for a layer or an exchange), `weights`, `kind` (for some
calls of the object), `events`, `tape`, `backward`, `landing` (where rows of an exchange go). `start` and `call` are
filled for each call. A part is filled as a whole, and once. To fill it again, call `renew` first. `check` checks a job
before its call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np

from . import schema, words
from .layout import EngineShape, PairLayout, StateLayout

SUBSTRATES = schema.CPU, schema.CUDA
BITS = {(s, part): 1 << i for i, (s, part) in enumerate((s, part) for s in SUBSTRATES for part in schema.PARTS)}
ALL_OF = {s: sum(BITS[s, part] for part in schema.PARTS) for s in SUBSTRATES}
LASTING = sum(bit for (_, part), bit in BITS.items() if part in schema.LASTING)
OF_CALL = sum(bit for (_, part), bit in BITS.items() if part in schema.OF_CALL)


def size(experts: int, world: int, foreign: int = 0) -> int:
    """How many words a job has.

    experts: how many experts there are; 0 for a job that only reaches peers. foreign: how many experts of local peers
    the rank may compute.
    """
    return words.JOB_WORDS + experts + world + 1 + words.FOREIGN_WORDS * foreign


@dataclass(frozen=True)
class Part:
    """A part of a job on a substrate.

    places: the indices of the part's words, by keyword. bit: the part's bit in FILLED. indices: the same indices, in
    order. in_order: a function that takes the words' values by keyword and returns them in this order.
    """

    places: dict[str, int]
    bit: int
    indices: np.ndarray
    in_order: Callable[[dict[str, int]], Any]


@cache
def bits_of(substrate: str, *parts: str) -> int:
    """The bits of parts in a job's word FILLED."""
    return sum(BITS[substrate, part] for part in parts)


@cache
def part_of(part: str, substrate: str) -> Part:
    """A part of a job. The offsets in a region belong to no part, because the region's layout writes them."""
    found = [w for w in (*schema.JOB_SCALARS, *schema.JOB_CHECKS) if w.part == part]
    names = [w.name for w in found if w.substrate in (schema.ALL, substrate) and not w.name.startswith("P_")]
    places = {name.lower(): getattr(words, name) for name in names}
    indices = np.array(list(places.values()), np.int64)
    return Part(places, BITS[substrate, part], indices, itemgetter(*places) if places else lambda _: ())


def fill(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write a part. Raises TypeError unless `values` names all words that the part has on this substrate.

    Raises RuntimeError if the part is filled already, or if a part was filled for the other substrate.
    """
    this = part_of(part, substrate)
    try:
        ordered = this.in_order(values)  # every call runs this: it finds a missing word faster than sets do
        complete = len(values) == len(this.places)
    except KeyError:
        complete = False
    if not complete:
        missing, unknown = sorted(this.places.keys() - values.keys()), sorted(values.keys() - this.places.keys())
        raise TypeError(f"part {part!r} of a job for {substrate}: missing {missing}, unknown {unknown}")
    _count(job, this, part, substrate)
    if type(job) is np.ndarray:
        job[this.indices] = ordered  # this takes half the time of writing the words one by one
    else:
        update(job, **values)


def fill_some(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write a part; words that `values` does not name are 0. Raises as `fill` does."""
    fill(job, part, substrate, **dict.fromkeys(part_of(part, substrate).places, 0) | values)


def fill_again(job: Any, part: str, substrate: str, **values: int) -> None:
    """Write some words of a part; the others keep their values. Raises RuntimeError as `fill` does."""
    this = part_of(part, substrate)
    _count(job, this, part, substrate)
    for name, value in values.items():
        job[this.places[name]] = value


def leave_out(job: Any, substrate: str, *parts: str) -> None:
    """Fill parts that a job does not use with 0."""
    for part in parts:
        fill_some(job, part, substrate)


def _count(job: Any, this: Part, part: str, substrate: str) -> None:
    """Count a part as filled. Raises RuntimeError if it is filled already, or a part for the other substrate is."""
    filled = _filled(job)
    if filled & this.bit:
        raise RuntimeError(f"part {part!r} of a job is filled twice: call renew() before it changes")
    if filled & ~ALL_OF[substrate]:
        raise RuntimeError(f"part {part!r} is filled for {substrate}, but other parts of the job for another substrate")
    job[words.FILLED] = filled | this.bit


def _filled(job: Any) -> int:
    return job.item(words.FILLED) if type(job) is np.ndarray else job[words.FILLED]


def renew(job: Any, *parts: str) -> None:
    """Let parts be filled again."""
    job[words.FILLED] = _filled(job) & ~sum(BITS[s, part] for s in SUBSTRATES for part in parts)


def renew_call(job: Any) -> None:
    """Let the parts of a call be filled again."""
    if (filled := _filled(job)) & OF_CALL:
        job[words.FILLED] = filled & ~OF_CALL


def check(job: Any, substrate: str, layout: int, later: Sequence[str] = ()) -> None:
    """Raise RuntimeError unless all parts of a job are filled, for this substrate and this layout.

    layout: the version of windows and tables. later: parts that will be filled elsewhere. After the check the parts of
    the call count as used, so the next call must fill them again.
    """
    filled = _filled(job) | bits_of(substrate, *later)
    if filled != ALL_OF[substrate]:
        missing = ALL_OF[substrate] & ~filled
        parts = [part for part in schema.PARTS if BITS[substrate, part] & missing]
        raise RuntimeError(f"a job for {substrate} lacks the parts {', '.join(parts)}")
    if (found := int(job[words.LAYOUT])) != layout:
        raise RuntimeError(f"a job must be filled for layout {layout}, got one for layout {found}")
    job[words.FILLED] = filled & LASTING


def start(job: Any, substrate: str, layout: int, epoch: int) -> None:
    """Fill the part `start` and check the job."""
    job[words.EPOCH] = epoch
    check(job, substrate, layout, (schema.START,))


def update(job: Any, **values: int) -> None:
    """Write some words of a job."""
    for name, value in values.items():
        job[getattr(words, name.upper())] = value


def fill_layout(job: Any, shape: EngineShape, tables: StateLayout) -> None:
    """Write where rings, regions and the tables of the state lie."""
    PairLayout.from_shape(shape).fill(job)
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
        "local_rows": shape.local_ring,
        "ring_records": shape.ring_records,
        "max_computed": shape.max_held + shape.foreign,
        "max_rows": shape.return_rows,
    }


def fill_placement(job: Any, slot_of: Any, start: Any, foreign: Sequence[tuple[int, int]] = ()) -> None:
    """Write a job's tables of the placement. slot_of: [experts], start: [world + 1]; see schema.JOB_TABLES.

    foreign: (slot, rank that holds it) for each expert of a local peer that this rank may compute, in the order of
    slots. The object that holds the weights writes the addresses of these experts.
    """
    first = words.JOB_WORDS
    middle = first + len(slot_of)
    end = middle + len(start)
    job[words.SLOT_OF], job[words.SLOT_START], job[words.FOREIGN] = first, middle, end
    job[first:middle], job[middle:end] = slot_of, start
    for i, (slot, owner) in enumerate(foreign):
        record = end + words.FOREIGN_WORDS * i
        job[words.foreign_slot(record)], job[words.foreign_owner(record)] = slot, owner
