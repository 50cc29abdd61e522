"""PCI devices in sysfs: NVIDIA's GPUs, network adapters, the CPUs close to them, and the class of two devices."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from kernel_cache.texts import whole

from .model import NODE, SYS, Link, Nic
from .sysfs import cpus_in, natural, read

NVIDIA = "0x10de"
DISPLAY = "0x03"  # the beginning of the PCI class of VGA and 3D controllers
HOST = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def folder(root: Path, address: str) -> Path:
    return root / "sys/bus/pci/devices" / address


def gpus(root: Path) -> tuple[str, ...]:
    """Addresses of NVIDIA's GPUs in PCI order, including those that a cgroup hides."""
    found = []
    for at in (root / "sys/bus/pci/devices").glob("*"):
        if read(at / "vendor") == NVIDIA and read(at / "class").startswith(DISPLAY):
            found.append(at.name)
    return tuple(sorted(found))


def affinity(root: Path, address: str) -> tuple[frozenset[int] | None, int | None]:
    """(CPUs close to a device, its NUMA domain), each None if unknown."""
    at = folder(root, address)
    cpus, numa = cpus_in(at / "local_cpulist"), read(at / "numa_node")
    return cpus or None, whole(numa)


def nics(root: Path) -> tuple[Nic, ...]:
    """Adapters with RDMA (InfiniBand, RoCE and Slingshot), numbered in the order of their names as nvidia-smi does."""
    found = []
    for kind in ("infiniband", "cxi"):
        for at in (root / "sys/class" / kind).glob("*"):
            address = os.path.basename(os.path.realpath(at / "device"))
            pci = address if ADDRESS.fullmatch(address) else None
            found.append((at.name, pci, affinity(root, pci)[1] if pci else None))
    found.sort(key=lambda each: natural(each[0]))
    return tuple(Nic(f"NIC{at}", *each) for at, each in enumerate(found))


def path(root: Path, address: str) -> tuple[str, ...]:
    """The bridges above a device, from the host bridge down to the device; empty if sysfs lacks the device."""
    real = os.path.realpath(folder(root, address)).split("/")
    start = next((at for at, part in enumerate(real) if HOST.fullmatch(part)), None)
    inside = () if start is None else tuple(part for part in real[start:] if ADDRESS.fullmatch(part))
    return (real[start], *inside) if start is not None and inside else ()


def link(root: Path, a: str, b: str) -> Link | None:
    """The class of two devices by the bridges between them; None if sysfs lacks one of the devices.

    A switch is an upstream bridge with one downstream bridge for each device. So two devices of one switch are at most
    two steps below their common bridge. Such a pair has class PIX.
    """
    one, other = path(root, a), path(root, b)
    if not one or not other:
        return None
    if one[0] != other[0]:
        domains = affinity(root, a)[1], affinity(root, b)[1]
        return NODE if domains[0] is not None and domains[0] == domains[1] else SYS
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))
    if shared == 1:
        return Link("PHB")
    return Link("PIX") if max(len(one), len(other)) - shared <= 2 else Link("PXB")
