"""A report on one GPU, in one command of less than 8 minutes: `python bench/gpu_report.py`.

Checks every product kernel against float64, runs tests/gpu, times the suites of `python -m aristos.bench --backend
cuda`, and writes gpu-report.h5 and gpu-report.md with the GPU, its driver and its clocks: the files to send back. Each
part is a process of its own; the table names a part that fails, and the others still run. --routing FILE.npz also
replays a recorded routing. docs/gpu-first-run.md says what each part should show.

`mpirun -n N python bench/gpu_report.py` reports on N GPUs of a node, in less than 8 minutes too: products on every GPU,
puts and signals between them with the class of each link, the layer and its rivals on N ranks. MPI can start only once
in a process, so the parts run in this one, and tests/gpu is left to a run without mpirun.

Exit codes: 0 all parts ran and all outputs were right, even if a figure was missed, 1 a part failed, 2 a usage error, 3
no GPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aristos import results
from aristos.errors import AristosError, EnvironmentProblem
from aristos.host import launch_environment

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 465.0  # for all parts
BEAT = 10.0  # seconds between two lines of progress
NO_GPU = 3
PRODUCTS = "import sys; sys.path.insert(0, sys.argv[1]); import gpu_report; sys.exit(gpu_report.check_products())"
BENCH = ["-m", "aristos.bench", "--backend", "cuda", "--json"]
GEMM = ["gemm", "--preset", "switch-base-128", "--hidden", "4096", "--ffn", "14336", "--experts", "8"]
SHAPE = ["--preset", "mixtral-8x7b", "--scale", "2", "--tokens", "64,4096", "--dtype", "bfloat16"]


@dataclass(frozen=True)
class Part:
    """One part of the report. words: arguments of python; OUT stands for the HDF5 file. limit: seconds."""

    name: str
    words: tuple[str, ...]
    limit: float


@dataclass
class Ran:
    """The outcome of a part. said: its last line of output. document: the JSON of its suites."""

    part: Part
    code: int | None  # None: the limit was exceeded
    seconds: float
    said: str
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def outcome(self) -> str:
        """The outcome as text."""
        if self.code is None:
            return f"no end after {self.seconds:.0f} s"
        return "ok" if self.ok else f"FAILED ({self.code})"


# The products come first: they compile kernels that later parts load from the cache. All share SECONDS.
PARTS = (
    Part("products against float64", ("-c", PRODUCTS, str(ROOT / "bench")), 150),
    Part("put and signal", (*BENCH, "put", "signal", "--seconds", "20", "--out", "OUT"), 60),
    Part("gemm", (*BENCH, *GEMM, "--dtype", "bfloat16", "--seconds", "15", "--out", "OUT"), 60),
    Part("layer", (*BENCH, "layer", *SHAPE, "--seconds", "25", "--out", "OUT"), 150),
    Part("tests/gpu", ("-m", "pytest", "-q", "--no-header", "tests/gpu"), 240),
    Part("exchange", (*BENCH, "exchange", *SHAPE, "--seconds", "10", "--out", "OUT"), 40),
    Part("idle and progress", (*BENCH, "idle", "progress", *SHAPE, "--seconds", "20", "--out", "OUT"), 90),
)


# Under mpirun: what needs several GPUs. Each is a command line of `python -m aristos.bench`, run by all ranks.
TOGETHER = (
    Part("put and signal", ("put", "signal", "--seconds", "60"), 120),
    Part("layer", ("layer", *SHAPE, "--seconds", "60"), 150),
    Part("exchange", ("exchange", *SHAPE, "--seconds", "30"), 60),
    Part("idle and progress", ("idle", "progress", *SHAPE, "--seconds", "20"), 60),
)


def replayed(trace: Path) -> Part:
    """The part that replays a recorded routing, on its model's shape or one with as many experts."""
    words = (*BENCH, "replay", "--routing", str(trace.absolute()), "--scale", "4", "--dtype", "bfloat16")
    return Part("replay", (*words, "--seconds", "25", "--out", "OUT"), 90)


