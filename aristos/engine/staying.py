"""Decides which rows of this rank's tokens stay here, among rows for experts of local peers that this rank can read.

A row that travels is written to the ring and read there, and its output is written to the return rows and read there. A
row that stays is not copied, but its expert's weights are read once more. There are two reasons for a row to stay:

- The expert has many rows here (at least STAY_ROWS), so copying them would cost more than reading the weights. This
  reason counts only if the busiest rank of the node then has no more work than if all rows travel.
- By staying, the rows relieve the busiest rank of the node of more work than the reading costs (READING_ROWS). This
  reason counts only if the busiest rank has more work than chance explains (`uneven`).

Work is arithmetic, copies and readings, in one unit. The arithmetic of a row is 2 STAY_ROWS units. Reading an expert
takes as long as the arithmetic of READING_ROWS rows, and as long as the copies of STAY_ROWS rows. So the copies of a
row are 2 READING_ROWS units; the row's source makes half of them, and the owner the other half.

No rank knows how the others route this call. Each rank assumes that its peers route as it does, and that they have as
many tokens as they announced last.
"""

import math

from kernel_cache.compile import jit

from . import words


@jit
def choose(job, st, tokens):
    """Decide which rows stay: set `staying` of each foreign expert, and subtract these rows from `count` of its slot.

    tokens: how many tokens this rank has. Without BUSIEST_DECIDES only the first reason counts, however much work ranks
    then have. With it, no row stays in a call with fewer than READING_ROWS rows.
    """
    clear(job, st)
    if job[words.BUSIEST_DECIDES] == 0:
        mark_many(job, st)
    elif rows_of_all(job, st) >= job[words.READING_ROWS]:
        set_work(job, st, tokens)
        most = st[words.work(job, busiest(job, st))]
        if mark_many(job, st):
            set_work(job, st, tokens)
            if st[words.work(job, busiest(job, st))] > most:
                clear(job, st)
                set_work(job, st, tokens)
        if uneven(job, st):
            while balance(job, st, tokens):
                pass
    for expert in range(job[words.HELD], job[words.COMPUTED]):
        slot = job[words.foreign_slot(words.foreign(job, expert))]
        rows = st[words.count(job, slot)] if st[words.in_place(job, slot)] != 0 else 0
        st[words.staying(job, expert)] = rows
        st[words.count(job, slot)] -= rows


@jit
def clear(job, st):
    """Mark only the slot of this rank's shared expert, because every rank computes its own tokens' rows for it."""
    for s in range(job[words.slot_start(job, job[words.WORLD])]):
        st[words.in_place(job, s)] = 0
    if job[words.SHARED] != 0:
        st[words.in_place(job, shared_slot(job))] = 1


@jit
def shared_slot(job):
    """The slot of this rank's shared expert. SHARED is 1 + the expert's number among the held experts."""
    return job[words.slot_start(job, job[words.RANK])] + job[words.SHARED] - 1


@jit
def mark_many(job, st):
    """Mark each local rank's slots with STAY_ROWS or more rows here: copying these costs more than reading the expert.

    Returns whether any slot was marked.
    """
    found = False
    for p in range(job[words.WORLD]):
        if is_local(job, st, p):
            for s in range(job[words.slot_start(job, p)], job[words.slot_start(job, p + 1)]):
                if st[words.count(job, s)] >= job[words.STAY_ROWS]:
                    st[words.in_place(job, s)] = 1
                    found = True
    return found


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
    """How many tokens rank `p` is expected to have: as many as it announced last, or else as many as this rank has."""
    if p == job[words.RANK] or st[words.tokens_of(job, p)] == 0:
        return tokens
    return st[words.tokens_of(job, p)] - 1


@jit
def rows_at(job, st, tokens, slot, p):
    """How many rows rank `p` has for a slot, if it routes as this rank does."""
    return st[words.count(job, slot)] * tokens_at(job, st, tokens, p) // max(1, tokens)


@jit
def arithmetic(job):
    """Work of a row's arithmetic."""
    return 2 * job[words.STAY_ROWS]


