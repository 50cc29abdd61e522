"""The jobs of the comparison, as every process sees them: shapes, and arrays in a folder. This module needs only NumPy.

compare.py makes a job once (oracle.py), and every peer reads the same weights, tokens and routing from the folder. A
job has a few inputs, each with a routing of its own. Calls take them in turn, so that no call finds the rows of the
previous call in the caches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """One layer's job. tokens: S, on each rank; hidden: H; ffn: F; experts: E, over all ranks; top_k: k.

    gated: whether experts are SwiGLU; else they are ReLU without a gate. routing: `uniform`, `zipf` (exponent 1.2) or
    the name of a trace. weights: "int8" or "int4" if every weight of experts is a code times a scale (oracle.coded),
    else "".
    """

    name: str
    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int
    gated: bool = False
    routing: str = "uniform"
    weights: str = ""

    def __str__(self) -> str:
        numbers = f"{self.tokens}/{self.hidden}/{self.ffn}/{self.experts}/{self.top_k}"
        words = ["gated"] * self.gated + [self.weights] * bool(self.weights)
        return " ".join([numbers, *words, *([] if self.routing == "uniform" else [self.routing])])

    @property
    def label(self) -> str:
        """The shape's letter, if it has one, and its numbers."""
        return f"{self.name.split('@')[0]} {self}" if self.name[:1].isalpha() else str(self)

    @property
    def inputs(self) -> int:
        """How many inputs calls take in turn.

        With few tokens there are more inputs, because the experts of only two inputs would stay in a cache.
        """
        return 4 if self.tokens <= 16 else 2

    def flops(self, rows: int) -> int:
        """Floating-point operations of all GEMMs for `rows` rows, without combine."""
        return (6 if self.gated else 4) * rows * self.hidden * self.ffn


@dataclass(frozen=True)
class Step(Shape):
    """A training step of a layer: forward and backward.

    Experts have SiLU, with or without a gate. ReLU is not used: rounding may change the sign of a sum near 0, and with
    it ReLU's derivative.
    """

    @property
    def inputs(self) -> int:
        return 2

    def flops(self, rows: int) -> int:
        """Three times a forward call's: gradients of rows take as many, and so do gradients of weights."""
        return 3 * super().flops(rows)


@dataclass(frozen=True)
class Product:
    """One matrix product: x [rows, depth] times a weight [depth, columns]."""

    rows: int
    depth: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.depth} x {self.columns}"

    @property
    def name(self) -> str:
        return str(self)

    @property
    def label(self) -> str:
        return str(self)

    @property
    def inputs(self) -> int:
        return 2

    def flops(self) -> int:
        return 2 * self.rows * self.depth * self.columns


CODES = {"int8": 127, "int4": 7}  # the largest code of each type
GROUP = 128  # int4: successive codes of a column, at least one of them 7 or -7; int8: the whole column is one group

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A", 1024, 1024, 4096, 8, 2),
        Shape("B", 4096, 128, 128, 8, 2),
        Shape("C", 32, 512, 1024, 8, 2),
        Shape("D", 16, 2048, 512, 32, 8),
        Shape("E", 1024, 2048, 512, 32, 8),
        Shape("G", 512, 512, 1408, 64, 6, gated=True),
    )
}


def parse_shape(text: str) -> Shape:
    """The shape that a text names: a letter in SHAPES or tokens/H/F/E/k[/gated][/int8 or /int4], then perhaps @routing.

    Raises ValueError for other texts.
    """
    left, _, routing = text.partition("@")
    known = SHAPES.get(left)
    words = left.split("/")
    weights = words.pop() if words[-1] in CODES else ""
    gated = words[-1:] == ["gated"]
    try:
        numbers = [int(word) for word in words[: len(words) - gated]]
    except ValueError:
        numbers = []
    if known is not None:
        numbers = [known.tokens, known.hidden, known.ffn, known.experts, known.top_k]
        gated = known.gated
    if len(numbers) != 5 or min(numbers) < 1:
        texts = f"{', '.join(SHAPES)} or tokens/H/F/E/k[/gated][/int8 or /int4]"
        raise ValueError(f"a shape must be one of {texts}, got {text!r}")
    if numbers[4] > numbers[3]:
        raise ValueError(f"top_k must be at most experts, got {text!r}")
    if weights == "int4" and (numbers[1] % GROUP or numbers[2] % GROUP):
        raise ValueError(f"H and F must be multiples of {GROUP} with weights of int4, got {text!r}")
    return Shape(text, *numbers, gated=gated, routing=routing or "uniform", weights=weights)


def step(shape: Shape) -> Step:
    """A training step of a layer."""
    return Step(**asdict(shape))


@dataclass
class Job:
    """A layer's arrays, as one rank sees them. Experts are placed contiguously, E / world on each rank.

    up, gate: [E, H, F] and down: [E, F, H] for all experts, mapped from files; gate: None if ungated; local: the slice
    of experts that this rank holds; xs: [inputs, S, H]; ids, weights: [inputs, S, k]; rows: [inputs, world], how many
    rows each rank computes; dys: [inputs, S, H], for a step the gradients of the outputs.
    """

    shape: Shape
    rank: int
    world: int
    up: Floats
    gate: Floats | None
    down: Floats
    xs: Floats
    ids: Ints
    weights: Floats
    rows: Ints
    dys: Floats | None = None

    @property
    def local(self) -> slice:
        each = self.shape.experts // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


@dataclass
class ProductJob:
    """A product's arrays. weight: [depth, columns]; xs: [inputs, rows, depth]."""

    shape: Product
    weight: Floats
    xs: Floats


def write(folder: Path, shape: Shape | Product, world: int, arrays: dict[str, NDArray]) -> None:
    """Write the arrays of a job. An array of one rank is named `name-rank`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "job.json").write_text(json.dumps({"kind": type(shape).__name__, "world": world, **asdict(shape)}))


def read(folder: Path, rank: int) -> Job | ProductJob:
    """The job in a folder, as rank `rank` sees it."""
    said = json.loads((folder / "job.json").read_text())
    kind, world = said.pop("kind"), said.pop("world")

    def mapped(name: str) -> NDArray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    def own(name: str) -> NDArray:
        return np.load(folder / f"{name}-{rank}.npy")

    if kind == "Product":
        return ProductJob(Product(**said), np.load(folder / "weight.npy"), own("x"))
    shape = Step(**said) if kind == "Step" else Shape(**said)
    gate = mapped("gate") if shape.gated else None
    rows = np.load(folder / "rows.npy")
    dys = own("dy") if isinstance(shape, Step) else None
    return Job(shape, rank, world, mapped("up"), gate, mapped("down"), own("x"), own("ids"), own("weights"), rows, dys)


def flat(parts: Iterable[Floats]) -> Floats:
    """The output of a step: gradients of x, of the combine weights, and of up, gate and down, one after the other."""
    return np.concatenate([part.reshape(-1) for part in parts])
