"""The report under mpirun, on the GPUs of a node. All parts run in one process, since MPI starts only once in it.

Every rank runs each part, and rank 0 keeps what was printed. A part that fails on a rank, or the end of the report's
time, ends the job; the page has what came before, and what every rank waits for.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aristos.errors import EnvironmentProblem
from aristos.topology import nvml

from . import machine, page, processes, saved, tasks, unfinished
from .parts import CALLS, INCOMPLETE, LAYER, PRODUCTS, PUTS, SHAPE, WRONG, Part, Ran, forbidden, limits
from .rank_words import RankWords
from .samples import Samples

# After the products come the parts that need several GPUs. Each is a command line of `python -m aristos.bench`.
TOGETHER = (
    Part(PRODUCTS, "products", (), 75),
    Part(PUTS, "bench", ("put", "signal", "--seconds", "60"), 120),
    Part(LAYER, "bench", ("layer", *SHAPE, *CALLS, "--seconds", "60"), 150, (PRODUCTS,)),
    Part("exchange", "bench", ("exchange", *SHAPE, *CALLS, "--seconds", "30"), 60, (PRODUCTS, LAYER)),
    Part("idle and progress", "bench", ("idle", "progress", *SHAPE, *CALLS, "--seconds", "20"), 60, (PRODUCTS, LAYER)),
)
CLOCKS = "clocks, power and throttling are those of rank 0's GPU"
FAILED = 4  # exit code of a part that ended the job although no call stood still


class Parts:
    """The parts under mpirun."""

    def __init__(self, out: Path, show: Callable[[str], None]) -> None:
        from mpi4py import MPI

        self.comm, self.out, self.show = MPI.COMM_WORLD, out, show

    def facts(self) -> dict[str, Any]:
        """The facts of this rank's GPU. Raises EnvironmentProblem on every rank if one has no suitable GPU.

        Another program that uses a GPU is not noticed, since the ranks themselves use the GPUs by now.
        """
        found: dict[str, Any] = {}
        why = ""
        try:
            machine.check_before()
            found = machine.facts()
            machine.check(found, ours=True)
        except EnvironmentProblem as problem:
            why = f"rank {self.comm.rank}: {problem}"
        if refused := next(filter(None, self.comm.allgather(why)), ""):
            raise EnvironmentProblem(refused)
        return found

    def products(self, part: Part, end: float) -> Ran:
        """Check the products on every rank's GPU; the worst outcome counts. end: on the monotonic clock."""
        from aristos.row_types import KINDS

        start = time.monotonic()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            kinds = tasks.layer_first(KINDS)
            codes = self.comm.allgather(tasks.check_products(kinds, lambda: time.monotonic() < end - tasks.MARGIN))
        wrong = [rank for rank, code in enumerate(codes) if code not in (0, INCOMPLETE)]
        text = [f"wrong on ranks {wrong}"] if wrong else said.getvalue().strip().splitlines()
        worst = WRONG if WRONG in codes else max(codes, key=(0, INCOMPLETE, 4).index)
        return Ran(part, worst, time.monotonic() - start, text)

    def run(self, part: Part, end: float) -> Ran:
        """Run a part of TOGETHER. end: on the monotonic clock."""
        if part.task == "products":
            return self.products(part, end)
        from aristos.bench.main import main as bench

        unfinished.forget()
        words = tasks.within(part.words, float(self.comm.bcast(end)))
        words += [*tasks.BACKEND, "--timeout", str(tasks.WAIT), "--out", str(self.out)]
        start, said = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(said):
            code = bench(words)
        try:
            document = json.loads(said.getvalue())
        except ValueError:
            document = json.loads(unfinished.document() or "{}")
        last = [] if document else said.getvalue().strip().splitlines()
        return Ran(part, code, time.monotonic() - start, last, document)


class Page:
    """The page so far. facts: those in its head. If the page cannot be written, it is printed at the end."""

    def __init__(self, path: Path, facts: dict[str, Any], samples: Samples, show: Callable[[str], None]) -> None:
        self.path, self.facts, self.samples, self.show = path, facts, samples, show
        self.began = time.monotonic()

    def write(self, ran: list[Ran], last: bool = False) -> None:
        text = page.markdown(self.facts, ran, TOGETHER[len(ran) :], self.samples, (CLOCKS,), len(TOGETHER))
        if why := processes.kept(self.path, text):
            self.show(f"the page cannot be written ({why})")
            if last or len(ran) == len(TOGETHER):
                print(text, flush=True)
        self.began = time.monotonic()

    def of_ended(self, part: Part, ran: list[Ran], texts: list[str]) -> None:
        """Write the page of a job that ends in a part. texts: the words of every rank."""
        said = [line for text in texts for line in text.splitlines()]
        code = None if unfinished.CALL.search("\n".join(said)) else FAILED
        rows = json.loads(unfinished.document() or "{}")
        self.write([*ran, Ran(part, code, time.monotonic() - self.began, said, rows)], last=True)


@contextlib.contextmanager
def before_the_end_of_a_job(act: Callable[[], None]) -> Iterator[None]:
    """In the `with` block, a rank that is about to end the job calls `act` first, except after Ctrl-C."""
    from aristos.bench.main import INTERRUPTED
    from aristos.transport import group

    end_job = group.end_job

    def ended(comm: Any, code: int, last_words: str = "") -> None:
        if code != INTERRUPTED:
            act()
        end_job(comm, code, last_words)

    group.end_job = ended
    try:
        yield
    finally:
        group.end_job = end_job


def report(stem: Path, seconds: float) -> int:
    """Make the report. Returns the exit code, equal on all ranks. Raises EnvironmentProblem for an unsuitable GPU."""
    start = time.monotonic()
    signal.alarm(max(1, int(seconds)))  # a part that hangs ends the job

    def show(text: str) -> None:
        if parts.comm.rank == 0:
            print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    out, markdown = stem.with_name(f"{stem.name}.h5"), stem.with_name(f"{stem.name}.md")
    parts, ran = Parts(out.absolute(), show), []
    try:
        facts = parts.facts()
    except EnvironmentProblem:
        signal.alarm(0)
        raise
    samples = Samples(facts["gpu_uuid"], nvml.load() if parts.comm.rank == 0 else None).start()
    page_of = Page(markdown, facts, samples, show)
    words = RankWords(stem, parts.comm.rank, parts.comm.size, lambda part, texts: page_of.of_ended(part, ran, texts))
    gpus = parts.comm.allgather(f"{facts['gpu']} {facts['gpu_uuid']}")
    facts |= {"ranks": parts.comm.size, "gpus": "; ".join(gpus)}
    unfinished.follow()
    words.start(start + seconds)
    with before_the_end_of_a_job(words.ask):
        for part, end in zip(TOGETHER, limits(TOGETHER, seconds)):
            show(part.name)
            samples.part = part.name
            if why := forbidden(part, ran):
                ran.append(Ran(part, None, 0.0, skipped=why))  # every rank has the same outcomes
            else:
                with words.following(part):
                    ran.append(parts.run(part, start + end))
            show(f"{part.name}: {ran[-1].outcome}")
            if parts.comm.rank == 0:
                page_of.write(ran)
    words.stop()
    samples.stop()
    if parts.comm.rank == 0:
        saved.save(out, facts, ran, samples)
        show(f"send back {markdown} and {out}")
    signal.alarm(0)
    return 0 if all(each.ok for each in ran) else 1
