"""Times Aristos and its peers in turns on the same weights, tokens and routing: `make compare`.

Each peer runs in a Python environment of its own (environments.py). The peer's processes are a team: they sleep while
another team works. Every output is checked against float64. Each part writes raw times to HDF5 and its tables to
docs/performance.md, in the section of this family of CPUs; the part `uniform` draws the picture. Nothing is tuned. Each
rank has one thread. Exit codes: 0 Aristos's outputs are right, even if a goal was missed; 1 a wrong output or an
exception; 2 a usage error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import describe
import figures
import jobs
import numpy as np
import oracle
import plot
import report
import rounds
import save
from jobs import Product, Shape, Step
from peers import (
    CODES,
    CODES_MPI,
    LAYERS,
    ONE_RANK,
    PRODUCTS,
    STEPS,
    TRANSFORMERS,
    TRANSFORMERS_MPI,
    UNPADDED,
    Entry,
    with_weights,
)
from teams import Team

from aristos import results

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
TRACES = ROOT.parent / "shared" / "traces"


@dataclass(frozen=True)
class Part:
    """A part of the comparison.

    title: the title of its block on the page. entries: its peers. ranks: their number, or None for that of --ranks.
    """

    title: str
    jobs: tuple[str | Product | Step, ...]
    entries: dict[str, Entry]
    ranks: int | None = None


_DECODE = tuple(f"{t}/2048/512/32/8/gated/{kind}" for kind in jobs.CODES for t in (1, 4, 16, 128, 1024))
_OF_MODELS = tuple(f"{t}/2048/768/{experts}/8/gated" for experts in (32, 128) for t in (1, 16, 256, 2048))
PARTS = {
    "uniform": Part("Layers, uniform routing", tuple(jobs.SHAPES), LAYERS),
    "zipf": Part("Layers, routing by Zipf 1.2", tuple(f"{name}@zipf" for name in jobs.SHAPES), UNPADDED),
    "traces": Part("Layers, recorded routing", ("G@law", "G@translation", "1024/2048/512/32/4@gpt-oss"), LAYERS),
    "one": Part(
        "One rank, all experts local", tuple(f"{t}/2048/512/32/8/gated" for t in figures.ONE_RANK), ONE_RANK, 1
    ),
    "decode": Part("Weights of 8 and of 4 bits, one rank", _DECODE, CODES, 1),
    "decode2": Part("Weights of 8 and of 4 bits, half of the experts on each of two ranks", _DECODE, CODES_MPI, 2),
    "transformers": Part("Experts of transformers, one process", _OF_MODELS, TRANSFORMERS, 1),
    "transformers2": Part("Experts of transformers, two ranks", _OF_MODELS, TRANSFORMERS_MPI, 2),
    "train": Part("Training steps", tuple(jobs.step(shape) for shape in jobs.SHAPES.values()), STEPS),
    "products": Part(
        "Matrix products, one rank",
        tuple(Product(m, *s) for s in ((1024, 4096), (4096, 1024), (2048, 512)) for m in (1, 4, 16, 64, 128, 512)),
        PRODUCTS,
        1,
    ),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of `argv`. Exits with code 2 if no comparison can run with them."""
    parser = argparse.ArgumentParser(prog="python bench/compare.py", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"parts to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the parts on several ranks (%(default)s)")
    parser.add_argument(
        "--shapes", help="other shapes, separated by commas: A..G or tokens/H/F/E/k[/gated][/int8 or /int4], @routing"
    )
    parser.add_argument("--peers", help="names of peers, separated by commas (default: all of the part)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, with a turn of every peer in each (%(default)s)")
    calls = (
        "timed calls in a turn (default: as many as take 0.15 s, 2 to 40); 1: no untimed call, only one checked input"
    )
    parser.add_argument("--iters", type=int, help=calls)
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, inputs and order (%(default)s)")
    parser.add_argument("--mpiexec", help="the launcher (default: mpiexec beside this Python, or on PATH)")
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of recorded routings (%(default)s)")
    saved = ROOT / "results" / "compare.h5"
    parser.add_argument("--out", default=str(saved), help="results file to append raw times to (%(default)s)")
    where = f"Markdown page (default: {PAGE.relative_to(ROOT)}, unless --shapes or --peers is given)"
    parser.add_argument("--page", type=Path, help=where)
    asked = parser.parse_args(argv)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"a part must be one of {', '.join(PARTS)}, got {unknown[0]!r}")
    if asked.rounds < 1 or asked.ranks < 1 or (asked.iters is not None and asked.iters < 1):
        parser.error("--rounds, --iters and --ranks must be at least 1")
    asked.parts = asked.parts or list(PARTS)
    try:
        shapes = [jobs.parse_shape(text) for text in dict.fromkeys((asked.shapes or "").split(",")) if text]
    except ValueError as why:
        parser.error(str(why))
    if asked.page is None and not asked.shapes and not asked.peers:
        asked.page = PAGE
    asked.shapes = shapes
    _check_peers(parser, asked)
    beside = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    asked.mpiexec = shlex.split(asked.mpiexec or beside or "mpiexec")
    return asked


