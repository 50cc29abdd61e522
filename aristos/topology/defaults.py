"""Figures for what cannot be measured: links by their class and GPU, rates and memory by the GPU's name.

Each has its source. A link's beta is of one direction of one pair while nothing else is sent; alpha is what a put
costs before its first byte lands. They are starting points for a plan, not claims about a machine at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .model import Link


@dataclass(frozen=True)
class LinkFigure:
    """alpha: microseconds. bandwidth: GB/s, one direction. source: who measured it."""

    alpha: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class DeviceFigure:
    """bf16: TFLOP/s that a matrix product reached, or of the data sheet; memory: GB."""

    bf16: float
    memory: float
    source: str


MAMF = "stas00/ml-engineering, compute/accelerator/README.md, measured MAMF"
SHEET = "the maker's data sheet, by stas00/ml-engineering; not reached in practice"
NETWORK = "stas00/ml-engineering, network/README.md"

# The longer name first: H200 is a part of GH200, and A100 of many.
DEVICES: tuple[tuple[str, DeviceFigure], ...] = (
    (r"GB200", DeviceFigure(1822, 186, MAMF)),
    (r"GH200", DeviceFigure(829, 96, MAMF)),
    (r"B300", DeviceFigure(1769, 288, MAMF)),
    (r"B200", DeviceFigure(1745, 180, MAMF)),
    (r"H200", DeviceFigure(795, 141, MAMF)),
    (r"H100", DeviceFigure(795, 80, MAMF)),
    (r"A100.*PCI", DeviceFigure(253, 80, MAMF)),
    (r"A100|A800", DeviceFigure(271, 80, MAMF)),
    (r"L40S", DeviceFigure(362, 48, SHEET)),
)

# Of all NVLinks that a pair has, or of one where the count is known to matter: (GPU, figure).
NVLINK: tuple[tuple[str, LinkFigure], ...] = (
    (r"GB200|B200|B300", LinkFigure(2.8, 682, f"{NETWORK}, ring of 8; alpha as H100")),
    (r"GH200|H200", LinkFigure(2.8, 396, f"{NETWORK}, nvbandwidth; alpha as H100")),
    (r"H100 NVL", LinkFigure(2.25, 258, "p2pBandwidthLatencyTest of a bridged pair")),
    (r"H100", LinkFigure(2.8, 371, "NVIDIA/nccl issue 1264; latency of an 8-GPU p2p test")),
    (r"H800", LinkFigure(2.8, 153, "DeepEP README, intranode; alpha as H100")),
    (r"V100", LinkFigure(1.4, 47.9, "Dell C4130 white paper, NV2 pair; alpha of a P100 pair there")),
    (r"P100", LinkFigure(1.4, 36.4, "Dell C4130 white paper, two links")),
)
A100_LINK = LinkFigure(3.4, 23.75, "osu_bw D D, EESSI/software-layer PR 716: 95 GB/s over NV4, by link")
ANY_LINK = LinkFigure(3.0, 20.0, "a link of NVLink 2 or 3 after its protocol; no figure of this GPU found")

PCIE = LinkFigure(4.1, 22.0, "4090 pairs, PCIe 4 x16: 20.9 to 22.4 GB/s; alpha of p2pmark on PCIe 5")
HOST = LinkFigure(12.5, 20.9, "4090 pairs by way of the host, PCIe 4 x16 without P2P")
CPU = LinkFigure(0.5, 10.0, "two cores of one machine, `python -m aristos.bench put`, docs/performance.md's machine")
NET = LinkFigure(5.0, 23.0, "a 200 Gb/s NIC (25 GB/s) at the share that NDR reaches (46 of 50 GB/s, nccl-tests 290)")


def link(kind: Link, gpu: str = "") -> LinkFigure:
    """A pair's figure. gpu: the name of the device at either end, '' for cores."""
    if kind.kind == "NET":
        hops = max(0, kind.count - 1)  # a switch's port takes about half a microsecond
        return LinkFigure(NET.alpha + 0.5 * hops, NET.bandwidth, NET.source)
    if not gpu:
        return CPU
    if kind.kind == "NV":
        for pattern, figure in NVLINK:
            if re.search(pattern, gpu):
                return figure
        each = A100_LINK if re.search("A100|A800", gpu) else ANY_LINK
        return LinkFigure(each.alpha, each.bandwidth * (kind.count or 1), each.source)
    return PCIE if kind.kind in ("self", "PIX", "PXB") else HOST


def device(gpu: str) -> DeviceFigure | None:
    """A GPU's figure by its name; None where there is none."""
    return next((figure for pattern, figure in DEVICES if re.search(pattern, gpu)), None)
