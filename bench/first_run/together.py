"""The report under mpirun, on the GPUs of a node: the parts run in this process, since MPI can start only once in one.

Every rank runs each part, rank 0 keeps what was printed. A part that fails on a rank ends the job; the page has what
came before.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import page, saved, tasks
from .parts import CALLS, LAYER, PRODUCTS, PUTS, SHAPE, Part, Ran, forbidden

# What needs several GPUs. Each is a command line of `python -m aristos.bench`.
TOGETHER = (
    Part(PUTS, "bench", ("put", "signal", "--seconds", "60"), 120),
    Part(LAYER, "bench", ("layer", *SHAPE, *CALLS, "--seconds", "60"), 150, (PRODUCTS,)),
    Part("exchange", "bench", ("exchange", *SHAPE, *CALLS, "--seconds", "30"), 60, (PRODUCTS, LAYER)),
    Part("idle and progress", "bench", ("idle", "progress", *SHAPE, *CALLS, "--seconds", "20"), 60, (PRODUCTS, LAYER)),
)


class Parts:
    """The parts under mpirun."""

    def __init__(self, out: Path, show: Callable[[str], None]) -> None:
        from mpi4py import MPI

        self.comm, self.out, self.show = MPI.COMM_WORLD, out, show

    def products(self) -> Ran:
        """Every rank checks the products on its GPU; the worst outcome counts."""
        from aristos.row_types import KINDS

        part, start = Part(PRODUCTS, "products", (), 150), time.monotonic()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            codes = self.comm.allgather(tasks.check_products(KINDS))
        wrong = [rank for rank, code in enumerate(codes) if code]
        text = [f"wrong on ranks {wrong}"] if wrong else said.getvalue().strip().splitlines()
        return Ran(part, max(codes), time.monotonic() - start, text)

    def run(self, part: Part) -> Ran:
        """A part of TOGETHER."""
        from aristos.bench.main import main as bench

        words = [*part.words, "--backend", "cuda", "--json", "--out", str(self.out)]
        start, said = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(said):
            code = bench(words)
        try:
            document = json.loads(said.getvalue())
        except ValueError:
            document = {}
        last = [] if document else said.getvalue().strip().splitlines()
        return Ran(part, code, time.monotonic() - start, last, document)


def report(stem: Path, facts: dict[str, Any], seconds: float) -> int:
    """The report; returns the exit code, the same on every rank."""
    start = time.monotonic()
    signal.alarm(int(seconds) + 10)  # a part that hangs ends the job

    def show(text: str) -> None:
        if parts.comm.rank == 0:
            print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    out, markdown, ran = stem.with_name(f"{stem.name}.h5"), stem.with_name(f"{stem.name}.md"), []
    parts = Parts(out.absolute(), show)
    gpus = parts.comm.allgather(f"{facts['card']} {facts['card_uuid']}")
    facts |= {"ranks": parts.comm.size, "gpus": "; ".join(gpus)}
    for i, part in enumerate((None, *TOGETHER)):
        show(PRODUCTS if part is None else part.name)
        if part is not None and (why := forbidden(part, ran)):
            ran.append(Ran(part, None, 0.0, skipped=why))  # every rank has the same outcomes
        else:
            ran.append(parts.products() if part is None else parts.run(part))
        show(f"{ran[-1].part.name}: {ran[-1].outcome}")
        if parts.comm.rank == 0:
            markdown.write_text(page.markdown(facts, ran, TOGETHER[i:]), encoding="utf-8")
    if parts.comm.rank == 0:
        saved.save(out, facts, ran, None)
        show(f"send back {markdown} and {out}")
    signal.alarm(0)
    return 0 if all(each.ok for each in ran) else 1