@jit
def copies(job):
    """Work of a row's copies for its source. The owner has as much work with them."""
    return job[words.READING_ROWS]


@jit
def reading(job):
    """Work of reading the weights of an expert once more."""
    return 2 * job[words.STAY_ROWS] * job[words.READING_ROWS]


@jit
def set_work(job, st, tokens):
    """Set `work`: the work that each local rank is expected to have if the rows of marked slots stay."""
    world = job[words.WORLD]
    for p in range(world):
        st[words.work(job, p)] = 0
    for owner in range(world):
        if not is_local(job, st, owner):
            continue
        for s in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
            for p in range(world):
                if job[words.SHARED] == 0 or s != shared_slot(job):
                    add_work(job, st, rows_at(job, st, tokens, s, p), p, owner, st[words.in_place(job, s)])
                elif is_local(job, st, p):  # rank p computes the slot with its own weights
                    st[words.work(job, p)] += rows_at(job, st, tokens, s, p) * arithmetic(job)


@jit
def add_work(job, st, rows, p, owner, stay):
    """Add the work of `rows` rows of rank `p` for an expert of `owner` to `work`. stay: whether the rows stay."""
    if p == owner:
        st[words.work(job, owner)] += rows * arithmetic(job)
    elif stay == 0 or not is_local(job, st, p):
        st[words.work(job, owner)] += rows * (arithmetic(job) + copies(job))
        if is_local(job, st, p):
            st[words.work(job, p)] += rows * copies(job)
    elif rows > 0:
        st[words.work(job, p)] += rows * arithmetic(job) + reading(job)


@jit
def busiest(job, st):
    """The rank with the largest `work`."""
    found = 0
    for p in range(1, job[words.WORLD]):
        if st[words.work(job, p)] > st[words.work(job, found)]:
            found = p
    return found


@jit
def uneven(job, st):
    """Whether the busiest rank's work exceeds the mean by more than chance explains: by three standard deviations.

    If all experts are equally likely to get each of n rows, one of w ranks gets a share of 1 / w. The standard
    deviation of this share is sqrt((w - 1) / n) / w.
    """
    whole, ranks = 0, 0
    for p in range(job[words.WORLD]):
        if is_local(job, st, p):
            whole, ranks = whole + st[words.work(job, p)], ranks + 1
    chance = 3 * math.sqrt((ranks - 1) / max(1, rows_of_all(job, st))) / ranks
    return st[words.work(job, busiest(job, st))] > whole * (1 / ranks + chance)


@jit
def work_after(job, st, tokens, slot, owner):
    """The largest `work` if the rows of `slot` stay too."""
    left, most = st[words.work(job, owner)], 0
    for p in range(job[words.WORLD]):
        if p != owner and is_local(job, st, p):
            rows = rows_at(job, st, tokens, slot, p)
            left -= rows * (arithmetic(job) + copies(job))
            most = max(most, st[words.work(job, p)] + more_work(job, rows))
    return max(left, most)


@jit
def more_work(job, rows):
    """How much more work a rank has if `rows` rows of an expert stay on it than if they travel."""
    return rows * (arithmetic(job) - copies(job)) + reading(job) if rows > 0 else 0


@jit
def balance(job, st, tokens):
    """Mark that slot of the busiest rank whose rows relieve it most by staying; False if no slot is worth a reading."""
    owner = busiest(job, st)
    least, best = st[words.work(job, owner)] - reading(job), -1
    for s in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
        if st[words.in_place(job, s)] == 0:
            after = work_after(job, st, tokens, s, owner)
            if after < least:
                least, best = after, s
    if best < 0:
        return False
    st[words.in_place(job, best)] = 1
    for p in range(job[words.WORLD]):
        rows = rows_at(job, st, tokens, best, p)
        if p != owner and is_local(job, st, p):
            st[words.work(job, owner)] -= rows * (arithmetic(job) + copies(job))
            st[words.work(job, p)] += more_work(job, rows)
    return True
