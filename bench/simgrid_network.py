"""Compares the simulator's network with SimGrid 4: when patterns of flows end, in the table of docs/simulate.md.

python bench/simgrid_network.py --hosts 16,64                             needs g++ and Debian's libsimgrid-dev
python bench/simgrid_network.py --hosts 256 --networks torus --patterns incast,pairwise,random

Each pattern of flows runs on our compiled network without ranks, and twice on SimGrid: `topology` is SimGrid's own
zone, with its own links and routing; `routes` is our links and routes, given to SimGrid one by one. A cell of the
table: us of our network with flows of 64 KiB, and the largest difference from SimGrid with flows of any size.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aristos.simulate import control as c
from aristos.simulate import events, flows, network
from aristos.simulate.control import CONTROL
from aristos.simulate.routes import Routes
from aristos.simulate.topologies import Dragonfly, FatTree, Torus

SOURCE = Path(__file__).with_name("simgrid_ends.cpp")
HEADER = Path("/usr/include/simgrid/s4u.hpp")
RATE = 10.0  # GB/s of a link
SPEEDS = {"latency": 1.0, "hop": 0.1}  # us
KIB = (4, 64, 1024)  # sizes of a flow
SHOWN_KIB = 64
ZONE = """<?xml version='1.0'?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1"><zone id="world" routing="Full">
{}
</zone></platform>
"""
Flows = list[tuple[int, int, int]]  # source, target, bytes
Shape = FatTree | Dragonfly | Torus


def shapes(hosts: int) -> dict[str, Shape]:
    """Networks with so many hosts, whose links have one rate. The fat trees have fewer links up than down."""
    trees = {16: ((4, 4), (1, 2)), 64: ((4, 4, 4), (1, 2, 2)), 256: ((16, 16), (1, 8))}
    flies = {16: (2, 4, 2), 64: (4, 4, 4), 256: (8, 8, 4)}
    tori = {16: (4, 4), 64: (4, 4, 4), 256: (8, 8, 4)}
    return {
        "fat tree": FatTree(*trees[hosts], (RATE,), **SPEEDS),
        "dragonfly": Dragonfly(*flies[hosts], (RATE,), **SPEEDS),
        "torus": Torus(tori[hosts], (RATE,), **SPEEDS),
    }


def patterns(hosts: int, nbytes: int) -> dict[str, Flows]:
    """All-to-all, incast, an exchange of each host with the one opposite, and flows of drawn hosts and sizes."""
    rng = random.Random(hosts)
    pairs = [(a, b) for a in range(hosts) for b in range(hosts) if a != b]
    return {
        "all-to-all": [(a, b, nbytes) for a, b in pairs],
        "incast": [(a, 0, nbytes) for a in range(1, hosts)],
        "pairwise": [(a, hosts - 1 - a, nbytes) for a in range(hosts)],
        "random": [(*rng.choice(pairs), rng.randint(nbytes // 4, 2 * nbytes)) for _ in range(4 * hosts)],
    }


def our_end(routes: Routes, pattern: Flows) -> float:
    """Seconds after which the last flow of a pattern has landed in our network."""
    CONTROL[:] = 0
    most = len(pattern) + 1
    arrays, numbers = flows.words(routes, np.arange(routes.nodes**2), most)
    heap = np.zeros((2 * most, c.EVENT_WORDS), np.int64)
    for word, array in {**arrays, c.HEAP: heap}.items():
        CONTROL[word] = array.ctypes.data
    for word, value in {**numbers, c.EVENTS_MOST: len(heap)}.items():
        CONTROL[word] = value
    for source, target, nbytes in pattern:
        network.send(source * routes.nodes + target, nbytes)
    landed, last = 0, 0
    while landed < len(pattern):
        due = network.due()
        if CONTROL[c.EVENTS] == 0 or due < heap[0, events.TIME]:
            network.end_flows(due)
            continue
        last, kind, pair, nbytes, *_ = events.pop()
        if kind == c.BEGIN_FLOW:
            network.begin(pair, nbytes, last)
        else:
            landed += 1
    return last * 1e-9


def topology(shape: Shape, hop: float = 0.0) -> str:
    """SimGrid's own zone of a shape. hop: us of a link."""
    if isinstance(shape, FatTree):
        levels = [",".join(map(str, each)) for each in (shape.down, shape.up, shape.cables or (1,) * len(shape.down))]
        kind, text = "FAT_TREE", ";".join([str(len(shape.down)), *levels])
    elif isinstance(shape, Dragonfly):
        kind, text = "DRAGONFLY", f"{shape.groups},{shape.between};1,1;{shape.switches},1;{shape.nodes_each}"
    else:
        kind, text = "TORUS", ",".join(map(str, shape.size))
    return ZONE.format(
        f'<cluster id="net" prefix="n" suffix="" radical="0-{shape.nodes - 1}" speed="1Gf" bw="{RATE * 1e9:.0f}Bps"'
        f' lat="{hop}us" topology="{kind}" topo_parameters="{text}" sharing_policy="SPLITDUPLEX"/>'
    )


