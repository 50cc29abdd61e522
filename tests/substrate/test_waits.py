"""Every wait is bounded: a late, stopped, killed or interrupted rank causes an error that names it, not a hang.

Each test is a separate MPI job, because it ends badly on purpose. To order events, a rank waits for a line in another
rank's output. Bounds on seconds are generous, because ranks share few cores.
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from cases import run_job
from mpi import find_mpiexec

from aristos.engine import codes, words
from aristos.primitives import memory as mem
from aristos.substrate import idle
from aristos.substrate.failure import poisoned, wait_message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parallel,
    pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"),
]

LAYER = """
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=4, top_k=2, max_tokens=64)
x = tokens(cfg, 50, seed=rank)
def made(**options):  # rows that stay would wait for no rank
    moe = aristos.MoE(cfg, comm, moves="tokens", **options)
    moe.load(**reference.weights(cfg))
    moe(x)
    return moe
def leave(*words):
    say(*words)
    comm.Barrier()  # a launcher kills the other ranks when one is gone
    sys.exit(0)
def wait_for_line(other, words):  # waits, in user code, until that rank's output has these words
    while words not in open(f"rank-{other}.out").read():
        time.sleep(0.05)
def signal_me(what, after):
    threading.Thread(target=lambda: (time.sleep(after), os.kill(os.getpid(), what)), daemon=True).start()
"""


def ended(job):
    """Check that the job ended by itself. Its code may say that a call failed, even if the ranks caught the error."""
    assert job.code in (0, 86, 9), job.out  # 9: a rank was killed when another one ended


def line_of(job, rank, pattern):
    """The only line of a rank's output with this pattern."""
    found = [line for line in job.lines(rank) if re.search(pattern, line)]
    assert len(found) == 1, job.out[rank]
    return found[0]


def test_a_rank_that_never_calls(tmp_path):
    """Rank 1 stays in user code. Rank 0 warns after `timeout` and raises after `absent_timeout`."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    moe = made(timeout=0.3, absent_timeout=2.0)
    if rank == 1:
        wait_for_line(0, "timeout:")
        try:
            moe(x)
        except errors.PoisonedError as e:
            leave("poisoned:", e)
    start = time.monotonic()
    try:
        moe(x)
    except errors.WaitTimeout as e:
        say(f"{time.monotonic() - start:.2f} s")
        say("warned:", len(caught), caught[-1].message)
        say("timeout:", e)
        say("standing:", e.__notes__[0].replace("\\n", " |"))
        assert isinstance(e, TimeoutError) and isinstance(e, aristos.AristosError)
    try:
        moe(x)
    except errors.ClosedError as e:
        say("closed:", e)
moe.close()
leave("end")
""",
    )
    ended(job)
    assert float(job.lines(0)[0].removesuffix(" s")) >= 2.0
    warned = line_of(job, 0, "warned")
    assert re.match(
        r"warned: \d+ rank 0 has waited [\d.]+ s for rank 1, which has not made its call in epoch 2 yet", warned
    )
    error = line_of(job, 0, "^timeout")
    for word in ("rank 0 waited ", "absent_timeout 2 s", "for rank 1", "in epoch 2", "its announcement of epoch 2"):
        assert word in error
    assert "last seen in epoch 1, outside a call" in error
    assert error.endswith("see the output of rank 1, or raise absent_timeout=")
    stands = line_of(job, 0, "^standing")
    assert re.search("rank 0 of 2, epoch 2: running, [0-9]+ commands published; the lock is free", stands)
    assert "|  rank 1: last seen at epoch 1, outside of a call |" in stands
    assert "|  rank 1: its announcement is missing: the last one is of epoch 1 |" in stands
    assert re.search("rank 1: [0-9]+ rows must still be sent, [0-9]+ of [0-9]+ ring rows are in use; [1-9]", stands)
    assert re.search("workers? 0.*: idle, waits for rank 1", stands)
    assert re.search("unusable, because an earlier call failed .WaitTimeout: rank 0 waited ", line_of(job, 0, "closed"))
    assert "rank 0 gave up in epoch 2 because a wait took longer than its limit" in line_of(job, 1, "poisoned")
    assert job.lines(0)[-1] == "end"


