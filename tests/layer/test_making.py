"""A constructor that fails on one rank: the others, which wait in a collective, raise at once and name the cause."""

from __future__ import annotations

import re

import pytest
from cases import run_job
from mpi import find_mpiexec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parallel,
    pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"),
]

STAGES = """
import contextlib
import aristos.substrate.cpu.runtime, aristos.transport.group, aristos.layer.moe, aristos.layer.fused_backward
from unittest import mock

cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=4, top_k=2, max_tokens=64)
start = threading.Thread.start

def without_threads(name):  # raises what Python raises at the limit of threads
    def refuse(self):
        if name in self.name:
            raise RuntimeError("can't start new thread")
        start(self)
    return mock.patch("threading.Thread.start", refuse)

def fails(target, error):
    return mock.patch("aristos." + target, mock.Mock(side_effect=error))

def made(stage, **options):
    with stage if rank == 1 else contextlib.nullcontext():
        return aristos.MoE(cfg, comm, timeout=60, threads=2, **options)

def make(stage, **options):
    begun = time.monotonic()
    try:
        made(stage, **options)
    except BaseException as e:
        say(f"{type(e).__name__}: {e}")
    assert time.monotonic() - begun < 30
"""

FAILURES = [
    ("no thread for the watchdog", 'without_threads("watchdog")', "", "RuntimeError: can't start new thread"),
    ("before there is a communicator", 'fails("transport.group.Process.here", OSError("proc"))', "", "OSError: proc"),
    (
        "kernels' offer",
        'fails("primitives.isa.offer", errors.EnvironmentProblem("set"))',
        "",
        "EnvironmentProblem: set",
    ),
    ("imports", 'fails("layer.moe.backend_class", ImportError("half"))', "", "ImportError: half"),
    ("interrupt", 'fails("layer.making.widths", KeyboardInterrupt("now"))', "", "KeyboardInterrupt: now"),
    ("scratch", 'fails("substrate.cpu.runtime.aligned", MemoryError("full"))', "", "MemoryError: full"),
    ("outboxes", 'fails("substrate.windows.zeros", MemoryError("full"))', ", ranks_per_node=1", "MemoryError: full"),
    ("progress thread", 'without_threads("progress")', ", ranks_per_node=1", "RuntimeError: can't start new thread"),
    (
        "compiled kernels",
        'fails("substrate.cpu.runtime.CpuRuntime._compile", errors.EnvironmentProblem("lock"))',
        "",
        "EnvironmentProblem: lock",
    ),
    ("workers", 'without_threads("worker")', "", "RuntimeError: can't start new thread"),
    ("the layer's own arrays", 'fails("layer.cpu_arguments.aligned", MemoryError("full"))', "", "MemoryError: full"),
    ("training", 'fails("layer.fused_backward.aligned", MemoryError("full"))', ", train=True", "MemoryError: full"),
]


def test_a_constructor_that_fails_on_one_rank(tmp_path):
    """Each rank raises, whatever stage fails.

    The next layer is made on the same communicator, and the job ends normally.
    """
    script = STAGES + "".join(f"make({stage}{options})\n" for _, stage, options, _ in FAILURES)
    script += "made(contextlib.nullcontext()).close()\nsay('fine')\n"
    job = run_job(tmp_path, 2, script, timeout=120)
    assert job.code == 0, job.out
    whole, failed = job.lines(0), job.lines(1)
    assert failed == [*(cause for *_, cause in FAILURES), "fine"]
    assert whole.pop() == "fine"
    assert len(whole) == len(FAILURES)
    for line, (stage, *_, cause) in zip(whole, FAILURES):
        gave_up = f"PoisonedError: rank 0: rank 1 gave up .* because of {re.escape(cause)}; see the output of rank 1"
        assert re.fullmatch(gave_up, line), (stage, line)


def test_a_constructor_that_fails_ends_the_job(tmp_path):
    """If the ranks do not meet again, the failed rank says why, and the job ends before the limit."""
    job = run_job(tmp_path, 2, STAGES + 'made(without_threads("worker"))', timeout=60)
    assert job.code not in (None, 0)
    assert "RuntimeError: can't start new thread" in job.out[1], job.out
    assert job.seconds < 50


FIRST = 'fails("transport.group._ranks_of_job", MemoryError("full"))'


def test_a_failure_before_the_first_meeting(tmp_path):
    """There is no communicator yet that could carry the cause. The failed rank prints it, and its exit ends the job."""
    job = run_job(tmp_path, 2, STAGES + f"made({FIRST})", timeout=60)
    assert job.code not in (None, 0)
    assert "ends the job, because it could not make a layer (MemoryError: full)" in job.out[1], job.out
    assert job.seconds < 30


def test_a_rank_that_failed_before_the_first_meeting_tries_again(tmp_path):
    again = f"""
if rank == 1:
    make({FIRST})
made(contextlib.nullcontext()).close()
say("fine")
"""
    job = run_job(tmp_path, 2, STAGES + again, timeout=60)
    assert job.code == 0, job.out
    assert job.lines(1) == ["MemoryError: full", "fine"]


def test_a_failure_in_one_group_of_a_plan_that_is_trained(tmp_path):
    """The ranks of the other groups soon raise too, even if every rank of one group refuses its arguments."""
    script = """
from group_plans import plan_of

plan = plan_of([3, 1, 2, 2])
made(contextlib.nullcontext(), plan=plan, train=True).close()
make(without_threads("worker"), plan=plan, train=True)
begun = time.monotonic()
try:
    aristos.MoE(cfg, comm, plan=plan, train=True, timeout=60, threads=2 if rank < 2 else -1)
except errors.AristosError as e:
    say(f"{type(e).__name__}: {e}")
assert time.monotonic() - begun < 30
made(contextlib.nullcontext(), plan=plan, train=True).close()
say("fine")
"""
    job = run_job(tmp_path, 4, STAGES + script, timeout=120)
    assert job.code == 0, job.out
    cause = "RuntimeError: can't start new thread"
    for rank in range(4):
        failed, refused, fine = job.lines(rank)
        assert fine == "fine"
        wanted = cause if rank == 1 else f"PoisonedError: rank {rank}: rank [01] gave up .*{re.escape(cause)}.*"
        wanted = wanted.replace("rank 0: rank [01]", "rank 0: rank 1")
        assert re.fullmatch(wanted, failed), failed
        assert "threads must be" in refused
        assert refused.startswith("InputError" if rank >= 2 else "PoisonedError")
