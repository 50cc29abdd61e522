"""Machines by name, and machines from a file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError
from .machine import Costs, Kernel, Links, Machine


@dataclass(frozen=True)
class Preset:
    """A machine by name: its network, and where the numbers are published.

    The rates of kernels and copies are measured on a core of this machine.
    """

    links: Links
    source: str


PRESETS = {
    "perlmutter-cpu": Preset(
        Links(latency=2.0, rate=25.0),
        "NERSC: a CPU node has one Slingshot 11 NIC of 200 Gb/s; latency: HPE's figure of about 2 us between nodes",
    ),
    "infiniband-hdr": Preset(
        Links(latency=1.2, rate=25.0), "NVIDIA: ConnectX-6, HDR, 200 Gb/s a port; latency: about 1.2 us for a put"
    ),
    "tcp-cloud": Preset(Links(latency=30.0, rate=3.1), "25 Gb/s of a cloud's instance, 30 us between two over TCP"),
}


def from_text(text: str, name: str) -> Machine:
    """A machine from YAML: mappings `links`, `costs` and `kernel`, with the fields of machine.py. name: for errors.

    What the text leaves out has the default of machine.py. Raises InputError for unknown or impossible values.
    """
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as why:
        raise InputError(f"{name} must be YAML: {' '.join(str(why).split())}") from why
    if not isinstance(found, dict):
        raise InputError(f"{name} must be a mapping with links, costs or kernel, got {type(found).__name__}")
    kinds = {"links": Links, "costs": Costs, "kernel": Kernel}
    if unknown := sorted(map(str, found.keys() - kinds.keys())):
        raise InputError(f"{name} may have {', '.join(kinds)}, got {', '.join(unknown)}")
    parts: dict[str, Any] = {}
    for part, kind in kinds.items():
        if part in found:
            parts[part] = _checked(found[part], kind, f"{part} of {name}")
    return replace(Machine(), **parts)


def _checked(given: Any, kind: type, what: str) -> Any:
    """An object of `kind` from a mapping. Raises InputError."""
    if not isinstance(given, dict):
        raise InputError(f"{what} must be a mapping, got {given!r}")
    known = [each.name for each in fields(kind)]
    if unknown := sorted(map(str, given.keys() - set(known))):
        raise InputError(f"{what} may have {', '.join(known)}, got {', '.join(unknown)}")
    for field, value in given.items():
        if field == "rates":
            _check_rates(value, what)
        elif not _number(value) or value < 0 or (field == "rate" and value == 0):
            least = "positive" if field == "rate" else "not negative"
            raise InputError(f"{field} in {what} must be a {least} number, got {value!r}")
    return kind(**given)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e15


def _check_rates(rates: Any, what: str) -> None:
    """Raise InputError unless rates are positive GFLOP/s by positive numbers of rows."""
    good = isinstance(rates, dict) and rates and all(type(n) is int and n > 0 for n in rates)
    if not good or not all(_number(rate) and rate > 0 for rate in rates.values()):
        raise InputError(f"rates in {what} must be positive GFLOP/s by rows, such as {{1: 8, 384: 400}}, got {rates!r}")