def test_a_late_rank_costs_a_warning_and_no_more(tmp_path):
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    moe = made(timeout=0.3)
    y = moe(x)
    if rank == 1:
        time.sleep(1.5)
    found = "equal" if same(moe(x), y) else "different"
    say(found, sum("made its call in epoch 3" in str(w.message) for w in caught))  # ranks may be late in earlier epochs
    moe.close()
""",
    )
    assert job.code == 0, job.out
    assert [job.lines(0), job.lines(1)] == [["equal 1"], ["equal 0"]]


def test_a_late_rank_where_warnings_are_errors(tmp_path):
    """The warning is printed instead: an exception in the middle of the protocol would end the job."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
warnings.simplefilter("error")
if rank == 1:
    time.sleep(1.5)
moe = made(timeout=1)
y = moe(x)
if rank == 1:
    time.sleep(1.5)
say("equal" if same(moe(x), y) else "different")
moe.close()
""",
    )
    assert job.code == 0, job.out
    assert [job.lines(0), job.lines(1)] == [["equal"], ["equal"]]
    for wait in ("for the other ranks to make a layer", "for rank 1, which has not made its call in epoch 3"):
        assert re.search(f"aristos: rank 0 has waited [0-9.]+ s {wait}", job.out[0]), job.out[0]


STOPPED = (
    LAYER
    + """
moe = made(timeout=1.0)
if rank == 1:
    signal_me(signal.SIGSTOP, 0.5)
    moe(x)  # waits for rank 0 when it is stopped
time.sleep(1.0)
start = time.monotonic()
try:
    moe(x)
except errors.WaitTimeout as e:
    say(f"{time.monotonic() - start:.2f} s")
    say("timeout:", e)
    %s
"""
)


def test_a_rank_stopped_within_a_call(tmp_path):
    job = run_job(tmp_path, 2, STOPPED % "comm.Abort(3)", timeout=30)
    assert job.code is not None, "the job did not end"
    assert float(job.lines(0)[0].removesuffix(" s")) >= 1.0
    error = line_of(job, 0, "^timeout")
    for word in (
        "rank 0 waited ",
        "(timeout 1 s)",
        "for rank 1",
        "in epoch 2",
        "the outputs of tile",
        "last seen in epoch",
    ):
        assert word in error
    assert re.search(r"last seen in epoch 2, after \d+ commands; ", error)
    assert error.endswith("see the output of rank 1, or raise timeout=; rank 1 is stopped")


LEVELS = (
    LAYER
    + """
cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=4, top_k=2, max_tokens=64, levels=2)
moe = made(timeout=1.5, ranks_per_node=2)
if rank == LOST:
    signal_me(signal.SIGSTOP, 0.5)
    moe(x)
time.sleep(1.0)
moe(x)
"""
)


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_rank_stopped_within_a_call_with_two_levels(tmp_path, lost):
    """Every message names the stopped rank, also that of its neighbour, which waits for data put at that rank."""
    job = run_job(tmp_path, 4, LEVELS.replace("LOST", str(lost)), timeout=40)
    assert job.code not in (None, 0), job.out
    assert job.seconds < 25
    waits = [line for out in job.out for line in out.splitlines() if re.search(r"\bwaited [\d.]+ s \(timeout", line)]
    assert waits, job.out
    for line in waits:
        assert re.search(r"aborting the job$|in epoch 2\b", line), line
        assert f"rank {lost} is stopped" in line, line
        if named := re.search(r"for rank (\d) in epoch 2 and still needs (its announcement|\d+ rows)", line):
            assert int(named[1]) == lost or f"which rank {named[1]} puts at rank {lost};" in line, line


def test_a_wait_names_the_rank_at_which_rows_lie():
    """With two levels a wait's data may lie at another rank of this node, and that rank may be the lost one."""
    about: dict[str, Any] = {"waited": "1 s", "name": "timeout", "seen": (2, 5)}
    whats = {
        "its announcement of epoch 2": (codes.UNANNOUNCED, 0, 0, 0, 0),
        "7 rows that rank 3 announced, from tile 4 on": (codes.SERVE, 7, 4, 0, 0),
    }
    for what, owed in whats.items():
        assert f"{what}, which rank 3 puts at rank 1;" in wait_message(0, 3, 2, owed=owed, rail=1, **about)
        assert f"{what};" in wait_message(0, 3, 2, owed=owed, rail=0, **about)
    for owed, what in (
        ((codes.SERVE, 0, 4, 5, 7), "the outputs of tile 5 (tiles 0 to 6 were sent)"),
        ((codes.SERVE, 0, 4, 7, 7), "the staged outputs of rank 3, from which sums are computed"),
    ):
        assert f"still needs {what};" in wait_message(0, 3, 2, owed=owed, rail=0, **about)