def explicit(routes: Routes) -> str:
    """Our links and routes as a platform of SimGrid."""
    lines = [f'<host id="n{n}" speed="1Gf"/>' for n in range(routes.nodes)]
    lines += [
        f'<link id="l{n}" bandwidth="{rate * 1e9:.0f}Bps" latency="0us"/>' for n, rate in enumerate(routes.capacity)
    ]
    for which, route in enumerate(routes.routes.tolist()):
        source, target = divmod(which, routes.nodes)
        if source != target:
            links = "".join(f'<link_ctn id="l{link}"/>' for link in route if link >= 0)
            lines.append(f'<route src="n{source}" dst="n{target}" symmetrical="NO">{links}</route>')
    return ZONE.format("\n".join(lines))


class SimGrid:
    """The compiled program that asks SimGrid. folder: where it and its inputs are written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "simgrid_ends"
        command = ["g++", "-O1", "-std=c++17", str(SOURCE), "-lsimgrid", "-o", str(self.program)]
        subprocess.run(command, check=True, timeout=300)

    @staticmethod
    def missing() -> str:
        """What is missing here for SimGrid, or ""."""
        if shutil.which("g++") is None:
            return "g++ is not installed"
        return "" if HEADER.exists() else f"SimGrid 4 is not installed (Debian's libsimgrid-dev): no {HEADER}"

    def ends(self, platform: str, given: list[Flows], latency: np.ndarray | None = None) -> list[float]:
        """Seconds that each pattern takes. latency: [sources, targets] seconds before a flow shares links."""
        file = self.folder / "platform.xml"
        file.write_text(platform)
        lines = []
        for pattern in given:
            lines += [f"{a} {b} {size} {0 if latency is None else latency[a, b]:.9f}" for a, b, size in pattern]
            lines.append("end")
        command = [str(self.program), str(file), "--log=root.thres:error"]
        ran = subprocess.run(
            command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True, timeout=3600
        )
        return [float(line) for line in ran.stdout.split()]


@dataclass(frozen=True)
class Row:
    """A pattern on a network. ours, topology, routes: seconds until it has ended; see the top of this file."""

    network: str
    hosts: int
    pattern: str
    kib: int
    ours: float
    topology: float
    routes: float

    @property
    def worst(self) -> float:
        """The larger difference from SimGrid, as a share of SimGrid's time."""
        return max(abs(self.ours - other) / other for other in (self.topology, self.routes))


def compare(simgrid: SimGrid, name: str, shape: Shape, wanted: Sequence[str]) -> Iterator[Row]:
    """Patterns with these names on a network, with flows of each size."""
    hosts, routes = shape.nodes, shape.routes(shape.nodes)
    latency = routes.latency.reshape(hosts, hosts) * 1e-9
    named = [(pattern, kib, patterns(hosts, kib << 10)[pattern]) for kib in KIB for pattern in wanted]
    given = [each for _, _, each in named]
    theirs = [simgrid.ends(platform, given, latency) for platform in (topology(shape), explicit(routes))]
    for (pattern, kib, each), *both in zip(named, *theirs):
        yield Row(name, hosts, pattern, kib, our_end(routes, each), *both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", default="16,64", help="numbers of hosts out of 16, 64 and 256 (%(default)s)")
    parser.add_argument("--networks", default="fat tree,dragonfly,torus", help="networks to compare (%(default)s)")
    parser.add_argument("--patterns", default=",".join(patterns(2, 1 << 10)), help="patterns of traffic (%(default)s)")
    asked = parser.parse_args()
    names, wanted = asked.patterns.split(","), asked.networks.split(",")
    if missing := SimGrid.missing():
        parser.exit(1, f"bench/simgrid_network.py: {missing}\n")
    print(f"| network | hosts | {' | '.join(names)} |")
    print("| --- |" + " --- |" * (1 + len(names)))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        simgrid = SimGrid(Path(folder))
        for hosts in map(int, asked.hosts.split(",")):
            for network_name, shape in ((name, shapes(hosts)[name]) for name in wanted):
                rows = list(compare(simgrid, network_name, shape, names))
                cells = []
                for name in names:
                    mine = [row for row in rows if row.pattern == name]
                    shown = next(row for row in mine if row.kib == SHOWN_KIB)
                    cells.append(f"{1e6 * shown.ours:,.1f} ({max(row.worst for row in mine):.3%})")
                print(f"| {network_name} | {hosts} | {' | '.join(cells)} |", flush=True)
                worst = max(worst, *(row.worst for row in rows))
    print(f"\nworst: {worst:.3%}")


if __name__ == "__main__":
    main()
