"""The network panel of a topology's picture: switches or blocks from the top down, and nodes by name at the bottom."""

from __future__ import annotations

from typing import Any

from .hostlist import fold
from .model import Topology
from .sysfs import natural

NAMED = 24  # the most boxes of a level that show names
BLUE, GREY, INK = "#0072B2", "#888888", "#222222"


def draw_network(axis: Any, topology: Topology) -> None:
    """Draw switches above their children, a line for each link, and one box for the nodes of a leaf switch."""
    network = topology.network
    children: dict[str, list[str]] = {}
    for name, above in network.parents.items():
        for parent in above:
            children.setdefault(parent, []).append(name)
    shown = {node.name for node in topology.nodes if node.name in network.nodes}
    hosts = {s: [n for n in below if n in network.nodes and n in shown] for s, below in children.items()}
    inner = {s: [n for n in below if n not in network.nodes] for s, below in children.items()}
    level: dict[str, int] = {}
    for switch in children:
        _level(switch, inner, level)
    leaves = sorted((s for s in children if not inner[s]), key=lambda s: _path(s, network.parents))
    x = {leaf: float(at) for at, leaf in enumerate(leaves)}
    for switch in sorted(children, key=lambda s: level[s]):
        if switch not in x:
            middle = [x[child] for child in inner[switch] if child in x]
            x[switch] = sum(middle) / len(middle) if middle else float(len(x))
    for switch, below in inner.items():
        for child in below:
            ends = level[switch], level.get(child, 0)
            axis.plot([x[switch], x.get(child, x[switch])], ends, color=GREY, lw=0.8, zorder=1)
    count = {at: sum(each == at for each in level.values()) for at in set(level.values())}
    for switch, at in level.items():
        _box(axis, x[switch], at, switch.strip() if count[at] <= NAMED else "", True, len(leaves))
        if hosts[switch] and count[at] <= NAMED:
            text = _wrapped(fold(sorted(hosts[switch], key=natural)), len(leaves))
            axis.plot([x[switch]] * 2, [at, at - 0.45], color=GREY, lw=0.8, zorder=1)
            _box(axis, x[switch], at - 0.5, text, False, len(leaves))
        elif hosts[switch] and count[at] <= 8 * NAMED:
            axis.text(x[switch], at - 0.12, str(len(hosts[switch])), fontsize=4, ha="center", va="top", color=GREY)
    axis.set_title(f"network: {network.kind}, {len(shown)} nodes")
    axis.set_xlim(-0.7, max(x.values(), default=0) + 0.7)
    axis.set_ylim(-1 if count.get(0, 0) <= NAMED else -0.3, max(level.values(), default=0) + 0.4)
    axis.axis("off")


def _level(switch: str, inner: dict[str, list[str]], level: dict[str, int]) -> int:
    if switch not in level:
        level[switch] = 1 + max((_level(child, inner, level) for child in inner.get(switch, ())), default=-1)
    return level[switch]


def _path(switch: str, parents: Any) -> list[list[str | int]]:
    """A sort key: the names from the top down to a switch. By this key, children of one switch are neighbours."""
    path = [switch]
    while parents.get(path[-1]):
        path.append(parents[path[-1]][0])
    return [natural(name) for name in reversed(path)]


def _box(axis: Any, x: float, y: float, text: str, switch: bool, leaves: int) -> None:
    if not text:
        axis.plot([x], [y], "s", color=BLUE, ms=3, zorder=2)
        return
    size = 8 if leaves <= 8 else 5.5
    style = {"boxstyle": "round,pad=0.3", "fc": "#dceaf4" if switch else "white", "ec": BLUE if switch else GREY}
    axis.text(x, y, text, ha="center", va="center" if switch else "top", fontsize=size, color=INK, bbox=style, zorder=3)


def _wrapped(text: str, leaves: int) -> str:
    """The text with line breaks at commas, so that neighbouring boxes do not overlap."""
    width, lines = max(10, 110 // max(leaves, 1)), [""]
    for part in text.split(","):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += f"{',' if lines[-1] else ''}{part}"
    return ",\n".join([*lines[:5], *(["..."] if len(lines) > 5 else [])])
