"""Measures the figures for which Aristos has goals, and shows the last run on record beside them: `make goals`.

The goals hold for this family of CPUs. `make compare` compares with peers. For a few tokens, most figures are shares of
the read bandwidth that the same core has in the same run. An expert is gated, with H 2048 and F 768. A layer has 32
experts or more, 8 for each token. When experts are measured without a layer, they take turns, and together they have
COLD bytes or more. With --record the figures replace those of this family in docs/goals.json, and docs/goals.md is
written from that file.

Exit codes: 0 measured, whatever was reached; 1 an exception, 2 a usage error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import aristos
from aristos.bench import bounds
from aristos.primitives import isa
from aristos.primitives.aside import write_text
from aristos.row_types import ON_CPUS, ROW_TYPES
from aristos.weight_types import FORMATS, WEIGHT_TYPES

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = ROOT / "docs" / "goals.json", ROOT / "docs" / "goals.md"
COMPARED = ROOT / "docs" / "performance.md"  # the page that `make compare` writes
HIDDEN, FFN, EXPERTS, TOP_K = 2048, 768, 32, 8
ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
COLD = 256 << 20  # more bytes than fit in a cache; `bounds.read_bandwidth` reads as many
TURNS = 5
CFG = aristos.MoEConfig(HIDDEN, FFN, EXPERTS, TOP_K, activation="silu", gated=True, max_tokens=64)
FORMS = (*ON_CPUS, *FORMATS)
BITS = {name: WEIGHT_TYPES[name].bits for name in ON_CPUS} | {name: form.bits for name, form in FORMATS.items()}
SHARES = {32: 0.85, 16: 0.85, 8: 0.78, 4: 0.70}  # by bits: the share of the read bandwidth that one token has to reach
AGAINST = {  # parts of `make compare` that have goals of few tokens -> the title of their tables
    "decode": "Weights of 8 and of 4 bits, one rank",
    "decode2": "Weights of 8 and of 4 bits, half of the experts on each of two ranks",
    "transformers": "Experts of transformers, one process",
    "transformers2": "Experts of transformers, two ranks",
}
BOTH = 0.85  # the share of two cores' bandwidth that 16 tokens have to reach
SLOWER = 1.05  # a call with fewer rows may take at most this many times as long as one with more
_PORTS = (
    "for four rows, {codes} codes need {operations} operations of the two vector ports, which take {cycles} cycles;"
    " memory delivers the codes in 32 cycles, so the share would be {most}; {busy} cycles were measured while the"
    " core issued at half its rate, as beside a busy second thread"
)
_FOUR = _PORTS.format(codes=256, operations=94, cycles=47, most="0.67", busy=64)
_ONE = (
    "while the core issues at half its rate, as beside a busy second thread, it takes {arithmetic} cycles to compute"
    " {codes} codes, 32 to read them, and 38 to do both at once; scales, activations and the call take a tenth more"
)
_GUESTS = (
    "five runs within an hour and a half, beside other guests of the host, gave {low} to {high}; unpacking and tiles"
    " take {hot} of the time that memory takes, while nobody else is on the core"
)
_SHARED = (
    "{runs} runs on two days gave {low} to {high}; a loop of Python took 1.0 to 2.2 times as long during some of them,"
    " as if other guests used the core's second thread"
)
_UNITS = (
    "a core does one dot product or permutation of 512 bits in a cycle: {count} codes take {cycles} cycles for"
    " {rows} from the L1 cache, and memory delivers them in 7.8 to 8.7{bound}; {shared}"
)

_LONGER = (
    "the kernel alone reads an expert at {alone} of the bandwidth with one row, an expert with H 4096 and F 1536 at"
    " {longer}, and this one at {rows}; why is not known"
)
_UNPACKED = "codes prefetched 4 to 12 KiB ahead are read equally fast, so memory does not limit; not split further"


def _units(rows: str, count: int, cycles: str, most: str, low: str, high: str) -> str:
    bound = f", so the share of 33 GB/s is at most {most}" if most else ""
    return _UNITS.format(
        rows=rows, count=count, cycles=cycles, bound=bound, shared=_SHARED.format(runs="seven", low=low, high=high)
    )


CAUSES = {  # family -> the beginning of a figure's name -> why it is missed
    "amx, emeraldrapids": {
        "fp8: 16 tokens": _GUESTS.format(low="0.66", high="0.87", hot="0.8"),
        "int8: 16 tokens": _GUESTS.format(low="0.62", high="0.87", hot="0.7"),
        "int4: 16 tokens": _GUESTS.format(low="0.64", high="0.83", hot="0.7"),
        "mxfp4: 16 tokens": _GUESTS.format(low="0.56", high="0.74", hot="1.0"),
        "int8: a token": _GUESTS.format(low="0.70", high="0.89", hot="0.7"),
        "int4: a token": _GUESTS.format(low="0.70", high="0.79", hot="0.7"),
        "mxfp4: a token": _GUESTS.format(low="0.56", high="0.72", hot="1.0"),
    },
    "avx512bf16, znver4": {
        "fp8: a token": _units("a row", 64, "6.5", "", "0.33 (before codes were looked up)", "0.73"),
        "int8: a token": _units("a row", 64, "9.4", "0.93", "0.52", "0.66"),
        "int4: a token": _units("a row", 128, "8.2", "", "0.28 (before codes were looked up)", "0.61"),
        "mxfp4: a token": _units("a row", 128, "8.2", "", "0.24 (before codes were looked up)", "0.58"),
        "fp8: 16 tokens": _units("four rows", 64, "12.4", "0.70", "0.26 (before codes were looked up)", "0.75"),
        "int8: 16 tokens": _units("four rows", 64, "17", "0.51", "0.36", "0.68"),
        "int4: 16 tokens": _units("four rows", 128, "20", "0.43", "0.21", "0.69"),
        "mxfp4: 16 tokens": _units("four rows", 128, "20", "0.43", "0.18 (before codes were looked up)", "0.44"),
        "float32: a token": _SHARED.format(runs="ten", low="0.63", high="0.84"),
        "float32: 16 tokens": _SHARED.format(runs="ten", low="0.40", high="0.71"),
        "bfloat16: a token": _SHARED.format(runs="ten", low="0.52", high="0.91"),
        "bfloat16: 16 tokens": _SHARED.format(runs="ten", low="0.48", high="0.82")
        + "; the kernel alone reads four rows' weights at 0.85",
        "float16: a token": _SHARED.format(runs="seven", low="0.58", high="0.82"),
        "float16: 16 tokens": _SHARED.format(runs="seven", low="0.33", high="0.58")
        + "; four rows of multiply-adds and conversions take 1.4 times as long as memory",
        "float32: an expert": _SHARED.format(runs="ten", low="1.04", high="1.36"),
        "bfloat16: an expert": _SHARED.format(runs="ten", low="0.99", high="1.32"),
        "float16: an expert": _SHARED.format(runs="seven", low="0.97", high="1.23"),
        "fp8: an expert": _SHARED.format(runs="seven", low="0.89", high="1.15"),
    },
    "amx, rocketlake": {
        "float32: a token": _LONGER.format(alone="0.84", longer="0.86", rows="0.94 with two rows"),
        "float32: 16 tokens": _LONGER.format(alone="0.84", longer="0.86", rows="0.94 with two rows"),
        "bfloat16: a token": _LONGER.format(alone="0.84", longer="0.97", rows="0.86 with four rows"),
        "float16: 16 tokens": _LONGER.format(alone="0.90", longer="0.99", rows="0.79 with eight rows"),
    }
    | dict.fromkeys([f"{form}: {of}" for form in FORMATS for of in ("a token", "16 tokens")], _UNPACKED),
    "avx512, cascadelake": {
        "int4: a token": _ONE.format(codes=256, arithmetic=33),
        "mxfp4: a token": _ONE.format(codes=256, arithmetic=36),
        "fp8: a token": _ONE.format(codes=128, arithmetic=36),
        "int4: 16 tokens": _FOUR,
        "mxfp4: 16 tokens": f"{_FOUR}; scales of 32 k take 5 % more",
        "fp8: 16 tokens": _PORTS.format(codes=128, operations=64, cycles=32, most="1.0", busy=50),
    },
}


class Figure(NamedTuple):
    """A figure.

    value: what was reached. wanted: the goal. least: whether the goal is a lower bound. unit: the format of
    value and goal.
    """

    name: str
    value: float
    wanted: float
    least: bool = True
    unit: str = ".2f"

    @property
    def met(self) -> bool:
        return self.value >= self.wanted if self.least else self.value <= self.wanted


def configuration(form: str) -> aristos.MoEConfig:
    """The configuration of a layer whose matrices have a type. If they are codes, the rows are bfloat16."""
    cfg = replace(CFG, experts=-(-turns(form) // EXPERTS) * EXPERTS)
    if form in FORMATS:
        return replace(cfg, dtype="bfloat16", weight_dtype=form)
    return replace(cfg, dtype=form)


def turns(form: str) -> int:
    """The number of experts that have COLD bytes together."""
    return -(-COLD * 8 // (3 * HIDDEN * FFN * BITS[form]))


def matrices(form: str, seed: int) -> tuple[Any, Any, Any]:
    """up, down and gate of an expert."""
    rng = np.random.default_rng(seed)
    shapes = ((HIDDEN, FFN), (FFN, HIDDEN), (HIDDEN, FFN))
    plain = [rng.standard_normal(s, np.float32) / np.float32(s[0] ** 0.5) for s in shapes]
    if form in FORMATS:
        up, down, gate = (aristos.quantise(w, aristos.packed(form)) for w in plain)
    else:
        up, down, gate = (w.astype(_array(form)) for w in plain)
    return up, down, gate


def _array(form: str) -> Any:
    return ROW_TYPES["bfloat16" if form in FORMATS else form].array


def least(call: Callable[[], None]) -> float:
    """The seconds that a call takes: the median of several turns, in this thread's processor time."""
    call()
    times = []
    for _ in range(TURNS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return float(np.median(times))


def expert(form: str) -> dict[int, float]:
    """Measure an expert without a layer. Returns {rows: seconds, including the call from Python}."""
    from aristos.kernels import Packed

    up, down, gate = matrices(form, 0)
    dtype = None if form not in FORMATS else "bfloat16"
    experts = [Packed(up, down, gate, activation="silu", dtype=dtype) for _ in range(turns(form))]
    x = np.random.default_rng(1).standard_normal((max(ROWS), HIDDEN), np.float32).astype(_array(form))
    out, found = np.empty_like(x), {}
    for m in ROWS:

        def turn(m: int = m) -> None:
            for one in experts:
                one(x[:m], out=out[:m])

        found[m] = least(turn) / len(experts)
    return found


def layer(form: str, tokens: int, comm: Any = None) -> tuple[float, int]:
    """Measure a layer. Returns (seconds of a call on the slowest rank, bytes of the weights that each rank reads)."""
    cfg = configuration(form)
    up, down, gate = matrices(form, 0)
    count = cfg.experts
    router = np.random.default_rng(2).standard_normal((HIDDEN, count), np.float32)
    rng, every = np.random.default_rng(3), 16
    with aristos.MoE(cfg, comm, backend="cpu", threads=1) as moe:
        moe.load(0, up=[up] * count, down=[down] * count, gate=[gate] * count, router=router)
        x = rng.standard_normal((tokens, HIDDEN), np.float32).astype(_array(form))
        weights = np.full((tokens, TOP_K), 1 / TOP_K, np.float32)
        routes = [_even(tokens, count, turn) for turn in range(every)]
        times = []
        for turn in range(3 * every):
            if comm is not None:
                comm.Barrier()
            start = time.perf_counter()
            moe(x, routes[turn % every], weights)
            times.append(time.perf_counter() - start)
    used = np.mean([len(np.unique(ids)) for ids in routes])
    nbytes = sum(w.nbytes for w in (up, down, gate))
    mine = float(np.median(times[every:]))
    if comm is None:
        return mine, int(used * nbytes)
    return max(comm.allgather(mine)), int(count / comm.size * nbytes)


def _even(tokens: int, experts: int, turn: int) -> np.ndarray:
    """[tokens, k] ids of a turn. Each turn uses other experts, and none twice if there are enough experts."""
    order = (np.arange(tokens * TOP_K) + turn * tokens * TOP_K) % experts
    ids: np.ndarray = order.reshape(tokens, TOP_K)
    return ids


def alone(forms: list[str]) -> list[Figure]:
    """Measure the figures of one rank."""
    found = []
    for form in forms:
        say(form)
        before = bounds.read_bandwidth()
        times = expert(form)
        seconds, read = layer(form, 1)
        rate = max(before, bounds.read_bandwidth())
        share, bits = SHARES[BITS[form]], BITS[form]
        found.append(Figure(f"{form}: a token, share of {rate / 1e9:.1f} GB/s", read / seconds / rate, share))
        worst = max(times[m] / times[n] for m in ROWS for n in ROWS if m < n)
        found.append(Figure(f"{form}: an expert alone, fewer rows over more", worst, SLOWER, least=False))
        if bits < 16:
            found.append(_resident(form))
        say(f"{form}: " + ", ".join(f"{m} rows {1e6 * t:.0f} us" for m, t in times.items()))
    return found


def _resident(form: str) -> Figure:
    """Measure the bytes of packed weights in memory, divided by their bytes in the file."""
    from aristos.kernels.cpu.elements import element_type

    cfg = configuration(form)
    element = element_type(cfg.dtype, weight=cfg.packed)
    files = sum(w.nbytes for w in matrices(form, 0))
    held = 2 * element.packed_bytes(HIDDEN, FFN) + element.packed_bytes(FFN, HIDDEN)
    return Figure(f"{form}: resident bytes over the file's", held / files, 1.02, least=False, unit=".3f")


def of_ranks(forms: list[str]) -> list[Figure]:
    """Measure the figures of all ranks of MPI.COMM_WORLD together. Collective."""
    from mpi4py import MPI

    comm, found = MPI.COMM_WORLD, []
    for form in forms:
        comm.Barrier()
        before = min(comm.allgather(bounds.read_bandwidth()))
        seconds, read = layer(form, 16, comm)
        comm.Barrier()
        rate = max(before, min(comm.allgather(bounds.read_bandwidth())))
        name = f"{form}: 16 tokens on {comm.size} ranks, share of {rate / 1e9:.1f} GB/s each"
        found.append(Figure(name, read / seconds / rate, BOTH))
    return found


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def family() -> str:
    """This family of CPUs, as docs/performance.md names it."""
    return f"{isa.chosen()}, {isa.target()[0]}"


def key(name: str) -> str:
    """A figure's name without the numbers that change from run to run."""
    return name.partition(" of ")[0]


def shown(figures: list[Figure], recorded: dict[str, Any]) -> str:
    """A table of the figures beside those on record."""
    last = {key(name): value for name, value in recorded.get("figures", {}).items()}
    lines = [f"{'figure':64} {'goal':>8} {'now':>7} {'before':>7}"]
    for f in figures:
        sign = ">=" if f.least else "<="
        was = last.get(key(f.name))
        before = "-" if was is None else format(was, f.unit)
        lines.append(
            f"{f.name:64} {sign} {f.wanted:<5g} {format(f.value, f.unit):>7} {before:>7}{'' if f.met else '  missed'}"
        )
    met = sum(f.met for f in figures)
    when = recorded.get("date")
    lines.append(
        f"{met} of {len(figures)} met on {family()}" + (f"; before: {when}" if when else "; nothing on record")
    )
    return "\n".join(lines)


def _causes(records: dict[str, Any]) -> list[str]:
    """A table of the figures that are missed, and why."""
    found = []
    for family, each in records.items():
        for name, value in sorted(each["figures"].items()):
            sign, goal = each["goals"][key(name)].split()
            met = value >= float(goal) if sign == "≥" else value <= float(goal)
            cause = next((why for start, why in CAUSES.get(family, {}).items() if name.startswith(start)), "not known")
            if not met:
                found.append(f"| {family}, {key(name)} | {cause} |")
    return ["", "| missed | cause |", "| --- | --- |", *found] if found else []


def _against(families: list[str], compared: str) -> list[str]:
    """A table of the comparisons with peers that each family has. compared: the text of the page COMPARED."""
    sections = {part.partition("\n")[0]: part for part in compared.split("\n## On ")[1:]}
    lines = [
        "",
        "| against peers, `make compare` | " + " | ".join(families) + " |",
        "| --- |" + " --- |" * len(families),
    ]
    for part, title in AGAINST.items():
        found = [f"\n### {title}\n" in sections.get(name, "") for name in families]
        cells = ["[measured](performance.md)" if there else "owed" for there in found]
        lines.append(f"| `{part}` | {' | '.join(cells)} |")
    return lines


def page(records: dict[str, Any], compared: str) -> str:
    """The figures of all families as a page of Markdown.

    A figure that a family lacks is shown as owed. compared: the text of the page COMPARED.
    """
    families = list(records)
    names = sorted({key(name) for each in records.values() for name in each["figures"]})
    lines = [
        "# Goals of few tokens",
        "",
        "Written by `make goals ARGS=--record`, on one family of CPUs after another. A share is a share of the memory's"
        " read bandwidth, measured in the same run. Owed: not measured there.",
        "",
        "| figure | goal | " + " | ".join(families) + " |",
        "| --- | ---: |" + " ---: |" * len(families),
    ]
    for name in names:
        every = [each["figures"] for each in records.values()]
        found = [{key(n): v for n, v in each.items()} for each in every]
        goal = next(each["goals"][name] for each in records.values() if name in each["goals"])
        cells = [f"{values[name]:.2f}" if name in values else "owed" for values in found]
        lines.append(f"| {name} | {goal} | {' | '.join(cells)} |")
    lines += _causes(records)
    lines += _against(families, compared)
    lines += [
        "",
        *(f"- {name}: {each['date']}, commit {each['commit']}, {each['cpu']}" for name, each in records.items()),
    ]
    return "\n".join(lines) + "\n"


def record(figures: list[Figure], records: dict[str, Any]) -> None:
    """Write this family's figures to the file and the page."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    records[family()] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
        "cpu": _cpu(),
        "figures": {f.name: round(f.value, 4) for f in figures},
        "goals": {key(f.name): f"{'≥' if f.least else '≤'} {f.wanted:g}" for f in figures},
    }
    write_text(RECORD, json.dumps(records, indent=1, sort_keys=True) + "\n")
    write_text(PAGE, page(records, COMPARED.read_text(encoding="utf-8")))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of `argv`; exits with code 2 for an unknown type."""
    parser = argparse.ArgumentParser(prog="python bench/goals.py", description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*", metavar="type", help=f"types of weights: {', '.join(FORMS)} (default: all)")
    parser.add_argument("--mpiexec", default="mpiexec", help="launcher for the figures of two ranks (%(default)s)")
    parser.add_argument("--record", action="store_true", help="replace this family's figures in docs/goals.json")
    parser.add_argument("--on-ranks", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.types if name not in FORMS]:
        parser.error(f"a type must be one of {', '.join(FORMS)}, got {unknown[0]!r}")
    if asked.record and asked.types:
        parser.error("--record needs the figures of all types: leave types out")
    return asked


def main(argv: list[str]) -> int:
    asked = parse(argv)
    forms = asked.types or list(FORMS)
    if asked.on_ranks:
        figures = of_ranks(forms)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps([list(f) for f in figures]))
        return 0
    figures = alone(forms)
    say("two ranks")
    command = [*shlex.split(asked.mpiexec), "-n", "2", sys.executable, __file__, "--on-ranks", *forms]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} ended with code {ran.returncode}:\n{ran.stderr[-4000:]}")
    figures += [Figure(*each) for each in json.loads(ran.stdout.splitlines()[-1])]
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    print(shown(figures, records.get(family(), {})))
    if asked.record:
        record(figures, records)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
