"""The fields that describe the machine in a published model's problem: rates, links, and how many experts fit.

If the model does not fit into the memory, `check` raises Infeasible with what would fit.

A machine is a file of `aristos topo --measure`, or a cluster file. A cluster file has nested switches as in a problem's
`cluster`, but its devices have `tflops` and `memory_gb` instead of `rate` and `memory`:

    {"alpha_us": 15, "beta_us_per_mib": 47.7, "children": [
       {"count": 4, "alpha_us": 3, "beta_us_per_mib": 4.5, "children": [{"count": 4, "tflops": 312, "memory_gb": 80}]}]}
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..topology.links import SHARE, Links
from ..topology.links import problem as of_links
from .problem import Infeasible
from .tree import MAX_LEVELS
from .values import ProblemError, count, number, parse_file, require


@dataclass(frozen=True)
class Need:
    """The memory that a model's parameters take on a device. experts: experts of a layer. expert: bytes of one expert
    in all layers. dense: bytes of all parameters outside the experts. each: bytes a parameter. inference: whether
    nothing is trained."""

    experts: int
    expert: int
    dense: int
    each: float
    inference: bool


@dataclass(frozen=True)
class Devices:
    """`number` devices with `capacity` bytes for parameters each. name: the first device's name."""

    number: int
    capacity: int
    name: str


def load(path: str | Path) -> dict[str, Any]:
    """Read a cluster file. Raises ProblemError if the file holds no valid cluster, OSError if it cannot be read."""
    return parse_file(path, "cluster", _cluster)


def _cluster(data: Any) -> dict[str, Any]:
    """The cluster in parsed JSON. Raises ProblemError."""
    data = data.get("cluster", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise ProblemError("cluster", f"must be an object, got {type(data).__name__}")
    for _ in _leaves(data, "cluster", 1):
        pass
    return data


def _leaves(node: Any, where: str, times: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(field, how many devices, leaf) for each kind of device in the cluster. Raises ProblemError for a wrong field."""
    if not isinstance(node, dict):
        raise ProblemError(where, f"must be an object, got {type(node).__name__}")
    if where.count(".") > MAX_LEVELS:
        raise ProblemError(where, f"is deeper than {MAX_LEVELS} levels")
    times *= count(f"{where}.count", node.get("count", 1), 1)
    if "children" not in node:
        hint = " (switches have children, devices tflops and memory_gb)"
        require(node, "tflops", "memory_gb", where=f"{where}.", hint=hint)
        for key in ("tflops", "memory_gb"):
            number(f"{where}.{key}", node[key], positive=True)
        yield where, times, node
        return
    inside = node["children"]
    if not isinstance(inside, list) or not inside:
        raise ProblemError(f"{where}.children", "must be a list of at least one child")
    for i, child in enumerate(inside):
        yield from _leaves(child, f"{where}.children[{i}]", times)


def size(machine: Links | dict[str, Any]) -> int:
    """Number of devices."""
    return machine.n if isinstance(machine, Links) else sum(times for _, times, _ in _leaves(machine, "cluster", 1))


def fields(machine: Links | dict[str, Any], need: Need) -> dict[str, Any]:
    """The fields of a problem that depend on the machine. Raises InputError, or Infeasible if nothing fits."""
    if isinstance(machine, Links):
        made = of_links(machine, need.expert, need.dense)
        check(
            need,
            [
                Devices(1, int((d.memory_bytes or 0) * SHARE), f"{h}:{d.label or i}")
                for i, (h, d) in enumerate(zip(machine.hosts, machine.devices))
            ],
        )
        for device in made["devices"]:
            device["memory"] = min(device["memory"], need.experts)
        return made
    found = [(w, t, int(leaf["memory_gb"] * 1e9 * SHARE)) for w, t, leaf in _leaves(machine, "cluster", 1)]
    check(need, [Devices(times, capacity, where) for where, times, capacity in found])
    return {"cluster": _counted(machine, need)}


def _counted(node: dict[str, Any], need: Need) -> dict[str, Any]:
    """The same cluster, with rates in MFLOP per us (= TFLOP/s), and memory as a number of experts."""
    if "children" in node:
        return {**node, "children": [_counted(child, need) for child in node["children"]]}
    fits = fitting(need, int(node["memory_gb"] * 1e9 * SHARE))
    return {"count": node.get("count", 1), "rate": node["tflops"], "memory": fits}


def fitting(need: Need, capacity: int) -> int:
    """How many experts fit into `capacity` bytes of a device, together with the parameters outside the experts."""
    return min(need.experts, max(0, capacity - need.dense) // need.expert)


def check(need: Need, devices: list[Devices]) -> None:
    """Raise Infeasible unless each device holds the dense parameters, and all devices together hold the experts.

    The message says what would fit."""
    short = [d for d in devices if d.capacity < need.dense]
    held = sum(d.number * fitting(need, d.capacity) for d in devices if d.capacity >= need.dense)
    missing = max(0, need.experts - held)
    n = sum(d.number for d in devices)
    sizes = f"an expert takes {_gb(need.expert)} in all layers, at {need.each:g} bytes a parameter"
    if short:
        missing += sum(d.number * -((d.capacity - need.dense) // need.expert) for d in short)
        worst = min(short, key=lambda d: d.capacity)
        raise Infeasible(
            missing,
            f"device {devices.index(worst)} ({worst.name}) has {_gb(worst.capacity)} for parameters ({SHARE} of its"
            f" memory), but the parameters outside the experts, which every device holds, need {_gb(need.dense)} at"
            f" {need.each:g} bytes each; too small are {sum(d.number for d in short)} of {n} devices; {sizes}."
            + remedy(need, devices, n),
        )
    if missing:
        each = sorted({d.capacity for d in devices})
        room = _gb(each[0] - need.dense) + (f" to {_gb(each[-1] - need.dense)}" if len(each) > 1 else "")
        raise Infeasible(
            missing,
            f"all devices ({n}) together hold {held} of {need.experts} experts: {sizes}, and a device has {room} for"
            f" experts ({SHARE} of its memory, less {_gb(need.dense)} for what every device holds)."
            + remedy(need, devices, n),
        )


def remedy(need: Need, devices: list[Devices], n: int) -> str:
    """What would fit, to end a message: larger devices, more of the same, fewer bytes a parameter, or inference."""
    each = -(-need.experts // n)
    least = math.ceil((need.dense + each * need.expert) / SHARE / 1e9)
    ways = [f"{n} device{'s'[: n != 1]} of at least {least} GB"]
    if fits := max(fitting(need, d.capacity) for d in devices):
        ways.append(f"{-(-need.experts // fits)} devices like the largest")
    capacity = min(d.capacity for d in devices)
    fewer = math.floor(10 * need.each * capacity / (need.dense + each * need.expert)) / 10
    if fewer >= 1:
        ways.append(f"at most {fewer:g} bytes a parameter (--bytes)")
    if not need.inference and 2 * (need.dense + each * need.expert) / need.each <= capacity:
        ways.append("--inference")
    return f" What would fit: {', or '.join(ways)}"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB"
