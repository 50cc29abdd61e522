"""Aristos and its peers in turns on the same weights and routing: `mpirun -n 2 python bench/compare.py`.

Checks every output against float64, times peers in interleaved rounds, and writes raw times to HDF5, a picture, and
the table of docs/performance.md. `make compare` runs it. Nothing is tuned: every peer has one thread and its defaults.
Exit codes: 0 all outputs right, even if a figure was missed, 1 a wrong output or an exception, 2 a usage error.
"""

from __future__ import annotations

import os

# Before NumPy is imported. A forced OpenBLAS kernel, set on some machines for old builds, would slow the peers.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import describe  # noqa: E402
import figures  # noqa: E402
import jobs  # noqa: E402
import micro  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import rounds  # noqa: E402
import save  # noqa: E402
from peers import ENTRIES  # noqa: E402

from aristos import results  # noqa: E402
from aristos.host import launch_environment  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of `argv`; exits with code 2 if they cannot be run."""
    parser = launch_environment.OneRankParser(
        prog="mpirun -n 2 python bench/compare.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--shapes", default=",".join(jobs.SHAPES), help="of A..E or tokens/H/F/E/k, with commas")
    parser.add_argument("--peers", default=",".join(ENTRIES), help="with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="in a round every peer has one turn (%(default)s)")
    parser.add_argument(
        "--iters", type=int, help="timed calls in a turn (default: as many as take about 0.3 s, 3 to 40)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and order (%(default)s)")
    parser.add_argument(
        "--no-micro", action="store_true", help="leave out the signal suite, the FMA peak and the matrix products"
    )
    saved = ROOT / "bench" / "results" / "compare.h5"
    parser.add_argument("--out", default=str(saved), help="results file to append raw times to")
    parser.add_argument("--plot", help="PNG (default: performance.png beside the page)")
    where = f"Markdown page (default: {PAGE.relative_to(ROOT)}, if all shapes and peers run)"
    parser.add_argument("--page", help=where)
    asked = parser.parse_args(argv)
    try:
        asked.shapes = [jobs.parse_shape(text) for text in dict.fromkeys(asked.shapes.split(","))]
    except ValueError as why:
        parser.error(str(why))
    unknown = [name for name in asked.peers.split(",") if name not in ENTRIES]
    if unknown or asked.rounds < 1 or (asked.iters is not None and asked.iters < 1):
        parser.error(f"peers must be of {', '.join(ENTRIES)}; rounds and iters at least 1")
    asked.peers = [ENTRIES[name] for name in ENTRIES if name in asked.peers.split(",")]
    whole = {shape.name for shape in asked.shapes} >= set(jobs.SHAPES) and len(asked.peers) == len(ENTRIES)
    asked.page = Path(asked.page) if asked.page else (PAGE if whole else None)
    if asked.plot is None and asked.page is not None:
        asked.plot = str(asked.page.with_name("performance.png"))
    return asked


def main(argv: list[str]) -> int:
    """Run on every rank; rank 0 prints and writes. Returns the exit code."""
    asked = parse(argv)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    uneven = [shape for shape in asked.shapes if shape.experts % comm.size]
    if uneven:
        if comm.rank == 0:
            print(f"experts must be a multiple of the {comm.size} ranks, got {uneven[0]}", file=sys.stderr)
        return 2
    try:
        return compare(comm, asked, argv)
    except BaseException:
        print(f"[rank {comm.rank}]", traceback.format_exc(), file=sys.stderr, flush=True)
        comm.Abort(1)
        raise


def compare(comm: Any, asked: argparse.Namespace, argv: list[str]) -> int:
    """Measure, then write the results. Returns the exit code."""
    lead = comm.rank == 0

    def show(text: str) -> None:
        if lead and sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    if lead:
        results.check(asked.out)  # before minutes of measuring
    facts = describe.facts(comm, argv, asked)
    with_micro = not asked.no_micro
    peak = micro.peak if with_micro and any(entry.name == "fused" for entry in asked.peers) else None
    measured = []
    for shape in asked.shapes:
        show(f"{shape.name}: weights, routing and float64 results")
        job = jobs.make_job(comm, shape, asked.seed)
        after = (lambda job, peer: micro.outside(comm, job, peer)) if shape.name == "D" else None
        measured.append(rounds.run(comm, job, asked.peers, asked.rounds, asked.iters, asked.seed, peak, show, after))
        del job  # its weights are up to a gigabyte
    show("matrix products")
    products = micro.products(comm) if with_micro else {}
    show("signals")
    signal_us, why = micro.signal(comm, asked.seed) if with_micro else ({}, "left out by --no-micro")
    facts["load_average_end"] = os.getloadavg()[0]
    show("")
    wrong = why == micro.WRONG or any(m.wrong() or m.same_bits is False for m in measured)
    if lead:
        write(asked, measured, figures.figures(measured, signal_us, why, products), facts, signal_us, products)
    return int(comm.bcast(1 if wrong else 0))


def write(
    asked: argparse.Namespace,
    measured: list[rounds.ShapeResults],
    found: list[figures.Figure],
    facts: dict[str, Any],
    signal_us: dict[int, list[float]],
    products: micro.Rates,
) -> None:
    """Write the HDF5 file, the picture and the page; the file first, since it holds all data."""
    save.save(Path(asked.out), measured, found, facts, signal_us, products)
    picture = None
    if asked.plot:
        try:
            plot.draw(measured, Path(asked.plot))
            picture = os.path.relpath(asked.plot, asked.page.parent) if asked.page else asked.plot
        except ImportError as why:
            print(f"no picture: {why} (pip install 'aristos[plot]')", file=sys.stderr)
    text = report.markdown(measured, found, describe.lines(facts, measured), picture)
    print(text)
    print(f"raw times: {asked.out}")
    if asked.page:
        report.splice(asked.page, text, figures.family())
        print(f"table: {asked.page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
