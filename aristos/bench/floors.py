"""Floors of the CUDA kernels on published GPUs: the shortest times that FLOPs and bytes permit.

This module measures nothing. A kernel takes at least as long as the GPU's arithmetic units, its memory (HBM) and its
link each need. The kernel's floor is the largest of these three times at the data sheet's rates, as if they overlapped
perfectly. Launches, latencies, activations, biases and padding of tiles are left out, because they only add time. Rows
are spread evenly over experts, and experts over GPUs. Caches are cold; MEANING says what a warm cache can save.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..host import launch_environment
from ..models import PRESETS
from ..row_types import BY_KIND
from .arguments import counts

BYTES = {kind: row.nbytes for kind, row in BY_KIND.items()}  # bytes of an element of rows and weights, by arithmetic
FLOAT, WORD = 4, 8  # bytes of a router element or combine weight, and of an id or position
COMPARED = ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class DataSheet:
    """A GPU's data sheet. bf16, f16, tf32, f32: peak FLOP/s, dense, without structured sparsity. l2: bytes.

    memory: bytes/s. link: bytes/s of all NVLinks together, in one direction.
    topology/defaults.py has the rates that such GPUs reach in practice. A floor must not depend on measured rates.
    """

    name: str
    sms: int
    l2: int
    bf16: float
    f16: float
    tf32: float
    f32: float
    memory: float
    link: float
    source: str


GPUS = (
    DataSheet(
        "A100", 108, 40_000_000, 312e12, 312e12, 156e12, 19.5e12, 2.039e12, 300e9,
        "NVIDIA A100 Tensor Core GPU data sheet, SXM4 80 GB; NVLink 600 GB/s both ways",
    ),
    DataSheet(
        "H100", 132, 50_000_000, 989.4e12, 989.4e12, 494.7e12, 66.9e12, 3.35e12, 450e9,
        "NVIDIA H100 Tensor Core GPU data sheet and architecture white paper, SXM5; NVLink 900 GB/s both ways",
    ),
    DataSheet(
        "H200", 132, 50_000_000, 989.4e12, 989.4e12, 494.7e12, 66.9e12, 4.8e12, 450e9,
        "NVIDIA H200 Tensor Core GPU data sheet, SXM: the H100's arithmetic; NVLink 900 GB/s both ways",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class GpuCall:
    """One call of a layer on one of `gpus` equal GPUs.

    The GPU has `tokens` tokens, and computes as many rows as its tokens have choices. kind: the arithmetic of the
    experts, a key of BYTES. The router is float32 without tensor cores for every kind.
    Raises InputError for an unknown kind or a count of GPUs that is not in 1..experts.
    """

    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    gated: bool = False
    kind: str = "bf16"
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.kind not in BYTES:
            raise InputError(f"kind must be one of {', '.join(BYTES)}, got {self.kind!r}")
        if not 1 <= self.gpus <= self.experts:
            raise InputError(f"gpus must be in 1..{self.experts}, the number of experts, got {self.gpus}")

    @property
    def row(self) -> int:
        """Bytes of a row of H elements."""
        return self.hidden * BYTES[self.kind]

    @property
    def rows(self) -> int:
        """How many (token, choice) rows a GPU's tokens have. The GPU's experts compute as many."""
        return self.tokens * self.top_k

    @property
    def remote(self) -> float:
        """How many rows go to other GPUs. As many come from them."""
        return self.rows * (self.gpus - 1) / self.gpus

    @property
    def own(self) -> float:
        """How many rows a GPU reads in place for its own experts. The choices of a token share one row of x."""
        return min(self.tokens, self.rows - self.remote)

    @property
    def active(self) -> float:
        """How many experts of a GPU have rows. Only the weights of these are read."""
        return min(self.experts, self.rows * self.gpus) / self.gpus

    @property
    def weight(self) -> int:
        """Bytes of one [H, F] matrix."""
        return self.hidden * self.ffn * BYTES[self.kind]

    @property
    def first(self) -> int:
        """Number of weight matrices of the first GEMM."""
        return 2 if self.gated else 1


@dataclass(frozen=True)
class KernelWork:
    """A kernel's work. products: FLOPs in the experts' arithmetic. plain: FLOPs in float32.

    memory: bytes read and written.
    link: bytes sent; as many arrive in the other direction."""

    products: float = 0
    plain: float = 0
    memory: float = 0
    link: float = 0


def route(call: GpuCall) -> KernelWork:
    """The work of routing S tokens to k experts each: x and the router are read, ids and weights are written."""
    read = call.tokens * call.row + FLOAT * call.hidden * call.experts
    return KernelWork(plain=2 * call.tokens * call.hidden * call.experts, memory=read + (WORD + FLOAT) * call.rows)


def place(call: GpuCall) -> KernelWork:
    """The work of the packed order: ids are read, and a token and a position for each row are written."""
    return KernelWork(memory=3 * WORD * call.rows)


def dispatch(call: GpuCall) -> KernelWork:
    """The work of dispatch: each token's row is read once and sent once for every choice; arriving rows are written."""
    arrive = call.remote * call.row
    return KernelWork(memory=min(call.tokens, call.remote) * call.row + arrive, link=arrive)