@dataclass(frozen=True)
class Figure:
    """A figure with a goal. value(right rows of the suite's sheets) -> the figure reached, None if there is none."""

    what: str
    part: str
    goal: float
    unit: str
    suite: str
    value: Callable[[list[dict[str, Any]]], float | None]
    at_most: bool = False

    def reached(self, ran: list[Ran]) -> float | None:
        """The figure reached; None if it was not measured."""
        for each in ran:
            suite = each.document.get("suites", {}).get(self.suite)
            if each.part.name == self.part and suite:
                rows = [row for table in suite["tables"] for row in table["rows"]]
                return self.value([row for row in rows if row.get("check") == "ok"])
        return None

    def line(self, ran: list[Ran]) -> list[str]:
        """Its row of the table: figure, goal, reached, met."""
        value = self.reached(ran)
        if value is None:
            return [self.what, f"{self.goal:g} {self.unit}", "not measured", "-"]
        met = value <= self.goal if self.at_most else value >= self.goal
        return [self.what, f"{self.goal:g} {self.unit}", f"{value:.3g} {self.unit}", "yes" if met else "no"]


def _only(key: str, **where: Any) -> Callable[[list[dict[str, Any]]], float | None]:
    """A function that returns the value of `key` in the first row that matches `where`."""

    def value(rows: list[dict[str, Any]]) -> float | None:
        found = [row for row in rows if all(row.get(name) == wanted for name, wanted in where.items())]
        return found[0].get(key) if found else None

    return value


def _least_share(rows: list[dict[str, Any]]) -> float | None:
    return min((row["share"] for row in rows if row.get("way") == "both ways"), default=None)


def figures(arch: str) -> tuple[Figure, ...]:
    """The figures with goals for a GPU; that of 16-bit products is higher on architectures with warpgroup products."""
    from aristos.kernels.cuda.gemm import tiles
    from aristos.kernels.cuda.target import Target

    share = 0.85 if any(tile.groups for tile in tiles("bf16", Target.named(arch))) else 0.60
    return (
        Figure("bf16 product, 8 experts x 1024 rows, 4096 x 14336, over cuBLAS", "gemm", share, "of cuBLAS", "gemm",
               _only("share", rows=1024)),
        Figure("put between two halves of a grid, rows of 4 KB and more, over the copy", "put and signal", 0.85,
               "of the copy", "put", _least_share),
        Figure("put + signal there and back, 16 bytes", "put and signal", 6, "us", "signal",
               _only("median_us", row_bytes=16), at_most=True),
        Figure("layer over the unfused chain, 4096 tokens", "layer", 1.2, "x", "layer",
               _only("speedup", tokens=4096, what="aristos graph")),
        Figure("layer over the unfused chain, 64 tokens", "layer", 1.5, "x", "layer",
               _only("speedup", tokens=64, what="aristos graph")),
    )  # fmt: skip


def check_products() -> int:
    """Check every tile of every kind against float64 on this GPU, and some rows' bits against those of the kind's first
    tile; prints a line per tile. Returns the exit code of the part.
    """
    from aristos.bench.gpu.clock import BenchGpu
    from aristos.bench.suites.gemm_gpu import OURS, Products
    from aristos.bench.world import World
    from aristos.kernels.cuda.gemm import tiles
    from aristos.layer.device_arrays import KINDS
    from aristos.row_types import ROW_TYPES

    gpu, wrong = BenchGpu(World()), 0
    for dtype, kind in KINDS.items():
        first = None
        for tile in tiles(kind, gpu.device.target):
            rows = tile.m + 3  # a full tile and a partial one
            work = Products(gpu, kind, 2, 320, 208, None, rows)
            error = work.error(work.calls(rows, tile)[OURS], rows)
            few = work.y.get()[:16].tobytes()  # the same rows of x for every tile
            first = first or few
            said = "WRONG" if error > ROW_TYPES[dtype].error else "ok" if few == first else "OTHER BITS"
            wrong += said != "ok"
            print(f"{tile.name}: {error:.1e} {said}", flush=True)
    gpu.close()
    return 1 if wrong else 0


