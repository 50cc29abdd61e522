"""Machines by name, and machines from a file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..topology import texts
from . import networks
from .machine import Costs, Kernel, Links, Machine, Network
from .topologies import Dragonfly, FatTree
from .values import check_number, is_number


@dataclass(frozen=True)
class Preset:
    """A machine by name: its network, and where the numbers are published.

    The rates of kernels and copies are measured on a core of this machine.
    """

    network: Network
    source: str


PRESETS = {
    "perlmutter-cpu": Preset(
        Dragonfly(groups=12, switches=16, nodes_each=16, between=8, rate=(25.0, 50.0, 25.0), latency=1.3, hop=0.35),
        "NERSC: a dragonfly group a cabinet, of 16 switches and 256 nodes with a NIC of 200 Gb/s. HPE's Slingshot: 0.35"
        " us a switch, 2 us between nodes. Assumed: 50 GB/s between switches, 8 links of 25 GB/s between groups",
    ),
    "infiniband-hdr": Preset(
        FatTree(down=(20, 40), up=(1, 20), rate=(25.0,), latency=0.95, hop=0.13),
        "NVIDIA: HDR switches with 40 ports of 200 Gb/s, half of a leaf's ports go up, 800 nodes. Assumed: 0.13 us a"
        " link and 0.95 us for both NICs, 1.2 us on one leaf",
    ),
    "tcp-cloud": Preset(Links(latency=30.0, rate=3.1), "25 Gb/s of a cloud's instance, 30 us between two over TCP"),
}


def load(path: Path) -> Machine:
    """A machine from a file. Raises InputError, OSError.

    A file whose name ends in .json has measured links or a planner's cluster, and costs and kernel are the defaults.
    Any other file is YAML.
    """
    if path.suffix == ".json":
        return Machine(links=networks.from_file(path))
    return from_text(texts.read(path), str(path), path.parent)


def from_text(text: str, name: str, folder: Path = Path()) -> Machine:
    """A machine from YAML: mappings `links` or `network`, `costs` and `kernel`.

    name: the text's name, for errors. folder: the folder of the files that the text names. A value that the text leaves
    out is the default of machine.py.
    Raises InputError for unknown or impossible values, and OSError for a named file that cannot be read.
    """
    found = _parsed(text, name)
    kinds = {"links": Links, "costs": Costs, "kernel": Kernel}
    if not isinstance(found, dict):
        raise InputError(f"{name} must be a mapping with {_PARTS}, got {type(found).__name__}")
    if unknown := sorted(map(str, found.keys() - {*kinds, "network"})):
        raise InputError(f"{name} may have only {_PARTS}, got {', '.join(unknown)}")
    if {"links", "network"} <= found.keys():
        raise InputError(f"{name} may have links or network, got both")
    parts: dict[str, Any] = {}
    for part, kind in kinds.items():
        if part in found:
            parts[part] = _checked(found[part], kind, f"{part} of {name}")
    if "network" in found:
        try:
            parts["links"] = networks.from_mapping(found["network"], folder)
        except InputError as why:
            raise InputError(f"network of {name}: {why}") from why
    return replace(Machine(), **parts)


_PARTS = "links or network, costs and kernel"


def _parsed(text: str, name: str) -> Any:
    """What a text in YAML holds. Raises InputError, also for aliases, with which a short text can be endless."""
    try:
        import yaml
    except ImportError:
        raise InputError(f"{name} needs PyYAML: pip install 'aristos[topo]'") from None
    try:
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        found = None if aliases else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as why:
        raise InputError(f"{name} must be YAML: {' '.join(str(why).split())}") from why
    if aliases:
        raise InputError(f"{name} must have no aliases: write the text out")
    return found


def _checked(given: Any, kind: type, what: str) -> Any:
    """An object of `kind` from a mapping. Raises InputError."""
    if not isinstance(given, dict):
        raise InputError(f"{what} must be a mapping, got {given!r}")
    known = [each.name for each in fields(kind)]
    if unknown := sorted(map(str, given.keys() - set(known))):
        raise InputError(f"{what} may have only {', '.join(known)}, got {', '.join(unknown)}")
    for field, value in given.items():
        if field == "rates":
            _check_rates(value, what)
        else:
            check_number(f"{field} in {what}", value, positive=field == "rate")
    return kind(**given)


def _check_rates(rates: Any, what: str) -> None:
    """Raise InputError unless rates are positive GFLOP/s by positive numbers of rows."""
    good = isinstance(rates, dict) and rates and all(type(n) is int and n > 0 for n in rates)
    if not good or not all(is_number(rate) and rate > 0 for rate in rates.values()):
        raise InputError(f"rates in {what} must be positive GFLOP/s by rows, such as {{1: 8, 384: 400}}, got {rates!r}")