def up(call: GpuCall) -> KernelWork:
    """The work of the first GEMM, gate included: rows and weights are read, h [rows, F] is written."""
    read = (call.own + call.remote) * call.row + call.active * call.first * call.weight
    return KernelWork(
        products=2 * call.rows * call.hidden * call.ffn * call.first,
        memory=read + call.rows * call.ffn * BYTES[call.kind],
    )


def down(call: GpuCall) -> KernelWork:
    """The work of the second GEMM: h and weights are read, output rows are written."""
    read = call.rows * call.ffn * BYTES[call.kind] + call.active * call.weight
    return KernelWork(products=2 * call.rows * call.hidden * call.ffn, memory=read + call.rows * call.row)


def returns(call: GpuCall) -> KernelWork:
    """The work of the return of output rows as a separate copy: rows are read, returned rows are written."""
    return KernelWork(memory=2 * call.remote * call.row, link=call.remote * call.row)


def combine(call: GpuCall) -> KernelWork:
    """The work of combine in float32: rows, weights and positions are read, y is written."""
    memory = (call.rows + call.tokens) * call.row + (FLOAT + WORD) * call.rows
    return KernelWork(plain=2 * call.rows * call.hidden, memory=memory)


KERNELS = {
    "route": route,
    "place": place,
    "dispatch": dispatch,
    "up": up,
    "down": down,
    "return": returns,
    "combine": combine,
}


def layer(call: GpuCall) -> KernelWork:
    """The work of the whole call with everything overlapped.

    The arithmetic is that of all kernels, and the link carries rows out and outputs back. Memory counts only the
    bytes that no schedule can keep on the chip: x, router and active experts' weights are read once, and y is written.
    """
    parts = [kernel(call) for kernel in KERNELS.values()]
    weights = call.active * (call.first + 1) * call.weight
    return KernelWork(
        products=sum(part.products for part in parts),
        plain=sum(part.plain for part in parts),
        memory=2 * call.tokens * call.row + FLOAT * call.hidden * call.experts + weights,
        link=sum(part.link for part in parts),
    )


def floor(gpu: DataSheet, kind: str, work: KernelWork) -> tuple[float, str]:
    """(microseconds, the largest term: compute, memory or link). Tensor cores and float32 units work in parallel."""
    if kind == "f32":
        compute = (work.products + work.plain) / gpu.f32
    else:
        compute = max(work.products / getattr(gpu, kind), work.plain / gpu.f32)
    terms = {"compute": compute, "memory": work.memory / gpu.memory, "link": work.link / gpu.link}
    binds = max(terms, key=lambda name: terms[name])
    return 1e6 * terms[binds], binds


def chain(gpu: DataSheet, call: GpuCall) -> float:
    """Microseconds of an unfused layer that runs all kernels one after another, each through memory."""
    return sum(floor(gpu, call.kind, kernel(call))[0] for kernel in KERNELS.values())


def calls(preset: str, kind: str, gpus: int) -> list[GpuCall]:
    """Calls of the preset's published shape, one for each of its token counts."""
    p = PRESETS[preset]
    return [GpuCall(tokens, p.hidden, p.ffn, p.experts, p.top_k, p.gated, kind, gpus) for tokens in p.tokens]


