"""Column-split runs: workers share a run of an expert by columns, so that few rows use every core or every block.

A run has a *number*. The number selects the run's command, which lies behind the commands of the workers, and the run's
memory for hidden activations. A worker claims the run under the rank's lock, lists its rows and opens it. Then workers
take the `UP_SHARES` shares of the hidden activations. When all of these are done, workers take the `DOWN_SHARES` shares
of the outputs. No sum is split between workers, so the bits do not depend on which worker takes which share.

Workers take and count shares without the lock. Each number has three counters: `next` (shares taken), `limit` (shares
that may be taken) and `done`. The counters go on from run to run, and the engine never resets them. So no share of one
run can be mistaken for a share of another. A worker takes a share by advancing `next` with compare_exchange while
`next` is below `limit`. `base` is the value of `next` at the run's first share. It is written before `limit`, and kept
until all shares are done.
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from ..primitives import memory as mem
from . import call_records, codes, tape, words
from .layout import state_word

COLUMNS = 96  # columns of a share on CPUs: a multiple of every panel width, and a divisor of a chunk of F
MOST_ROWS = 24  # the most rows of a column-split run on CPUs
SHARES_PER_TRY = 8  # about how many shares the workers of a rank take between two attempts to take the lock


def shares(columns: int) -> int:
    """The number of shares that `columns` columns are split into, on CPUs."""
    return -(-columns // COLUMNS)


@jit
def hidden(job, number):
    """Address of a run's hidden activations."""
    return job[words.SCRATCH] + job[words.SCRATCH_STEP] * job[words.ALL_WORKERS] + job[words.RUN_STEP] * number


@jit
def free_number(job, st):
    """A number that no run uses; -1 if there is none. (Under the lock.)"""
    if st[words.RUNS_TAKEN] == job[words.RUNS]:
        return -1
    for number in range(job[words.RUNS]):
        if st[words.run_taken(words.run(job, number))] == 0:
            return number
    return -1


@jit
def wanted(job, rows, active):
    """Whether a run of `rows` rows is split by columns. active: the number of experts that have rows.

    A run is split if ALL_SPLIT is set, or if it has few rows, F has two shares or more, and there are more workers than
    active experts. With scalars no run is split: no worker computes a whole run, so none could write its scalars back.
    """
    if job[words.MODE] != codes.MODE_LAYER or job[words.SCALARS] != 0:
        return False
    few = rows <= job[words.SPLIT_ROWS] and active < job[words.WORKERS] and job[words.FFN] >= 2 * COLUMNS
    return job[words.ALL_SPLIT] != 0 or few


@jit
def run_rows(job, rows):
    """How many rows the next run has if `rows` rows are cut into runs of nearly equal size."""
    runs = (rows + job[words.SPLIT_ROWS] - 1) // job[words.SPLIT_ROWS]
    return (rows + runs - 1) // runs


@jit
def claim(job, st, worker, number):
    """Reserve `number` for a run whose command is filled. This worker will list its rows. (Decide, under the lock.)"""
    st[words.run_taken(words.run(job, number))] = 1
    st[words.RUNS_TAKEN] += 1
    c, run = words.command(job, worker), words.run_command(job, number)
    st[words.command_kind(c)] = codes.LIST
    st[words.command_expert(c)] = st[words.command_expert(run)]
    st[words.command_rows(c)] = st[words.command_rows(run)]
    st[words.command_run(c)] = number


@jit
def list_hidden(job, st, number):
    """List the addresses of a run's rows of hidden activations. All threads of the claiming worker do this together."""
    c = words.run_command(job, number)
    for i in range(mem.thread(), st[words.command_rows(c)], mem.threads()):
        st[words.hidden_list(job, c) + i] = hidden(job, number) + job[words.RUN_PITCH] * i


@jit
def open_phase(job, run, limit):
    """Let workers take the shares up to `limit`."""
    mem.store_release(state_word(job, words.run_limit(run)), limit)
    mem.fetch_add(state_word(job, words.RUNS_OPENED), 1)  # last, so a worker that reads this count sees the limit


@jit
def open_run(job, st, number):
    """Let workers take shares of the first phase, because the rows are listed."""
    run = words.run(job, number)
    base = mem.load_acquire(state_word(job, words.run_limit(run)))  # all shares of earlier runs lie below it
    st[words.run_base(run)] = base
    open_phase(job, run, base + up_shares(job, st[words.command_expert(words.run_command(job, number))]))


@jit
def take_from(job, st, worker, number):
    """Take a share of the run with this number; False if there is none now."""
    run = words.run(job, number)
    limit = mem.load_acquire(state_word(job, words.run_limit(run)))
    share = mem.load_acquire(state_word(job, words.run_next(run)))
    while share < limit:
        if mem.compare_exchange(state_word(job, words.run_next(run)), share, share + 1):
            share -= st[words.run_base(run)]  # this run's base: the run cannot end before this share is done
            c, whole = words.command(job, worker), words.run_command(job, number)
            up = up_shares(job, st[words.command_expert(whole)])
            phase = codes.RUN_UP if share < up else codes.RUN_DOWN
            st[words.command_kind(c)] = codes.SHARE
            st[words.command_expert(c)] = st[words.command_expert(whole)]
            st[words.command_share(c)] = share - up * phase
            st[words.command_phase(c)] = phase
            st[words.command_rows(c)] = st[words.command_rows(whole)]
            st[words.command_run(c)] = number
            return True
        share = mem.load_acquire(state_word(job, words.run_next(run)))
    return False