def run(part: Part, out: Path, limit: float, show: Callable[[str], None]) -> Ran:
    """Run a part to its end or to the limit. show(text): shows now and then that it still runs."""
    words = [str(out) if word == "OUT" else word for word in part.words]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
        )
        code: int | None = None
        try:
            while code is None and time.monotonic() - start < limit:
                try:
                    code = process.wait(min(BEAT, max(0.1, limit - (time.monotonic() - start))))
                except subprocess.TimeoutExpired:
                    show(f"{part.name}: {time.monotonic() - start:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its child processes may hold the GPU as well
                process.wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    try:
        document = json.loads(texts[0])
    except ValueError:
        document = {}
    said = [line for line in ("" if document else texts[0], texts[1]) for line in line.strip().splitlines() if line]
    return Ran(part, code, time.monotonic() - start, said[-1] if said else "", document)


class Parts:
    """The parts under mpirun, in this process: every rank runs each, rank 0 keeps what was printed."""

    def __init__(self, out: Path, show: Callable[[str], None]) -> None:
        from mpi4py import MPI

        self.comm, self.out, self.show = MPI.COMM_WORLD, out, show

    def products(self) -> Ran:
        """Every rank checks the products on its GPU; the worst outcome counts."""
        part, start = Part("products against float64", (), 150), time.monotonic()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            codes = self.comm.allgather(check_products())
        wrong = [rank for rank, code in enumerate(codes) if code]
        text = f"wrong on ranks {wrong}" if wrong else (said.getvalue().strip().splitlines() or [""])[-1]
        return Ran(part, max(codes), time.monotonic() - start, text)

    def run(self, part: Part) -> Ran:
        """A part of TOGETHER. One that fails on a rank ends the job; the page has what came before."""
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
        return Ran(part, code, time.monotonic() - start, last[-1] if last else "", document)


def together(stem: Path, facts: dict[str, Any]) -> int:
    """The report under mpirun; returns the exit code, the same on every rank."""
    start = time.monotonic()
    signal.alarm(int(SECONDS) + 10)  # a part that hangs ends the job

    def show(text: str) -> None:
        if parts.comm.rank == 0:
            print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    out, page, ran = stem.with_suffix(".h5"), stem.with_suffix(".md"), []
    parts = Parts(out.absolute(), show)
    gpus = parts.comm.allgather(f"{facts['card']} {facts['card_uuid']}")
    facts |= {"ranks": parts.comm.size, "gpus": "; ".join(gpus)}
    for part in (None, *TOGETHER):
        show("products against float64" if part is None else part.name)
        ran.append(parts.products() if part is None else parts.run(part))
        show(f"{ran[-1].part.name}: {ran[-1].outcome}")
        if parts.comm.rank == 0:
            page.write_text(markdown(facts, ran), encoding="utf-8")
    if parts.comm.rank == 0:
        save(out, facts, ran)
        show(f"send back {page} and {out}")
    signal.alarm(0)
    return 0 if all(each.ok for each in ran) else 1


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def markdown(facts: dict[str, Any], ran: list[Ran]) -> str:
    """The report: the GPU, the figures, the outcomes of the parts, and all tables."""
    parts = [f"# Aristos on {facts['card']}", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    parts.append(
        table(["figure", "goal", "reached", "met"], [figure.line(ran) for figure in figures(facts["card_arch"])])
    )
    rows = [[each.part.name, each.outcome, f"{each.seconds:.0f}", each.said[:200]] for each in ran]
    parts.append(table(["part", "outcome", "seconds", "last line of output"], rows))
    for each in ran:
        for suite in each.document.get("suites", {}).values():
            for sheet in suite["tables"]:
                parts.append(f"## {sheet['title']}")
                keys = list(dict.fromkeys(key for row in sheet["rows"] for key in row))
                parts.append(table(keys, [[_cell(row.get(key)) for key in keys] for row in sheet["rows"]]))
                parts += [f"- {note}" for note in sheet["notes"]]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def save(out: Path, facts: dict[str, Any], ran: list[Ran]) -> None:
    """Append the figures and the outcomes of the parts to the results file of the suites."""
    goals = figures(facts["card_arch"])
    found = [figure.reached(ran) for figure in goals]
    made = results.Table("gpu_report").dim("figure", [figure.what for figure in goals])
    made.dim("part", [each.part.name for each in ran])
    made.add("asked", "figure", [figure.goal for figure in goals])
    made.add("reached", "figure", [float("nan") if value is None else value for value in found])
    made.add("outcome", "part", [each.outcome for each in ran])
    made.add("seconds", "part", [each.seconds for each in ran], "s")
    results.append(out, results.Run(attributes={"command": "python bench/gpu_report.py", **facts}, tables=[made]))


def gpu_facts() -> dict[str, Any]:
    """The GPU, its driver and clocks, versions. Raises EnvironmentProblem if there is no GPU."""
    from aristos.host.versions import versions
    from aristos.substrate.cuda import device_puts
    from aristos.substrate.cuda.device import CudaDevice
    from aristos.topology import nvml

    device, library = CudaDevice.find(local_rank()), nvml.load()
    facts = {
        "card": device.name,
        "card_uuid": device.uuid,
        "card_arch": device.arch,
        "card_sms": device.sms,
        "cuda_driver": device.driver,
    }
    if launch_environment.started_as() is None:  # the probe starts MPI in a child
        puts = device_puts.probe(device.ordinal)
        facts["puts_from_card"] = "yes" if puts.supported else f"no: {puts.why}"
    facts |= nvml.state(library, device.uuid) if library is not None else {}
    return (
        facts
        | {"utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        | {name: version for name, version in versions().items() if version}
    )


def local_rank() -> int:
    """This process's number on its node; 0 without a launcher."""
    from aristos.substrate.cuda.runtime import LOCAL_RANK

    return next((int(os.environ[name]) for name in LOCAL_RANK if os.environ.get(name, "").isdecimal()), 0)


def main(argv: list[str]) -> int:
    parser = launch_environment.OneRankParser(prog="python bench/gpu_report.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="gpu-report", help="name of the files without .h5 and .md (%(default)s)")
    parser.add_argument("--routing", type=Path, metavar="FILE.npz", help="a recorded routing to replay")
    given = parser.parse_args(argv)
    if given.routing is not None and not given.routing.is_file():
        parser.error(f"no such file: --routing {given.routing}")
    stem = Path(given.out)
    parts = PARTS if given.routing is None else (*PARTS, replayed(given.routing))
    try:
        facts = gpu_facts()
    except (EnvironmentProblem, ImportError) as why:
        print(f"no GPU to report on: {why}", file=sys.stderr)
        return NO_GPU
    started = launch_environment.started_as()
    if started is not None and started[1] > 1:
        return together(stem, facts)
    start = time.monotonic()

    def show(text: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    out, page, ran = stem.with_suffix(".h5"), stem.with_suffix(".md"), []
    for part in parts:
        left = SECONDS - (time.monotonic() - start)
        show(part.name)
        ran.append(run(part, out.absolute(), min(part.limit, max(1.0, left)), show))
        show(f"{part.name}: {ran[-1].outcome}")
        page.write_text(markdown(facts, ran), encoding="utf-8")  # so far, in case a later part ends the run
    try:
        save(out, facts, ran)
    except AristosError as why:
        show(f"{out}: {why}")
        return 1
    show(f"send back {page} and {out}")
    return 0 if all(each.ok for each in ran) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
