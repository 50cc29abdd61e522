"""Scalars: 32 bits that travel beside the row of each (token, choice) pair, out to its owner and back.

A call has scalars if its job's SCALARS is set. On the way out, a scalar is the upper half of its pair's entry in the
index; the lower half is the place of the pair's row in the ring. On the way back, it is the last word of the return
row's slot. The writer of a row also writes its scalar, and one record and tail cover both. So scalars need no further
order, and no line has two writers. The engine does not interpret scalars. A kernel finds the scalars that came in the
command's list of scalars, and writes into this list the scalars that go back.

In calls with sums (`sums.py`) the index of a stream has instead the pair's weight, and a bit that names the pair whose
owner adds up.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import words
from .layout import WORD, index_from

HALF = (1 << 32) - 1
ADDS = 1 << 31  # in an entry of the index: this pair's owner adds up the outputs of the token


@jit
def entry(place, scalar):
    """An entry of the index: the place of a row in its ring, and the pair's scalar."""
    return place | scalar << 32


@jit
def place_of(entry):
    """The place in the ring that an entry of the index names."""
    return entry & ADDS - 1


@jit
def adds(entry):
    """Whether the owner of an index entry's pair adds up its token's outputs, in a call with sums."""
    return entry & ADDS != 0


@jit
def weight_at(weights, i):
    """The bits of float32 number i of an array of weights."""
    at = weights + 4 * i
    return mem.load(at & -WORD) >> 8 * (at & WORD - 1) & HALF


@jit
def set_weight(weights, i, bits):
    """Write float32 number i into an array that begins on a line. The caller writes them in rising order of i."""
    at = weights + WORD * (i // 2)
    mem.store(at, bits if i % 2 == 0 else mem.load(at) & HALF | bits << 32)


@jit
def scalar_of(entry):
    """The scalar in an entry of the index."""
    return entry >> 32 & HALF


@jit
def of_pair(job, pair):
    """The scalar that goes out with this rank's pair number token * k + choice; 0 in a call without scalars."""
    return mem.load(job[words.SCALARS_OUT] + WORD * pair) & HALF if job[words.SCALARS] != 0 else 0


@jit
def of_packed(job, st, packed):
    """The scalar that goes out with an own packed row."""
    pair = job[words.TOP_K] * st[words.token(job, packed)]
    while st[words.position(job, pair)] != packed:
        pair += 1
    return of_pair(job, pair)


@jit
def list_out(job, st, c):
    """List the scalars that came with a command's rows. All threads of the worker do this together."""
    have = words.scalar_list(job, c)
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        source, rows, first = st[words.part_source(part)], st[words.part_rows(part)], st[words.part_first(part)]
        for j in range(mem.thread(), rows, mem.threads()):
            if source == job[words.RANK]:
                st[have + j] = of_packed(job, st, first + j)
            else:
                st[have + j] = scalar_of(mem.load(index_from(job, st, source, first + j)))
        have += rows


@jit
def back_at(job, row):
    """Address of the scalar in the slot of a return row."""
    return row + job[words.RETURN_STRIDE] - WORD


@jit
def put_back(job, st, c):
    """Write the listed scalars beside a command's output rows. All threads of the worker do this together."""
    outputs, have = words.output_list(job, c), words.scalar_list(job, c)
    for i in range(mem.thread(), st[words.command_rows(c)], mem.threads()):
        mem.store(back_at(job, st[outputs + i]), st[have + i])


@jit
def take_back(job, st, c):
    """Store the scalars that came back for the tokens of a combine command, in the order of pairs.

    A pair without a row gets 0. All threads of the worker do this together.
    """
    rows, first = words.row_list(c), job[words.TOP_K] * st[words.command_first(c)]
    for i in range(mem.thread(), job[words.TOP_K] * st[words.command_rows(c)], mem.threads()):
        came = st[words.position(job, first + i)] >= 0
        scalar = mem.load(back_at(job, st[rows + i])) & HALF if came else 0
        mem.store(job[words.SCALARS_BACK] + WORD * (first + i), scalar)
