"""A picture of a topology: the machine by NUMA domains, its links as arcs and as a matrix, the network as a tree.

Matplotlib is imported only to draw.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from kernel_cache import regular

from ..errors import EnvironmentProblem, InputError
from . import cpusets
from .drawing_network import draw_network
from .model import Gpu, Link, Node, Topology

FORMATS = (".png", ".svg", ".pdf")
# Colours for colour-blind readers too (Okabe and Ito), from fast to slow links.
OF = {"NV": "#009E73", "PIX": "#56B4E9", "PXB": "#0072B2", "PHB": "#F0E442", "NODE": "#E69F00", "SYS": "#D55E00"}
PALE, INK, GREY = "#f4f4f4", "#222222", "#888888"
LABELLED = 20  # the most rows of a matrix whose cells have text


def pyplot() -> Any:
    """Matplotlib's pyplot, set to draw only to files. Raises EnvironmentProblem if Matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise EnvironmentProblem("Matplotlib is not installed: pip install 'aristos[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(topology: Topology, path: Path) -> None:
    """Write the picture to `path`, a .png, .svg or .pdf.

    Raises InputError for another ending, EnvironmentProblem without Matplotlib, and OSError.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture's name must end in {', '.join(FORMATS)}, got {str(path)!r}")
    regular.refuse_others(path)
    plt = pyplot()
    node = topology.nodes[topology.here] if topology.here is not None and topology.nodes else None
    panels = ["machine"] if node else []
    panels += ["matrix"] if node and len(node.devices) + len(node.nics) > 1 and node.links else []
    panels += ["network"] if topology.network.parents else []
    widths = {"machine": 9.0, "matrix": 6.5, "network": 9.0}
    with plt.rc_context(
        {"text.parse_math": False, "font.size": 9, "savefig.dpi": 150, "figure.constrained_layout.use": True}
    ):
        figure = plt.figure(figsize=(sum(widths[p] for p in panels) or 4, 5.6 if panels != ["machine"] else 3.6))
        axes = figure.subplots(1, len(panels) or 1, squeeze=False, width_ratios=[widths[p] for p in panels] or [1])[0]
        for axis, panel in zip(axes, panels):
            if panel == "machine" and node:
                _machine(axis, node)
            elif panel == "matrix" and node:
                _matrix(axis, node)
            else:
                draw_network(axis, topology)
        if not panels:
            axes[0].axis("off")
            axes[0].text(0.5, 0.5, "this machine's links are unknown", ha="center", va="center")
        if topology.faults:
            listed = "\n".join(f"fault: {fault.text}" for fault in topology.faults[:4])
            more = f"\nmore faults: {len(topology.faults) - 4}" if len(topology.faults) > 4 else ""
            figure.supxlabel(listed + more, fontsize=8, color=OF["SYS"], x=0.01, ha="left")
        figure.savefig(path)
        plt.close(figure)


def _groups(node: Node) -> list[tuple[str, list[Gpu], list[str]]]:
    """(title, GPUs, labels of NICs) of each NUMA domain, and of devices whose domain is unknown."""
    keys: dict[str, tuple[list[Gpu], list[str]]] = {}
    for device in sorted(node.devices, key=lambda d: (d.numa is None, d.numa or 0, d.index)):
        keys.setdefault(_title(node, device), ([], []))[0].append(device)
    for nic in node.nics:
        closest = min(node.devices, key=lambda d: _rank(node.link(d.label, nic.label)), default=None)
        link = node.link(closest.label, nic.label) if closest else None
        home = _title(node, closest) if closest and link and link.kind != "SYS" else "elsewhere"
        keys.setdefault(home, ([], []))[1].append(nic.label)
    for domain in node.numa if not node.devices else ():
        keys.setdefault(f"NUMA {domain.index}: CPUs {cpusets.show(domain.cpus) or 'none'}", ([], []))
    return [(title, *both) for title, both in keys.items()]


def _title(node: Node, device: Gpu) -> str:
    numa = device.printed.numa if device.numa is None and device.printed else device.numa
    cpus = cpusets.show(device.cpus) if device.cpus else None
    if numa is None and cpus is None:
        return "NUMA unknown"
    return f"NUMA {numa if numa is not None else '?'}" + (f": CPUs {cpus}" if cpus else "")


def _rank(link: Link | None) -> tuple[int, int]:
    return link.rank if link else (99, 0)


def _machine(axis: Any, node: Node) -> None:
    """Draw GPUs in a row, NICs below, a frame for each NUMA domain, NVLinks as arcs, and PCI bridges as lines."""
    from matplotlib.patches import FancyBboxPatch

    place: dict[str, tuple[float, float]] = {}
    most = max((link.count for link in node.links.values()), default=1)
    x = 0.0
    for title, devices, adapters in _groups(node):
        width = max(len(devices), len(adapters), 1) * 1.2 + (0.0 if devices or adapters else 2.4)
        axis.add_patch(FancyBboxPatch((x, -1.75), width, 2.5, boxstyle="round,pad=0.08", fc=PALE, ec=GREY, lw=0.8))
        narrow = title if len(title) <= 9 * width else title.replace(": ", "\n", 1)
        axis.text(x + width / 2, -1.86, narrow, ha="center", va="top", fontsize=7.5, color=INK)
        for row, labels in ((0.2, [d.label for d in devices]), (-1.3, adapters)):
            step = width / max(len(labels), 1)
            place |= {label: (x + step * (at + 0.5), row) for at, label in enumerate(labels)}
        if not devices and not adapters:
            _cores(axis, node, title, x, width)
        x += width + 0.5
    _lines(axis, node, place, most)
    names = {nic.label: nic.name for nic in node.nics}
    for label, (at, row) in place.items():
        gpu = label.startswith("GPU")
        text = label if gpu or names.get(label) == label else f"{label}\n{names[label]}"
        colours = {"fc": "#d7ead9", "ec": OF["NV"]} if gpu else {"fc": "white", "ec": GREY}
        axis.text(
            at,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8 if gpu else 6.5,
            color=INK,
            bbox={"boxstyle": "round,pad=0.35", **colours},
            zorder=3,
        )
    kinds = sorted(set(node.links.values()), key=lambda link: link.rank)
    drawn = [link for link in kinds if link.kind in ("NV", "PIX", "PXB")]
    for link in drawn:
        axis.plot([], [], color=OF[link.kind], lw=_width(link, most), label=str(link))
    if drawn:
        axis.legend(loc="upper right", frameon=False, fontsize=8, ncols=len(drawn))
    product = {d.name for d in node.devices if d.name}
    what = f"{len(node.devices)} x {product.pop()}" if len(product) == 1 else f"{len(node.devices)} GPUs"
    axis.set_title(f"{node.name + ': ' if node.name else ''}{what if node.devices else f'{len(node.cores)} cores'}")
    axis.set_xlim(-0.3, max(x - 0.2, 1))
    axis.set_ylim(-2.5, 2.3 if node.devices else 0.9)
    axis.axis("off")


def _cores(axis: Any, node: Node, title: str, x: float, width: float) -> None:
    """Draw a box for each core with its CPUs, filled if this process may run on the core."""
    from matplotlib.patches import Rectangle

    index = int(title.split(":")[0].removeprefix("NUMA "))
    domain = next(n for n in node.numa if n.index == index)
    cores = [core for core in node.cores if core & domain.cpus]
    across = max(1, math.ceil((len(cores) * width / 2.2) ** 0.5))
    down = math.ceil(len(cores) / across)
    wide, high = (width - 0.2) / across, 2.3 / max(down, 1)
    for at, core in enumerate(cores):
        left, top = x + 0.1 + at % across * wide, 0.65 - at // across * high
        colour = OF["PIX"] if core & node.allowed else "white"
        axis.add_patch(Rectangle((left, top - 0.9 * high), 0.9 * wide, 0.9 * high, fc=colour, ec=GREY, lw=0.6))
        if len(cores) <= LABELLED:
            text = cpusets.show(core)
            axis.text(left + 0.45 * wide, top - 0.45 * high, text, ha="center", va="center", fontsize=7, color=INK)


def _lines(axis: Any, node: Node, place: dict[str, tuple[float, float]], most: int) -> None:
    """Draw NVLinks and PCI bridges of GPUs. Only the matrix shows slower classes."""
    from matplotlib.patches import FancyArrowPatch

    for (a, (x, y)), (b, (to_x, to_y)) in itertools.combinations(place.items(), 2):
        link, gpus = node.link(a, b), a.startswith("GPU") + b.startswith("GPU")
        if link is None or link.kind not in ("NV", "PIX", "PXB") or not gpus:
            continue
        raised = 0.18 * (gpus == 2)
        bend = min(0.55, 0.9 / max(abs(x - to_x), 1) ** 0.55) if gpus == 2 else 0
        axis.add_patch(
            FancyArrowPatch(
                (x, y + raised),
                (to_x, to_y + raised),
                connectionstyle=f"arc3,rad={-bend if x < to_x else bend:.2f}",
                arrowstyle="-",
                color=OF[link.kind],
                lw=_width(link, most),
                alpha=0.75,
                zorder=2,
            )
        )


def _width(link: Link, most: int) -> float:
    return 0.5 + 2 * link.count / max(most, 1) if link.kind == "NV" else {"PIX": 1.4, "PXB": 0.7}[link.kind]


def _matrix(axis: Any, node: Node) -> None:
    """Draw the classes as colours, with text in the cells of small matrices."""
    from matplotlib.colors import to_rgb

    labels = [d.label for d in node.devices] + [nic.label for nic in node.nics]
    cells = [[node.link(a, b) for b in labels] for a in labels]
    most = max((link.count for row in cells for link in row if link), default=1) or 1

    def colour(link: Link | None) -> tuple[float, ...]:
        if link is None or link.kind == "self":
            return to_rgb("white")
        full = to_rgb(OF[link.kind])
        strength = 0.35 + 0.65 * link.count / most if link.kind == "NV" else 1.0
        return tuple(1 - (1 - part) * strength for part in full)

    axis.imshow([[colour(link) for link in row] for row in cells], aspect="equal")
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for side in axis.spines.values():
        side.set_visible(False)
    if len(labels) <= LABELLED:
        for row, links in enumerate(cells):
            for column, link in enumerate(links):
                text = "" if link is None or link.kind == "self" else str(link)
                axis.text(column, row, text, ha="center", va="center", fontsize=min(7, 90 / len(labels)), color=INK)
    kinds = {link.kind: link for row in cells for link in row if link and link.kind != "self"}
    for kind in (kind for kind in OF if kind in kinds):
        axis.plot([], [], "s", color=OF[kind], label="NV# (darker: more)" if kind == "NV" else kind)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=6, frameon=False, fontsize=8, handletextpad=0.2)