def test_poison_names_a_rank_that_has_ended():
    error = poisoned(0, 2, 5, codes.CAUSE_TIMEOUT, reporter=2, known="rank 1 has ended")
    assert str(error).endswith("(reported by rank 2); see the message of rank 2; rank 1 has ended")


def test_an_uncaught_error_ends_the_job(tmp_path):
    """A stopped rank does not keep the job alive once another rank has given up."""
    job = run_job(tmp_path, 2, STOPPED % "raise", timeout=30)
    assert job.code is not None, "the job did not end"
    assert job.code != 0
    assert "WaitTimeout: rank 0 waited" in job.out[0]
    assert job.seconds < 25


@pytest.mark.parametrize(
    ("nodes", "closed"),
    [(1, ""), (2, ""), (1, "moe.close()"), (2, "moe.close(); comm = comm.Dup()")],
    ids=["one node", "two nodes", "one node, closed", "two nodes, another communicator"],
)
def test_after_a_new_layer_the_job_ends_normally(tmp_path, nodes, closed):
    """A failed call ends the job at exit, but not once all ranks have met again to make another layer.

    closed: code that runs before the new layer is made. It may close the failed layer and change the communicator.
    """
    job = run_job(
        tmp_path,
        2,
        LAYER
        + f"""
moe = made(ranks_per_node={2 // nodes})
try:
    if rank == 0:
        signal_me(signal.SIGINT, 0.5)
    else:
        wait_for_line(0, "KeyboardInterrupt")
    moe(x)
except (errors.PoisonedError, KeyboardInterrupt) as e:
    say(type(e).__name__)
{closed}
with made(ranks_per_node={2 // nodes}) as moe:
    moe(x)
say("fine")
""",
    )
    assert job.code == 0, job.out
    assert [job.lines(rank) for rank in range(2)] == [["KeyboardInterrupt", "fine"], ["PoisonedError", "fine"]]
    assert not any("ends the job" in text for text in job.out)


def test_a_rank_that_dies_within_a_call(tmp_path):
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
moe = made(timeout=2.0)
if rank == 1:
    signal_me(signal.SIGKILL, 0.5)
    moe(x)
time.sleep(1.0)
try:
    moe(x)
except errors.WaitTimeout as e:
    say("timeout:", e)
comm.Abort(3)
""",
        timeout=30,
    )
    assert job.code not in (None, 0)
    assert job.seconds < 20


ENDS_ALONE = """
moe = made(timeout=60.0)
if rank == 1:
    os._exit(0)
start = time.monotonic()
try:
    WAITS
except errors.WaitTimeout as e:
    say("timeout:", e)
say(f"{time.monotonic() - start:.2f} s")
comm.Abort(3)
"""


@pytest.mark.parametrize(
    "waits",
    [
        "moe(x)",
        "moe.runtime._read_word = lambda *asked: 0; moe.runtime.await_readers()",  # as a load does
        "aristos.MoE(cfg, comm)",
    ],
    ids=["call", "load", "layer"],
)
def test_a_rank_that_has_ended_in_user_code(tmp_path, waits):
    """Other ranks do not wait until their limit: on the same machine they see that the process has ended."""
    if len(find_mpiexec()) > 1:
        pytest.skip("Open MPI's launcher ends all ranks")
    job = run_job(tmp_path, 2, LAYER + ENDS_ALONE.replace("WAITS", waits), 40, ("-disable-auto-cleanup",))
    assert job.code not in (None, 0)
    assert job.seconds < 20, job.out
    assert re.search(r"rank 0 (waited|cannot).*rank 1 has ended", job.out[0]), job.out


TRAINED = """
def trained(**options):
    moe = aristos.MoE(cfg, comm, train=True, **options)
    moe.load(**reference.weights(cfg))
    return moe, moe.forward(x)[1]
