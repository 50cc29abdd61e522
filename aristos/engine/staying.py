"""Which rows of this rank's tokens stay here: rows for experts of local peers whose weights this rank can read.

A row that travels is written and read in the ring, and its output in the return rows. A row that stays is not copied,
but its expert's weights are read once more. So there are two reasons to stay:

- An expert has many rows here (STAY_ROWS): their copies would cost more than the reading. This reason counts only if
  the busiest rank of the node then has at most STAY_SHARE percent of the rows that it has when all travel.
- The rows take work from the busiest rank of the node, more than the reading costs (BALANCE_ROWS).

No rank knows how the others route this call. Each expects its peers to route as it does, with as many tokens as they
announced last.
"""

from ..primitives.compile import jit
from . import words


@jit
def choose(job, st, tokens):
    """Decide which rows stay: set `staying` of each foreign expert, and subtract these rows from `count` of its slot.

    tokens: of this rank. With STAY_SHARE 0 the first reason alone counts, without a limit. Else no row of a call with
    fewer than BALANCE_ROWS rows stays.
    """
    clear(job, st)
    if job[words.STAY_SHARE] == 0:
        mark_many(job, st)
    elif rows_of_all(job, st) >= job[words.BALANCE_ROWS]:
        set_loads(job, st, tokens)
        most = st[words.load(job, busiest(job, st))] * job[words.STAY_SHARE]
        mark_many(job, st)
        set_loads(job, st, tokens)
        if st[words.load(job, busiest(job, st))] * 100 > most:
            clear(job, st)
            set_loads(job, st, tokens)
        while balance(job, st, tokens):
            pass
    for expert in range(job[words.HELD], job[words.COMPUTED]):
        slot = job[words.foreign_slot(words.foreign(job, expert))]
        rows = st[words.count(job, slot)] if st[words.in_place(job, slot)] != 0 else 0
        st[words.staying(job, expert)] = rows
        st[words.count(job, slot)] -= rows


@jit
def clear(job, st):
    """Mark no slot but that of this rank's shared expert, whose rows every rank computes for its own tokens."""
    for s in range(job[words.slot_start(job, job[words.WORLD])]):
        st[words.in_place(job, s)] = 0
    if job[words.SHARED] != 0:
        st[words.in_place(job, shared_slot(job))] = 1


@jit
def shared_slot(job):
    """The slot of this rank's shared expert. SHARED is 1 + its number among the held experts."""
    return job[words.slot_start(job, job[words.RANK])] + job[words.SHARED] - 1


@jit
def mark_many(job, st):
    """Mark each slot of a local rank whose rows here are STAY_ROWS or more: copying them costs more than reading."""
    for p in range(job[words.WORLD]):
        if is_local(job, st, p):
            for s in range(job[words.slot_start(job, p)], job[words.slot_start(job, p + 1)]):
                if st[words.count(job, s)] >= job[words.STAY_ROWS]:
                    st[words.in_place(job, s)] = 1


@jit
def rows_of_all(job, st):
    """How many rows this rank's tokens have, over all slots."""
    rows = 0
    for s in range(job[words.slot_start(job, job[words.WORLD])]):
        rows += st[words.count(job, s)]
    return rows


@jit
def is_local(job, st, p):
    """Whether rank `p` is this rank or on its node."""
    return p == job[words.RANK] or st[words.remote(job, p)] == 0


@jit
def tokens_at(job, st, tokens, p):
    """Tokens that rank `p` is expected to have: as many as it announced last, or as this rank if it announced none."""
    if p == job[words.RANK] or st[words.tokens_of(job, p)] == 0:
        return tokens
    return st[words.tokens_of(job, p)] - 1


@jit
def rows_at(job, st, tokens, slot, p):
    """Rows that rank `p` has for a slot, if it routes as this rank does."""
    return st[words.count(job, slot)] * tokens_at(job, st, tokens, p) // max(1, tokens)


@jit
def set_loads(job, st, tokens):
    """Set `load`: the rows that each local rank is expected to compute if the rows of marked slots stay."""
    world = job[words.WORLD]
    for p in range(world):
        st[words.load(job, p)] = 0
    for owner in range(world):
        if not is_local(job, st, owner):
            continue
        for s in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
            for p in range(world):
                here = is_local(job, st, p)
                if here or job[words.SHARED] == 0 or s != shared_slot(job):
                    stays = st[words.in_place(job, s)] != 0 and here
                    st[words.load(job, p if stays else owner)] += rows_at(job, st, tokens, s, p)


@jit
def busiest(job, st):
    """The rank with the largest `load`."""
    found = 0
    for p in range(1, job[words.WORLD]):
        if st[words.load(job, p)] > st[words.load(job, found)]:
            found = p
    return found


@jit
def load_after(job, st, tokens, slot, owner):
    """The largest `load` if the rows of `slot` stay too. Each rank with such rows then also reads the weights."""
    left, most = st[words.load(job, owner)], 0
    for p in range(job[words.WORLD]):
        if p != owner and is_local(job, st, p):
            rows, more = rows_at(job, st, tokens, slot, p), st[words.load(job, p)]
            left -= rows
            if rows > 0:
                more += rows + job[words.BALANCE_ROWS]
            most = max(most, more)
    return max(left, most)


@jit
def balance(job, st, tokens):
    """Mark the slot of the busiest rank whose rows relieve it most by staying; False if none is worth a reading."""
    owner = busiest(job, st)
    least, best = st[words.load(job, owner)] - job[words.BALANCE_ROWS], -1
    for s in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
        if st[words.in_place(job, s)] == 0:
            after = load_after(job, st, tokens, s, owner)
            if after < least:
                least, best = after, s
    if best < 0:
        return False
    st[words.in_place(job, best)] = 1
    for p in range(job[words.WORLD]):
        rows = rows_at(job, st, tokens, best, p)
        if p != owner and is_local(job, st, p) and rows > 0:
            st[words.load(job, owner)] -= rows
            st[words.load(job, p)] += rows + job[words.BALANCE_ROWS]
    return True