def _check_peers(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Exit with code 2 if a part cannot run one of the peers or shapes."""
    asked.peers = asked.peers.split(",") if asked.peers else None
    for part in asked.parts:
        known, ranks = PARTS[part].entries, PARTS[part].ranks or asked.ranks
        unknown = [name for name in asked.peers or [] if name not in known]
        if unknown:
            parser.error(f"peers of {part} must be among {', '.join(known)}, got {unknown[0]!r}")
        coded = any(entry.weights for entry in known.values())
        other = [s for s in shapes_of(asked, part) if isinstance(s, Shape) and bool(s.weights) != coded]
        if other:
            parser.error(f"shapes of {part} must {'' if coded else 'not '}end with /int8 or /int4, got {other[0].name}")
        uneven = [shape for shape in shapes_of(asked, part) if isinstance(shape, Shape) and shape.experts % ranks]
        if uneven:
            parser.error(f"experts must be a multiple of the {ranks} ranks, got {uneven[0]}")


def shapes_of(asked: argparse.Namespace, part: str) -> list[Shape | Product]:
    """The jobs of a part: those of --shapes if given, else the part's own."""
    shapes = [jobs.step(shape) for shape in asked.shapes] if part == "train" else asked.shapes
    return shapes or [jobs.parse_shape(job) if isinstance(job, str) else job for job in PARTS[part].jobs]


def show(text: str) -> None:
    """Show progress. A terminal gets one line that changes, any other output a line for each text."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def compare(asked: argparse.Namespace, name: str, command: str) -> bool:
    """Measure and write one part; returns whether all outputs of Aristos were right."""
    part, world = PARTS[name], PARTS[name].ranks or asked.ranks
    entries = {name: entry for name, entry in part.entries.items() if not asked.peers or name in asked.peers}
    with tempfile.TemporaryDirectory(prefix="aristos-compare-") as text:
        folder = Path(text)
        teams = rounds.Teams(lambda environment: Team(environment, world, folder, asked.mpiexec))
        try:
            return _compare(asked, name, command, folder, teams, entries, world)
        finally:
            teams.close()


def _compare(
    asked: argparse.Namespace,
    name: str,
    command: str,
    folder: Path,
    teams: rounds.Teams,
    entries: dict[str, Entry],
    world: int,
) -> bool:
    aristos_team = teams[rounds.PEAK]
    facts = aristos_team("run", "describe:of_run", command, asked.seed)[0]
    family = figures.Family(facts["isa"], facts["cpu_target"])
    draw, measured, notes = np.random.default_rng([asked.seed, 1]), [], []
    for shape in shapes_of(asked, name):
        show(f"{shape.label}: weights, routing and float64 results")
        try:
            truth = make_job(folder / "job", shape, world, asked)
        except oracle.Missing as why:
            notes.append(f"{shape.label} did not run: {why}")
            continue
        m = rounds.ShapeResults(shape, world)
        its = list(with_weights(entries, getattr(shape, "weights", "")).values())
        outside = shape.name == "D" and not isinstance(shape, Step)
        after = (lambda team: team("run", "micro:outside", "fused")[0]) if outside else None
        rounds.run_rounds(teams, folder / "job", truth, its, m, asked.rounds, asked.iters, draw, show, after)
        measured.append(m)
    show("signals")
    with_signals = name == "uniform" and not asked.shapes and not asked.peers
    signal_us, why = aristos_team("run", "micro:signal", asked.seed)[0] if with_signals else (None, "")
    show("")
    facts |= {"part": name, "rounds": asked.rounds, "teams": describe.teams(teams)}
    facts["load_average_end"] = os.getloadavg()[0]
    found = figures.figures(measured, family, signal_us, why)
    save.save(Path(asked.out), measured, found, facts, signal_us or {})
    picture = picture_of(asked.page, measured, family) if asked.page and name == "uniform" and measured else None
    lines = [*describe.lines(facts, measured), *notes]
    text = report.markdown(PARTS[name].title, measured, found, lines, picture)
    print(text)
    print(f"raw times: {asked.out}")
    if asked.page:
        report.splice(asked.page, text, str(family), name)
        print(f"tables: {asked.page}")
    return not any(m.entries[p].ours for m in measured for p in m.wrong()) and all(
        m.same_bits is not False for m in measured
    )


def make_job(
    folder: Path, shape: Shape | Product, world: int, asked: argparse.Namespace
) -> oracle.Truth | oracle.StepTruth:
    """Write a job's arrays, which replace those of the previous job. Returns the right results."""
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(shape, Product):
        return oracle.make_product(folder, shape, asked.seed)
    if isinstance(shape, Step):
        return oracle.make_step(folder, shape, world, asked.seed)
    return oracle.make(folder, shape, world, asked.seed, asked.traces)


def picture_of(page: Path, measured: list[rounds.ShapeResults], family: figures.Family) -> str | None:
    """Draw the picture of a family beside the page. Returns its name, None without Matplotlib."""
    name = f"performance-{family.isa}-{family.cpu}.png"
    try:
        plot.draw(measured, page.with_name(name), str(family))
    except ImportError as why:
        print(f"no picture: {why} (pip install 'aristos[plot]')", file=sys.stderr)
        return None
    return name


def _without_places(argv: list[str]) -> list[str]:
    """The arguments without those that are paths of this machine, which the page does not show."""
    places = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--mpiexec", "--out", "--page", "--traces"):
        places.add_argument(option)
    return places.parse_known_args(argv)[1]


def main(argv: list[str]) -> int:
    """Measure the parts one after another. Returns the exit code."""
    asked = parse(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so teams and files are removed
    results.check(asked.out)  # an unusable file is reported before minutes of measuring
    command = " ".join(["python bench/compare.py", *_without_places(argv)])
    right = [compare(asked, part, command) for part in asked.parts]  # all parts are measured, even after a wrong one
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