def untouched(moe):  # whether all gradients are still zero
    return not any(gradient.any() for gradient in moe.grads().values())
"""


@pytest.mark.parametrize("nodes", [1, 2], ids=["one node", "two nodes"])
def test_a_backward_call_that_is_interrupted(tmp_path, nodes):
    """The other rank raises in its call. No gradient has changed on either rank, and new layers can be trained."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + TRAINED
        + f"""
moe, tape = trained(ranks_per_node={2 // nodes})
try:
    if rank == 0:
        signal_me(signal.SIGINT, 0.5)
    else:
        wait_for_line(0, "KeyboardInterrupt")
    moe.backward(x, tape)
except (errors.PoisonedError, KeyboardInterrupt) as e:
    say(type(e).__name__, untouched(moe))
again, tape = trained(ranks_per_node={2 // nodes})
again.backward(x, tape)
say(untouched(again))
again.close()
""",
    )
    assert job.code == 0, job.out
    expected = [["KeyboardInterrupt True", "False"], ["PoisonedError True", "False"]]
    assert [job.lines(rank) for rank in range(2)] == expected


def test_a_rank_that_dies_within_a_backward_call(tmp_path):
    """The other rank names the dead one, and none of its gradients has changed."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + TRAINED
        + """
moe, tape = trained(timeout=2.0)
if rank == 1:
    signal_me(signal.SIGKILL, 0.5)
    moe.backward(x, tape)
time.sleep(1.0)
try:
    moe.backward(x, tape)
except errors.WaitTimeout as e:
    say("timeout:", untouched(moe), e)
comm.Abort(3)
""",
        timeout=30,
    )
    assert job.code not in (None, 0)
    assert job.seconds < 20
    for line in job.lines(0):  # none if the launcher has ended rank 0 first
        assert line.startswith("timeout: True rank 0 waited")
        assert line.endswith("; rank 1 has ended")


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt(tmp_path, threads):
    """SIGINT during a wait raises KeyboardInterrupt, and the other rank raises PoisonedError in its call."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + f"""
moe = made(threads={threads})
if rank == 0:
    signal_me(signal.SIGINT, 0.5)
    start = time.monotonic()
    try:
        moe(x)
    except KeyboardInterrupt:
        say(f"{{time.monotonic() - start:.2f}} s")
    try:
        moe(x)
    except errors.ClosedError as e:
        say("closed:", e)
    moe.close()
    leave("end")
wait_for_line(0, "closed:")
start = time.monotonic()
try:
    moe(x)
except errors.PoisonedError as e:
    say(f"{{time.monotonic() - start:.2f}} s")
    leave("poisoned:", e)
""",
        timeout=30,
    )
    ended(job)
    assert float(job.lines(0)[0].removesuffix(" s")) >= 0.4
    assert "KeyboardInterrupt" in line_of(job, 0, "closed")
    assert job.lines(0)[-1] == "end"
    assert float(job.lines(1)[0].removesuffix(" s")) < 20  # not the timeout, 120 s
    assert "rank 0 gave up in epoch 2 because it was interrupted" in line_of(job, 1, "poisoned")


def test_interrupt_of_a_started_call(tmp_path):
    """SIGINT comes during `wait`, inside a `with`. The background call is given up too, and the other rank raises."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
moe = made(threads=2)
if rank == 0:
    signal_me(signal.SIGINT, 0.5)
    start = time.monotonic()
    try:
        with moe:
            moe.start(x).wait()
    except KeyboardInterrupt:
        say(f"{time.monotonic() - start:.2f} s")
    leave("end")
wait_for_line(0, "> ")
start = time.monotonic()
try:
    moe(x)
except errors.PoisonedError as e:
    say(f"{time.monotonic() - start:.2f} s")
    leave("poisoned:", e)