MEANING = """\
Bounds from FLOPs and bytes at the data sheets' rates, in microseconds; nothing here was measured on a GPU. Each
number is followed by the term that binds it: c compute, m memory, l link. A kernel alone reads its input from memory
and writes its output there; `chain` is the sum of the kernels, one after another. `layer` is a fused call in which
everything overlaps: the largest of three terms. Compute is all arithmetic. Memory is x, the router, y and the weights
of experts that have rows. Link is rows out and outputs back. Intermediate values (h, rows of the inbox, return rows)
may stay on the chip. Tokens are those of one GPU. Caches are cold: if the weights of a call fit into L2, a second call
can be faster than its memory term."""


def digits(us: float) -> str:
    """Microseconds to three digits."""
    if us < 0.01:
        return "< 0.01"
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def _cell(gpu: DataSheet, kind: str, work: KernelWork) -> str:
    us, binds = floor(gpu, kind, work)
    return f"{digits(us)} {binds[0]}"


def table(presets: Iterable[str], kind: str, gpus: int) -> str:
    """Markdown with the microseconds of every kernel by shape and GPU, and the largest term: c, m or l."""
    names = [name for name in KERNELS if gpus > 1 or name not in ("dispatch", "return")]
    lines = [
        f"| tokens/H/F/E/k | GPU | {' | '.join(names)} | chain | layer |",
        "| --- | --- |" + " ---: |" * (len(names) + 2),
    ]
    for preset in presets:
        for call in calls(preset, kind, gpus):
            shape = f"{preset.upper()} {call.tokens}/{call.hidden}/{call.ffn}/{call.experts}/{call.top_k}"
            for gpu in GPUS:
                cells = [_cell(gpu, kind, KERNELS[name](call)) for name in names]
                cells += [digits(chain(gpu, call)), _cell(gpu, kind, layer(call))]
                lines.append(f"| {shape} | {gpu.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gpus_table() -> str:
    """Markdown with the rates of the data sheets."""
    lines = [
        "| GPU | SMs | bf16 and f16, TFLOP/s | tf32 | f32 | memory, GB/s | NVLink, GB/s one way | L2, MB | source |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for c in GPUS:
        flops = " | ".join(f"{rate / 1e12:.5g}" for rate in (c.bf16, c.tf32, c.f32))
        rates = f"{flops} | {c.memory / 1e9:.0f} | {c.link / 1e9:.0f} | {c.l2 / 1e6:.0f}"
        lines.append(f"| {c.name} | {c.sms} | {rates} | {c.source} |")
    return "\n".join(lines)


def page(
    presets: Sequence[str] = COMPARED, kinds: Sequence[str] = ("bf16", "f32"), gpus: Sequence[int] = (1, 8)
) -> str:
    """Markdown with all tables and their meaning."""
    parts = [
        MEANING,
        gpus_table(),
    ]
    for kind in kinds:
        for count in gpus:
            where = "one GPU with all experts" if count == 1 else f"{count} GPUs, experts spread evenly"
            parts += [f"{kind}, {where}:", table(presets, kind, count)]
    return "\n\n".join(parts)


def main(argv: list[str], prog: str = "python -m aristos.bench floors") -> int:
    """Print the tables. Returns the exit code. The command needs neither MPI nor a GPU, and writes no file."""
    parser = launch_environment.OneRankParser(prog=prog, description=__doc__)
    parser.add_argument(
        "presets", nargs="*", metavar="PRESET", help=f"published shapes (default: {' '.join(COMPARED)})"
    )
    parser.add_argument(
        "--kinds",
        default="bf16,f32",
        metavar="K[,K..]",
        help=f"kinds of arithmetic, out of {', '.join(BYTES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus", type=counts, default=(1, 8), metavar="N[,N..]", help="GPUs that share the experts (default: 1,8)"
    )
    given = parser.parse_args(argv)
    presets = [name.lower() for name in given.presets] or list(COMPARED)
    unknown = [name for name in presets if name not in PRESETS]
    if unknown:
        parser.error(f"unknown preset {unknown[0]!r}; the presets are {', '.join(PRESETS)}")
    try:
        text = page(presets, given.kinds.split(","), given.gpus)
    except InputError as why:
        parser.error(str(why))
    if launch_environment.prints():
        print(text)
    return 0
