"""Which own rows stay on this rank: rows for experts of local peers whose weights it can read.

A row that travels is copied; rows that stay need one more reading of their expert's weights. So the rows of an expert
stay if there are many of them (STAY_ROWS). Fewer stay if that takes work from the busiest rank of the node. No rank
knows how the others route this call: it expects them to route as it does, with as many tokens as they announced last.
"""

from ..primitives.compile import jit
from . import words


@jit
def choose(job, st, tokens):
    """Set `staying` of the experts of local peers, and take these rows out of `count`, the rows of each slot."""
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
    """Mark the slots of local ranks for which a rank has so many rows that copying them costs more than reading."""
    for p in range(job[words.WORLD]):
        if is_local(job, st, p):
            for s in range(job[words.slot_start(job, p)], job[words.slot_start(job, p + 1)]):
                if st[words.count(job, s)] >= job[words.STAY_ROWS]:
                    st[words.in_place(job, s)] = 1


@jit
def rows_of_all(job, st):
    """Own rows for all slots."""
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
    """Tokens of rank `p` as far as this rank knows: of a peer those of its last call, or as many as it has itself."""
    if p == job[words.RANK] or st[words.tokens_of(job, p)] == 0:
        return tokens
    return st[words.tokens_of(job, p)] - 1


@jit
def rows_at(job, st, tokens, slot, p):
    """Rows that rank `p` has for a slot, if it routes as this rank does."""
    return st[words.count(job, slot)] * tokens_at(job, st, tokens, p) // max(1, tokens)


@jit
def set_loads(job, st, tokens):
    """Set `load`, the rows that each local rank computes with the slots that are marked."""
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
    """The rank with the most rows of `load`."""
    found = 0
    for p in range(1, job[words.WORLD]):
        if st[words.load(job, p)] > st[words.load(job, found)]:
            found = p
    return found


@jit
def load_after(job, st, tokens, slot, owner):
    """Rows of the busiest rank if the rows for one more slot stay. A rank that has some then reads its weights."""
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
    """Mark the slot of the busiest rank that relieves it most, if by more than a reading. Returns whether one did."""
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