@jit
def share_first(job, st, worker):
    """Whether this worker may take a share before it tries the lock.

    With fewer than SHARES_PER_TRY workers it always tries the lock first. With more workers, it tries the lock first
    for one of several shares.
    """
    c = words.command(job, worker)
    return (st[words.command_shares(c)] + worker) % (1 + job[words.WORKERS] // SHARES_PER_TRY) != 0


@jit
def take_share(job, st, worker):
    """Take a share of any run, if possible of this worker's last run; False if there is none. (Needs no lock.)"""
    c = words.command(job, worker)
    opened = mem.load_acquire(state_word(job, words.RUNS_OPENED))
    if st[words.command_opened(c)] == opened:
        return False
    number = st[words.command_run(c)]
    for _ in range(job[words.RUNS]):
        if take_from(job, st, worker, number):
            st[words.command_shares(c)] += 1
            return True
        number = number + 1 if number + 1 < job[words.RUNS] else 0
    st[words.command_opened(c)] = opened
    return False


@jit
def ffn_of(job, expert):
    """Width of an expert's hidden activations."""
    return job[words.SHARED_FFN] if expert + 1 == job[words.SHARED] else job[words.FFN]


@jit
def up_shares(job, expert):
    """Shares of the first phase of an expert's column-split run."""
    return job[words.SHARED_SHARES] if expert + 1 == job[words.SHARED] else job[words.UP_SHARES]


@jit
def weights_of(job, expert):
    """Addresses of an expert's weights; 0 for absent ones."""
    if expert >= job[words.HELD]:
        record = words.foreign(job, expert)
        return arithmetic.ExpertWeights(
            up=job[words.foreign_up(record)],
            gate=job[words.foreign_gate(record)],
            down=job[words.foreign_down(record)],
            up_bias=job[words.foreign_up_bias(record)],
            gate_bias=job[words.foreign_gate_bias(record)],
            down_bias=job[words.foreign_down_bias(record)],
        )
    if expert + 1 == job[words.SHARED]:
        return arithmetic.ExpertWeights(
            up=job[words.SHARED_UP],
            gate=job[words.SHARED_GATE],
            down=job[words.SHARED_DOWN],
            up_bias=job[words.SHARED_UP_BIAS],
            gate_bias=job[words.SHARED_GATE_BIAS],
            down_bias=job[words.SHARED_DOWN_BIAS],
        )
    gate, up_bias = job[words.GATE], job[words.UP_BIAS]
    gate_bias, down_bias = job[words.GATE_BIAS], job[words.DOWN_BIAS]
    return arithmetic.ExpertWeights(
        up=job[words.UP] + job[words.UP_STEP] * expert,
        gate=gate + job[words.UP_STEP] * expert if gate != 0 else 0,
        down=job[words.DOWN] + job[words.DOWN_STEP] * expert,
        up_bias=up_bias + job[words.UP_BIAS_STEP] * expert if up_bias != 0 else 0,
        gate_bias=gate_bias + job[words.UP_BIAS_STEP] * expert if gate_bias != 0 else 0,
        down_bias=down_bias + job[words.DOWN_BIAS_STEP] * expert if down_bias != 0 else 0,
    )


@jit
def execute(job, st, worker):
    """Compute the taken columns for all rows of the run, on a CPU."""
    c = words.command(job, worker)
    first, rows, number = st[words.command_share(c)] * COLUMNS, st[words.command_rows(c)], st[words.command_run(c)]
    x = state_word(job, words.row_list(words.run_command(job, number)))
    weights = weights_of(job, st[words.command_expert(c)])
    scratch = job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker
    activations, ffn = hidden(job, number), ffn_of(job, st[words.command_expert(c)])
    if st[words.command_phase(c)] == codes.RUN_UP:
        call = call_records.up_columns(
            job,
            rows=rows,
            x=x,
            activations=activations,
            weights=weights,
            ffn=ffn,
            first=first,
            columns=min(COLUMNS, ffn - first),
            scratch=scratch,
            kept=tape.list_of(job, st, words.run_command(job, number)),
        )
        arithmetic.up_columns(job[words.KERNELS], call)
    else:
        down = call_records.down_columns(
            job,
            rows=rows,
            activations=activations,
            y=x + 8 * job[words.BATCH],
            weights=weights,
            ffn=ffn,
            first=first,
            last=min(first + COLUMNS, job[words.HIDDEN]),
            scratch=scratch,
        )
        arithmetic.down_columns(job[words.KERNELS], down)


@jit
def share_done(job, st, number):
    """Count a share as done. True if it was the run's last share: the caller then finishes the run."""
    run = words.run(job, number)
    up = up_shares(job, st[words.command_expert(words.run_command(job, number))])
    base, down = st[words.run_base(run)], job[words.DOWN_SHARES]
    done = mem.fetch_add(state_word(job, words.run_done(run)), 1) + 1 - base
    if done == up:  # the release orders all work of the first phase before shares of the second
        open_phase(job, run, base + up + down)
    return done == up + down


@jit
def free(job, st, number):
    """Free the number for another run. (Under the lock.)"""
    st[words.run_taken(words.run(job, number))] = 0
    st[words.RUNS_TAKEN] -= 1
