"""The command line of `python -m aristos.bench`. Every rank parses it, and one prints errors.

The module does not start MPI, so `--help` and usage errors are quick.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

from .. import models
from .._version import __version__
from ..config import ACTIVATIONS, MOST_THREADS, MOVES, PRECISIONS
from ..host import launch_environment
from ..row_types import ROW_TYPES
from . import suites
from .arguments import bandwidths, counts, latencies, not_negative, number, positive, seconds
from .options import Options, UsageError, is_file
from .registry import Backend


class _Parser(launch_environment.OneRankParser):
    """A parser that raises UsageError instead of exiting."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message)


threads = number(int, lambda value: 1 <= value <= MOST_THREADS, f"in 1..{MOST_THREADS}")


def make_parser(prog: str = "python -m aristos.bench") -> argparse.ArgumentParser:
    usual = " ".join(each.name for each in suites.known().values() if each.default)
    parser = _Parser(
        prog=prog,
        usage=f"mpirun -n RANKS {prog} [SUITE ...] [options]",
        description="Measure Aristos on the ranks of this job; every output is checked.",
        epilog=f"suites on CPUs:\n{_listing('cpu')}\n\n"
        f"suites on GPUs (--backend cuda), timed by CUDA events:\n{_listing('cuda')}\n\n"
        f"without ranks: {prog} floors, bounds of the CUDA kernels on published GPUs\n\n"
        f"presets (--preset):\n{models.listing()}\n\n"
        "exit codes: 0 fine, 1 wrong result or crash, 2 wrong options, 3 no MPI, package or memory, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"what to measure (default, two minutes in all: {usual})"
    )
    shape = parser.add_argument_group("shape (default: the preset's)")
    shape.add_argument(
        "--preset",
        metavar="NAME",
        help=f"a model's shape (default: that of --routing FILE, else {models.DEFAULT})",
    )
    shape.add_argument("--scale", type=positive, metavar="N", help="divide the preset's published widths by N")
    shape.add_argument("--tokens", type=counts, metavar="S[,S..]", help="tokens per rank and call")
    shape.add_argument("--hidden", type=positive, metavar="H", help="width of a token")
    shape.add_argument("--ffn", type=positive, metavar="F", help="width inside an expert")
    shape.add_argument("--experts", type=positive, metavar="E", help="experts over all ranks")
    shape.add_argument("--top-k", type=positive, metavar="K", help="experts per token")
    shape.add_argument("--activation", choices=ACTIVATIONS, help="activation of the experts (default: the preset's)")
    shape.add_argument(
        "--dtype", choices=list(ROW_TYPES), help="type of rows and weights (float32; bfloat16 with --backend cuda)"
    )
    shape.add_argument("--precision", choices=PRECISIONS, help="precision of float32 products (%(default)s)")
    shape.add_argument(
        "--routing",
        metavar="FILE.npz|NAME",
        help="a recorded routing (expert_ids [tokens, layers, k], or counts), or router (usual), uniform, zipf,"
        " one (only experts of rank 0)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--threads", type=threads, metavar="N", help="workers per rank (default: one for each core of the rank)"
    )
    run.add_argument(
        "--ranks-per-node",
        type=positive,
        metavar="N",
        help="pretend that a node has N ranks; between nodes the transport is rma",
    )
    run.add_argument(
        "--levels",
        type=int,
        choices=(1, 2),
        help="levels of the wire between nodes, for fused calls and for bulk's all-to-all (%(default)s)",
    )
    run.add_argument("--iters", type=positive, metavar="N", help="timed calls (default: as many as fit the time)")
    run.add_argument("--warmup", type=not_negative, metavar="N", help="calls before timing (%(default)s)")
    run.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        help="time for all suites together (default: 25 for each SUITE); a row gets a few calls even if that is longer",
    )
    run.add_argument("--timeout", type=seconds, metavar="S", help="the longest wait in a call (default: MoE's timeout)")
    run.add_argument("--seed", type=not_negative, metavar="N", help="seed of tokens and weights (%(default)s)")
    schedules = ("both", "fused", "bulk")
    run.add_argument("--schedule", choices=schedules, help="schedules of the layer to measure (%(default)s)")
    run.add_argument(
        "--moves",
        choices=MOVES,
        help="what a fused call sends within a node, in suites layer and replay and with --timeline (%(default)s)",
    )
    run.add_argument(
        "--backend",
        choices=get_args(Backend),
        help="where the ranks compute; cuda: one GPU per rank, the suites for GPUs, full widths (%(default)s)",
    )
    links = parser.add_argument_group("emulated links (suite overlap)")
    links.add_argument("--alpha", type=latencies, metavar="T,..", help="latencies to emulate (2us,50us,1ms)")
    links.add_argument("--rate", type=bandwidths, metavar="R,..", help="bandwidths to emulate (100,25,10,1GB/s)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    output.add_argument("--out", metavar="FILE.h5", help="results file to append to, or none (%(default)s)")
    output.add_argument("--watch", action="store_true", help="live bars on stderr: the last calls of every rank")
    output.add_argument("--timeline", metavar="FILE.json", help="write a Perfetto timeline of one call on every rank")
    parser.set_defaults(**dataclasses.asdict(Options()))
    return parser


def _listing(backend: Backend) -> str:
    return "\n".join(f"  {each.name:10s}{each.summary}" for each in suites.known(backend).values())


def parse(argv: list[str], prog: str = "python -m aristos.bench") -> Options:
    """The options in `argv`. Raises UsageError for options that cannot be run, SystemExit(0) after --help."""
    asked = vars(make_parser(prog).parse_args(argv))
    known = suites.known(asked["backend"])
    for name in asked["suites"]:
        if name not in known:
            raise UsageError(f"unknown suite {name!r}; the suites are {', '.join(known)}")
    asked["preset"] = asked["preset"] and asked["preset"].lower()
    asked["suites"] = tuple(dict.fromkeys(asked["suites"]))
    options = Options(**asked)
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.preset is not None and options.preset not in models.PRESETS:
        raise UsageError(f"unknown preset {options.preset!r}; the presets are {', '.join(models.PRESETS)}")
    if "replay" in options.suites and not is_file(options.routing):
        raise UsageError("suite replay needs --routing FILE.npz, a recorded routing trace")
    if is_file(options.routing) and not Path(str(options.routing)).is_file():
        raise UsageError(f"no such file: --routing {options.routing}")
    if options.backend == "cuda":
        _check_cuda(options)
    if options.timeline is not None and Path(options.timeline).resolve() == Path(options.out).resolve():
        raise UsageError(f"--timeline and --out name the same file, {options.out}")
    for flag, value in (("--out", options.out), ("--timeline", options.timeline)):
        if value and value != "none" and not Path(value).absolute().parent.is_dir():
            raise UsageError(f"no such folder: {flag} must name a file in an existing folder, got {value}")


def _check_cuda(options: Options) -> None:
    """Raise UsageError for options that only the CPU backend has."""
    for flag, given, reason in (
        ("--schedule bulk", options.schedule == "bulk", "GPUs run only the fused schedule"),
        ("--threads", options.threads is not None, "on a GPU the number of blocks follows from the device"),
        ("--ranks-per-node", options.ranks_per_node is not None, "ranks of pretended nodes would use the same GPUs"),
        ("--levels 2", options.levels == 2, "GPUs have one level"),
        ("--moves", options.moves != "auto", "between GPUs only tokens are sent"),
        ("--timeline", options.timeline is not None, "use nsys profile for the kernels of a GPU"),
    ):
        if given:
            raise UsageError(f"{flag} is for --backend cpu: {reason}")