""",
        timeout=30,
    )
    ended(job)
    assert float(job.lines(0)[0].removesuffix(" s")) >= 0.4
    assert job.lines(0)[-1] == "end"
    assert "it was interrupted" in line_of(job, 1, "poisoned")


def test_poison_travels_through_all_ranks(tmp_path):
    """Three ranks wait in a call for the fourth; one is interrupted, and all end before the fourth makes its call."""
    job = run_job(
        tmp_path,
        4,
        LAYER
        + """
moe = made(threads=1)
if rank == 3:
    for other in range(3):
        wait_for_line(other, "epoch 2" if other else "KeyboardInterrupt")
    try:
        moe(x)
    except errors.PoisonedError as e:
        leave("poisoned:", e)
if rank == 0:
    signal_me(signal.SIGINT, 1.0)
try:
    moe(x)
except (errors.PoisonedError, KeyboardInterrupt) as e:
    say(type(e).__name__, e)
leave("end")
""",
        timeout=60,
    )
    ended(job)
    assert job.lines(0)[0].startswith("KeyboardInterrupt")
    for rank in (1, 2):
        assert "rank 0 gave up in epoch 2 because it was interrupted" in line_of(job, rank, "PoisonedError")
    assert "rank 0 gave up in epoch 2 because it was interrupted" in line_of(job, 3, "poisoned")


def test_an_exception_between_calls_of_one_rank(tmp_path):
    """A user's error on one rank ends its `with`. The other rank, which is in a call, raises at once."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
start = time.monotonic()
try:
    with made(timeout=60) as moe:
        start = time.monotonic()
        if rank == 1:
            time.sleep(0.5)
            raise RuntimeError("of the user")
        moe(x)
except (RuntimeError, aristos.AristosError) as e:
    say(f"{time.monotonic() - start:.2f} s")
    say(type(e).__name__, e)
leave("end")
""",
        timeout=30,
    )
    assert job.code is not None, "the job did not end"
    assert float(job.lines(0)[0].removesuffix(" s")) < 25
    assert "PoisonedError rank 0: rank 1 gave up" in job.lines(0)[1]
    assert job.lines(1)[1] == "RuntimeError of the user"
    assert "rank 1 ends the job, because its program raised outside of a call (RuntimeError: of the user)" in job.out[1]


def test_an_error_of_one_rank_while_the_other_calls(tmp_path):
    """`load` raises only on rank 1, whose `with` ends. Rank 0, which is in a call, raises at once."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
start = time.monotonic()
try:
    with aristos.MoE(cfg, comm, timeout=60) as moe:
        w = reference.weights(cfg)
        moe.load(**(w if rank == 0 else {**w, "up": w["up"][:, :1]}))
        moe(x)
except aristos.AristosError as e:
    say(f"{time.monotonic() - start:.2f} s")
    say(type(e).__name__, e)
leave("end")
""",
        timeout=30,
    )
    assert job.code is not None, "the job did not end"
    assert float(job.lines(0)[0].removesuffix(" s")) < 25
    assert "PoisonedError rank 0: rank 1 gave up" in job.lines(0)[1]
    assert "InputError up must" in job.lines(1)[1]


def test_closing_waits_for_a_rank_that_is_late(tmp_path):
    """A rank may be in user code for longer than the timeout when the others close."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
with made(timeout=0.5):
    time.sleep(2 * rank)
with made() as moe:
    leave("again")
""",
        timeout=30,
    )
    assert [job.lines(r)[-1:] for r in range(2)] == [["again"]] * 2, job.out


def test_a_rank_that_never_makes_the_layer(tmp_path):
    """A blocking MPI call is bounded by the watchdog, which names the rank and the wait, and ends the job."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
if rank == 0:
    time.sleep(60)
aristos.MoE(cfg, comm, timeout=1.0)
""",
        timeout=30,
    )
    assert job.code not in (None, 0)
    assert re.search(
        r"aristos: rank 1 waited [\d.]+ s \(absent_timeout \d+ s\) for the other ranks to make a layer", job.out[1]
    )
    assert job.seconds < 20


def test_a_worker_that_fails_ends_the_call_on_all_ranks(tmp_path):
    """An error in a worker thread of one rank ends the call of the other."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + """
from aristos.substrate.cpu.workers import Workers
moe = made(threads=2, timeout=60.0)
y = moe(x)
real = Workers.release
def broken(job, state, number):
    raise ZeroDivisionError("a worker's")
