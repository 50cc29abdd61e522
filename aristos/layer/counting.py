"""Adds up the counters that a call leaves in the engine's state.

`add_call` is compiled, because a few lines of Python would take as long as a whole call with few tokens.
"""

import numpy as np

from kernel_cache.compile import jit, warm_up

from ..engine import codes, words
from ..kernels import cpu as _lowerings  # noqa: F401  registers what the primitives compile to


@jit
def rows_of(job, st, expert):
    """How many rows for an expert this rank's tokens had in the call that has just ended."""
    slot, offset, held = job[job[words.SLOT_OF] + expert], job[words.T_OFFSET], job[words.HELD]
    rows = st[offset + slot + 1] - st[offset + slot]
    for foreign in range(job[words.COMPUTED] - held):
        if job[job[words.FOREIGN] + words.FOREIGN_WORDS * foreign] == slot:
            rows += st[words.staying(job, held) + foreign]
    return rows


@jit
def shared_rows(job, st):
    """How many rows the shared expert had in the call that has just ended. These rows never leave the rank."""
    if job[words.SHARED] == 0:
        return 0
    slot = job[job[words.SLOT_OF] + job[words.EXPERTS]]
    return st[job[words.T_OFFSET] + slot + 1] - st[job[words.T_OFFSET] + slot]


@jit
def add_call(job, st, first, counted, by_expert):
    """Add the counts of the call that has just ended.

    The state's words from number `first` on are added to `counted`, the rows of each expert to by_expert [E]. Returns
    (rows of all experts, rows of the shared expert) of the call.
    """
    for word in range(len(counted)):
        counted[word] += st[first + word]
    total = 0
    for expert in range(job[words.EXPERTS] - job[words.IDENTITY]):
        rows = rows_of(job, st, expert)
        by_expert[expert] += rows
        total += rows
    return total, shared_rows(job, st)


def dropped_rows(job: np.ndarray, state: np.ndarray, rows: int) -> int:
    """How many choices were beyond the capacity. rows: the number of rows of all experts together."""
    capacity = job.item(words.CAPACITY)
    if capacity == 0 or state.item(words.STATUS) != codes.OK:
        return 0
    return job.item(words.TOKENS) * job.item(words.CHOICES) - rows


def compile_counting() -> None:
    """Compile `add_call`."""
    from numba import int64

    table = int64[::1]
    warm_up([(add_call, (table, table, int64, table, table))])
