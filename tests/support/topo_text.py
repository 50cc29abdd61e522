"""Texts like those of `nvidia-smi topo -m`, made from known facts, and ways to damage them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""
HEADINGS = ["CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]
CLASSES = ["NV1", "NV2", "NV4", "NV12", "NV18", "PIX", "PXB", "PHB", "NODE", "SYS"]


def seconds(parse: Callable[[str], object], text: str, enough: float) -> float:
    """Processor time of one call: the least of up to ten, since other programs disturb it. Stops at `enough`."""
    least = float("inf")
    for _ in range(10):
        begun = time.process_time()
        parse(text)
        least = min(least, time.process_time() - begun)
        if least < enough:
            break
    return least


@dataclass
class Machine:
    """The facts that a text shows. nics: column -> device; rest: CPUs, NUMA, GPU NUMA ID of each GPU."""

    gpus: int
    nics: dict[str, str] = field(default_factory=dict)
    links: dict[tuple[str, str], str] = field(default_factory=dict)
    rest: list[list[str]] = field(default_factory=list)
    headings: int = 3

    @property
    def labels(self) -> list[str]:
        return [f"GPU{at}" for at in range(self.gpus)] + list(self.nics)


def machine(rng: random.Random) -> Machine:
    """A machine of some generation: one to eight GPUs, NICs numbered or by name, one to three columns of affinity."""
    named = rng.random() < 0.3
    devices = [f"mlx5_{at}" for at in range(rng.choice([0, 0, 1, 2, 4, 9]))]
    nics = {name if named else f"NIC{at}": name for at, name in enumerate(devices)}
    found = Machine(rng.choice([1, 2, 3, 4, 8]), nics, headings=rng.choice([1, 2, 3, 3, 3]))
    for at, a in enumerate(found.labels):
        for b in found.labels[at + 1 :]:
            pair = rng.choice(CLASSES if a.startswith("GPU") and b.startswith("GPU") else CLASSES[5:])
            found.links[a, b] = found.links[b, a] = pair
    cores, threads = rng.choice([4, 24, 56, 128]), rng.random() < 0.7
    for at in range(found.gpus):
        domain = at * 2 // found.gpus
        low, high = domain * cores, domain * cores + cores - 1
        cpus = f"{low}-{high},{low + 2 * cores}-{high + 2 * cores}" if threads else f"{low}-{high}"
        found.rest.append([cpus, str(domain), rng.choice(["N/A", "N/A", str(8 * at + 2)])][: found.headings])
    return found


def printed(of: Machine, empty: bool = False) -> str:
    """The text with tabs, as the tool prints it. empty: leave out CPUs and NUMA domains, as the tool does under WSL."""
    lines = ["\t" + "\t".join(of.labels + HEADINGS[: of.headings])]
    for at, a in enumerate(of.labels):
        cells = [" X " if a == b else of.links[a, b] for b in of.labels]
        if at < of.gpus:
            rest = of.rest[at]
            cells += ["" if empty else rest[0]] + (["" if empty else rest[1]] if of.headings > 1 else [])
            cells += ["", rest[2]] if of.headings > 2 else []
        else:
            cells += [""] * (of.headings + (of.headings > 2))
        lines.append("\t".join([a, *cells]))
    numbered = [f"  {label}: {name}" for label, name in of.nics.items() if label.startswith("NIC")]
    return "\n".join(lines) + "\n" + LEGEND + ("\nNIC Legend:\n\n" + "\n".join(numbered) + "\n" if numbered else "")


def is_row(line: str) -> bool:
    return re.match(r"\s*(\x1b\[\d*m)?\s*(GPU|NIC|mlx)", line) is not None and not re.match(r"\s+NIC\d+:", line)


def _rows(text: str, change: Callable[[str], str], rng: random.Random, one: bool) -> str:
    lines = text.split("\n")
    places = [at for at, line in enumerate(lines) if is_row(line)]
    for at in [rng.choice(places)] if one and places else places:
        lines[at] = change(lines[at])
    return "\n".join(lines)


def _words(line: str, change: Callable[[list[str], list[int]], None], space: bool = False) -> str:
    """Call change(parts, places) on a line: parts are words and the spaces between them, places are those of the words.

    space: places are those of the spaces between words.
    """
    parts = re.findall(r"\S+|\s+", line)
    places = [
        at for at, part in enumerate(parts) if bool(part.strip()) != space and (not space or 0 < at < len(parts) - 1)
    ]
    if places:
        change(parts, places)
    return "".join(parts)


def _drop_column(text: str, rng: random.Random) -> str:
    column = rng.randrange(1, 14)

    def change(parts: list[str], places: list[int]) -> None:
        if column < len(places):
            parts[places[column]] = ""

    return _rows(text, lambda line: _words(line, change), rng, False)


def _drop_tab(text: str, rng: random.Random) -> str:
    column = rng.randrange(1, 14)
    return _rows(text, lambda line: "\t".join(c for at, c in enumerate(line.split("\t")) if at != column), rng, False)


def _drop_cell(text: str, rng: random.Random) -> str:
    def change(parts: list[str], places: list[int]) -> None:
        parts[rng.choice(places)] = ""

    return _rows(text, lambda line: _words(line, change), rng, True)


def _glue(text: str, rng: random.Random, one: bool) -> str:
    def change(parts: list[str], places: list[int]) -> None:
        parts[rng.choice(places)] = ""

    return _rows(text, lambda line: _words(line, change, space=True), rng, one)


def _colours(text: str, rng: random.Random) -> str:
    codes = ["\x1b[4m", "\x1b[0m", "\x1b[1;31m", "\x1b[K", "[4m", "[0m", ""]
    return re.sub(r"\b(GPU\d|NIC\d|SYS|CPU)", lambda m: rng.choice(codes) + m[1], text)


def _cut_line(text: str, rng: random.Random) -> str:
    return _rows(text, lambda line: line[: rng.randrange(len(line) + 1)], rng, True)


def _crop(text: str, rng: random.Random) -> str:
    width = rng.randrange(20, 140)
    return "\n".join(line.expandtabs()[:width] for line in text.split("\n"))


def _fold(text: str, rng: random.Random) -> str:
    """Wrap lines as a terminal of a random width does."""
    width, out = rng.randrange(40, 160), []
    for line in text.split("\n"):
        line = line.expandtabs()
        pieces = [line[at : at + width] for at in range(0, max(len(line), 1), width)]
        out += [piece.rstrip() for piece in pieces] if rng.random() < 0.5 else pieces
    return "\n".join(out)


def _lines(text: str, rng: random.Random, twice: bool) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    lines[at : at + 1] = [lines[at]] * 2 if twice else []
    return "\n".join(lines)


SPOIL: dict[str, Callable[[str, random.Random], str]] = {
    "drop a column": _drop_column,
    "drop a tab's column": _drop_tab,
    "drop a cell": _drop_cell,
    "glue two cells of a row": lambda text, rng: _glue(text, rng, True),
    "glue two cells of every row": lambda text, rng: _glue(text, rng, False),
    "colours": _colours,
    "cut a line": _cut_line,
    "cut all lines": _crop,
    "cut the text": lambda text, rng: text[: rng.randrange(len(text))],
    "wrap": _fold,
    "lose a line": lambda text, rng: _lines(text, rng, False),
    "a line twice": lambda text, rng: _lines(text, rng, True),
}
HARMLESS: dict[str, Callable[[str, random.Random], str]] = {
    "spaces for tabs": lambda text, _: text.expandtabs(),
    "ends of lines lost": lambda text, _: "\n".join(line.rstrip() for line in text.split("\n")),
    "Windows": lambda text, _: text.replace("\n", "\r\n"),
    "indented": lambda text, _: "\n".join(f"    {line}" for line in text.expandtabs().split("\n")),
    "coloured": _colours,
    "inside a report": lambda text, _: f"$ nvidia-smi topo -m\n\n{text}\nVersions: torch 2.4\nGPU 0: NVIDIA A100\n",
    "no legend": lambda text, _: text.split("\nLegend:")[0] + "\n" + text.partition("NIC Legend:")[2],
}