if rank == 1:
    Workers.release = lambda self, work, job, state: real(self, broken, job, state)
else:
    time.sleep(0.5)  # rank 1 fails while it waits for this rank
start = time.monotonic()
try:
    moe(x)
except (ZeroDivisionError, errors.PoisonedError) as e:
    say(f"{time.monotonic() - start:.2f} s")
    say(type(e).__name__, e)
leave("end")
""",
        timeout=40,
    )
    ended(job)
    assert float(job.lines(0)[0].removesuffix(" s")) < 30
    assert "PoisonedError" in job.lines(0)[1]
    assert re.search("ZeroDivisionError|PoisonedError", job.lines(1)[1])


DAMAGE = """
from aristos.engine import words
from aristos.engine.layout import word_from
from aristos.primitives import memory
def damage(runtime, word):  # a word that rank 0 writes for this rank
    memory.store(int(word_from(runtime._blank_job(), runtime.state, 0, word)), 1 << 40)
"""


@pytest.mark.parametrize(
    ("word", "moves", "text"),
    [
        ("CREDIT", "tokens", r"expected -?\d+ to \d+ from rank 0 as its credit, got 1099511627776"),
        (
            "ENDED",
            "experts",  # so that `load` waits for readers
            "expected 1 to 2 from rank 0 as the epoch of the call that it has ended, got 1099511627776",
        ),
    ],
    ids=["credit", "ended"],
)
def test_a_damaged_word_ends_the_job_on_all_ranks(tmp_path, word, moves, text):
    """The rank that reads the damaged word names it. The other rank reads poison."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + DAMAGE
        + f"""
moe = aristos.MoE(cfg, comm, moves="{moves}", threads=1)
moe.load(**reference.weights(cfg))
moe(x)
comm.Barrier()
if rank == 1:
    damage(moe.runtime, words.{word})
try:
    moe.load(**reference.weights(cfg))
    moe(x)
except aristos.AristosError as e:
    say(type(e).__name__, e)
leave("end")
""",
        timeout=60,
    )
    ended(job)
    assert re.match(f"CorruptionError rank 1 in epoch [12] {text}", job.lines(1)[0]), job.out[1]
    assert "rank 1 gave up in epoch" in line_of(job, 0, "PoisonedError"), job.out[0]
    assert "because a word that it read was damaged" in job.out[0]


def test_a_damaged_poison_word_ends_a_job_whose_program_has_ended(tmp_path):
    """The rank finds the word at exit, when it leaves the layer. An exit handler registered then would not run."""
    job = run_job(
        tmp_path,
        2,
        LAYER
        + DAMAGE
        + """
moe = made(threads=1)
comm.Barrier()
if rank == 1:
    damage(moe.runtime, words.POISON)
sys.exit(0)
""",
        timeout=60,
    )
    ended(job)
    ends = r"rank 1 ends the job, because it cannot go on \(CorruptionError: rank 1 in epoch 1 expected .* as the cause"
    assert re.search(ends, job.out[1])


def test_run_job_kills_at_its_limit(tmp_path):
    start = time.monotonic()
    job = run_job(tmp_path, 2, "say('here'); time.sleep(90)", timeout=15)  # ranks need seconds to start on busy cores
    assert time.monotonic() - start < 60
    assert job.code is None
    assert job.lines(1) == ["here"]


@pytest.mark.parametrize("limits", [idle.ALONE, idle.CROWDED], ids=["alone", "crowded"])
def test_a_long_wait_sleeps(monkeypatch, limits):
    """After more and more idle polls a worker first spins, then yields its core, then sleeps."""
    assert limits[1] <= 100_000  # polls: well below a second
    did: list[str] = []
    for name in ("pause", "yield_core", "nap"):
        monkeypatch.setattr(mem, name, lambda name=name: did.append(name))
    job = np.zeros(words.JOB_WORDS + 1, np.int64)
    job[words.SPINS], job[words.YIELDS] = limits
    for sweeps, name in ((0, "pause"), (limits[0], "yield_core"), (limits[1], "nap"), (10 * limits[1], "nap")):
        did.clear()
        idle.rest.py_func(job, sweeps)
        assert set(did) == {name}
