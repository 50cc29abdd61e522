"""Default figures for machines that cannot be measured: links by class and GPU, rates and memory by the GPU's name.

Each figure names its source. A link's beta is for one direction of one pair while nothing else is sent. Its alpha is
the time from the start of a put until its first byte lands. The figures are starting points for a plan, not claims
about your machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .model import Link


@dataclass(frozen=True)
class LinkFigure:
    """A link's figures. alpha: microseconds. bandwidth: GB/s in one direction.

    source: where the measurement is from.
    """

    alpha: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class DeviceFigure:
    """A device's figures. bf16: TFLOP/s of a matrix product, measured or from the data sheet. memory: GB."""

    bf16: float
    memory: float
    source: str


MAMF = "stas00/ml-engineering, compute/accelerator/README.md, measured MAMF"
SHEET = "the maker's data sheet, by stas00/ml-engineering; not reached in practice"
NETWORK = "stas00/ml-engineering, network/README.md"

# The first match counts: GH200 contains H200, so longer names come first.
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

# (GPU, figure of all NVLinks of a pair together). A100_LINK and ANY_LINK are figures of a single link.
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
ANY_LINK = LinkFigure(3.0, 20.0, "a link of NVLink 2 or 3, less what its protocol takes; no figure of this GPU found")

# Links through PCIe switches and through the host. The GPUs named here have PCIe 5, all other GPUs PCIe 4.
PCIE5 = r"H[128]00|H20|B[23]00|50[89]0"
SWITCH5 = LinkFigure(4.1, 54.3, "PCIe 5 x16 P2P, github lukealonso/p2pmark")
HOST5 = LinkFigure(12.8, 38.2, "PCIe 5 x16 through the host: p2pBandwidthLatencyTest of 5090 pairs")
SWITCH4 = LinkFigure(
    4.1, 27.0, "PCIe 4 x16, at the share of the line rate that p2pmark reached on PCIe 5; no measurement found"
)
HOST4 = LinkFigure(12.5, 20.9, "PCIe 4 x16 through the host: p2pBandwidthLatencyTest of 4090 pairs")
CPU = LinkFigure(0.1, 3.8, "two cores of an AMD EPYC (Zen 4): `aristos topo --measure` on 2 ranks of a busy machine")

# Links between nodes that have one NIC for each GPU: (GPU, figure). For GPUs not named here the figure is EDR.
NDR = LinkFigure(2.7, 46, "400 Gb/s: NVIDIA/nccl-tests issue 290; alpha of NCCL's model, src/graph/tuning.cc")
HDR = LinkFigure(2.7, 23, "200 Gb/s, at the share of the line rate that NDR reaches; no measurement found")
EDR = LinkFigure(2.6, 9.5, "100 Gb/s: profiles of NDv2 and DGX-2, microsoft/taccl and microsoft/TE-CCL")
NET: tuple[tuple[str, LinkFigure], ...] = ((r"H[128]00|H20|B[23]00", NDR), (r"A[18]00", HDR))
SWITCH = 0.5  # microseconds for each further switch: a vendor's figure for an EDR port, by stas00/ml-engineering


def link(kind: Link, gpu: str = "") -> LinkFigure:
    """The figure of a link. gpu: the name of the device at both ends, '' for cores."""
    if kind.kind == "NET":
        base = next((figure for pattern, figure in NET if re.search(pattern, gpu)), EDR)
        return LinkFigure(base.alpha + SWITCH * max(0, kind.count - 1), base.bandwidth, base.source)
    if not gpu:
        return CPU
    if kind.kind == "NV":
        for pattern, figure in NVLINK:
            if re.search(pattern, gpu):
                return figure
        each = A100_LINK if re.search("A100|A800", gpu) else ANY_LINK
        return LinkFigure(each.alpha, each.bandwidth * (kind.count or 1), each.source)
    switches, host = (SWITCH5, HOST5) if re.search(PCIE5, gpu) else (SWITCH4, HOST4)
    return switches if kind.kind in ("self", "PIX", "PXB") else host


def device(gpu: str) -> DeviceFigure | None:
    """A GPU's figure by its name, or None if there is none."""
    return next((figure for pattern, figure in DEVICES if re.search(pattern, gpu)), None)
