"""bench/gpu_report.py under mpirun: after a hang the page has what every rank last wrote."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
try:
    from first_run import rank_words
finally:
    sys.path.pop(0)

from cases import run_job
from mpi import find_mpiexec

from aristos.substrate import attach

BENCH = Path(__file__).parents[2] / "bench"
HELD = "cuda: rank 0 of 3, epoch 3: running, 7 commands published; worker 2 holds the lock"


@pytest.fixture
def ranks(monkeypatch, tmp_path):
    """(RankWords of two of three ranks, the pages that rank 0 makes). The third rank's process has ended."""
    monkeypatch.setattr(attach, "standing", lambda: HELD)
    monkeypatch.setattr(rank_words, "GATHER", 0.5)
    pages = []
    made = [rank_words.RankWords(tmp_path / "r", rank, 3, lambda *page: pages.append(page)) for rank in range(2)]
    yield made, pages
    for each in made:
        each.stop()


MISSING = "rank 2 wrote nothing within 0.5 s: its process has ended, or hangs in a call"


def test_one_rank_that_ends_the_job_lets_all_write(ranks, tmp_path):
    """The page also has what that rank printed before. The rank's state is there once. No file is left."""
    (first, second), pages = ranks
    for each in (first, second):
        each.start(time.monotonic() + 600)
    first._part = "layer"
    with second.following("layer"):
        print("rank 1 waited 5 s", HELD, sep="\n", file=sys.stderr)
        second.ask()
    assert pages == [("layer", [HELD, f"rank 1 waited 5 s\n{HELD}", MISSING])]
    assert not list(tmp_path.iterdir())


def test_the_end_of_the_minutes_lets_all_write(ranks, tmp_path):
    (first, second), pages = ranks
    first._part = second._part = "layer"
    for each in (first, second):
        each.start(time.monotonic() + rank_words.NOTICE + 0.1)
    end = time.monotonic() + 20
    while not pages and time.monotonic() < end:
        time.sleep(0.01)
    assert pages == [("layer", [HELD, HELD, MISSING])]


def test_between_parts_nothing_is_written(ranks, tmp_path):
    """Between parts, for example while files are saved, the page exists already."""
    (first, _), pages = ranks
    with first.following("layer"):
        pass
    first.ask()
    first._watch(0.0)
    assert not pages
    assert not list(tmp_path.iterdir())


JOB = f"""
sys.path.insert(0, {str(BENCH)!r})
from pathlib import Path
from first_run import machine, parts, tasks, together
machine.facts = lambda: {{"gpu": "An H100", "gpu_arch": "sm_90", "gpu_uuid": f"GPU-{{rank}}"}}
machine.check_before = lambda: None
machine.check = lambda facts, ours: None
tasks.BACKEND, tasks.WAIT = ("--backend", "cpu", "--json"), 1.0
shape = "--hidden 32 --ffn 24 --experts 4 --top-k 2 --tokens 6 --iters 2 --warmup 1".split()
together.TOGETHER = (
    parts.Part("layer", "bench", ("layer", *shape, "--seconds", "30"), 60),
    parts.Part("exchange", "bench", ("exchange", *shape, "--seconds", "30"), 60),
)
call, calls = aristos.MoE.__call__, []

def late(self, *words, **options):
    calls.append(self)
    if rank == 1 and len(calls) == 2:
        time.sleep(600)
    return call(self, *words, **options)

aristos.MoE.__call__ = late
together.report(Path("r"), 300.0)
"""


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_a_hang_of_a_job_leaves_the_words_of_every_rank(tmp_path):
    """Rank 1 stands still in user code. Rank 0's wait runs out, and rank 0 ends the job."""
    job = run_job(tmp_path, 2, JOB, timeout=200)
    assert job.code not in (0, None), job.out
    page = (tmp_path / "r.md").read_text()
    assert page.startswith("# Aristos on An H100: HUNG: layer; not finished: exchange\n"), (page, job.out)
    for line in (
        r"rank 0 waited .* for rank 1",
        r"^cpu: rank 0 of 2, epoch \d+: running, \d+ commands published; the lock is free$",
        r"^cpu: rank 1 of 2(: no call yet$|, epoch \d+: done, )",
        r"^  rank 1: its announcement is missing: the last one is of epoch \d+$",
    ):
        assert re.search(line, page, re.M), page
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("r.asked", "r.rank-"))]
