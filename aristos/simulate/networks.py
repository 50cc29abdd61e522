"""Reads the network of a machine file: a mapping in YAML, or a file of `aristos topo --measure` or of the planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AristosError, InputError
from ..planner import load as load_problem
from ..planner import machine as planner_machine
from ..planner import tree as planner_tree
from ..planner.values import read_json
from ..topology import links as measured
from ..topology import slurm_network, texts
from ..topology.hostlist import expand
from ..topology.sysfs import natural
from .machine import Network
from .measured import KnownPairs
from .topologies import Dragonfly, FatTree, Torus
from .trees import PlannerTree, SlurmTree

SPEEDS = ("rate", "latency", "hop")


def from_mapping(found: Any, folder: Path) -> Network:
    """A network from the mapping `network` of a machine file. folder: the machine file's, where named files lie.

    Raises InputError, or OSError if a named file cannot be read.
    """
    if not isinstance(found, dict):
        raise InputError(f"must be a mapping with {_either(KINDS)}, got {found!r}"[:300])
    kinds = [kind for kind in KINDS if kind in found]
    if len(kinds) != 1:
        raise InputError(f"must have one of {_either(KINDS)}, got {', '.join(map(str, found)) or 'nothing'}"[:300])
    return KINDS[kinds[0]](found, folder)


def from_file(path: Path) -> Network:
    """A network from JSON: measured links, a planner's cluster, or a planner's problem. Raises InputError, OSError."""
    found = read_json(path, str(path))
    if isinstance(found, dict) and "schema" in found:
        return KnownPairs.of_links(measured.load(path))
    if isinstance(found, dict) and "experts" in found:
        problem = load_problem(path)
        return KnownPairs.of_problem(problem, range(problem.n)) if problem.tree is None else PlannerTree(problem.tree)
    if not isinstance(found, dict) or not found.keys() & {"cluster", "children"}:
        raise InputError(f"{path} must hold measured links, a planner's cluster or a planner's problem")
    one_byte = planner_machine.Need(experts=1, expert=1, dense=0, each=1, inference=True)  # any device has this memory
    fields = planner_machine.fields(planner_machine.load(path), one_byte)
    return PlannerTree(planner_tree.parse(fields["cluster"]))


def _either(names: Mapping[str, Any]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


def _speeds(found: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """rate, latency and hop of a mapping. others: the further keys that it may have."""
    if unknown := sorted(map(str, found.keys() - {*SPEEDS, *others})):
        raise InputError(f"takes only the keys {', '.join((*others, *SPEEDS))}, got {', '.join(unknown)}"[:300])
    if "rate" not in found:
        raise InputError("needs rate: GB/s of a link, or a list with one for each level")
    return {**{key: found[key] for key in SPEEDS if key in found}, "rate": _several(found["rate"])}


def _several(value: Any) -> Any:
    """A tuple of a list's items, or of one value."""
    return tuple(value) if isinstance(value, list) else (value,)


def _inner(kind: str, found: Mapping[str, Any], wanted: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """The mapping under a kind, with all wanted keys and perhaps optional ones."""
    inner = found[kind]
    if not isinstance(inner, dict):
        raise InputError(f"{kind} must be a mapping with {', '.join(wanted)}, got {inner!r}"[:300])
    unknown = sorted(map(str, inner.keys() - {*wanted, *optional}))
    missing = [key for key in wanted if key not in inner]
    if unknown or missing:
        problem = f"got {', '.join(unknown)}" if unknown else f"{missing[0]} is missing"
        raise InputError(f"{kind} takes the keys {', '.join((*wanted, *optional))}: {problem}"[:300])
    return inner


def _fat_tree(found: Mapping[str, Any], folder: Path) -> Network:
    inner = _inner("fat-tree", found, ("down", "up"), ("cables",))
    return FatTree(**{key: _several(value) for key, value in inner.items()}, **_speeds(found, "fat-tree"))


def _dragonfly(found: Mapping[str, Any], folder: Path) -> Network:
    inner = _inner("dragonfly", found, ("groups", "switches", "nodes_each"), ("between",))
    return Dragonfly(**inner, **_speeds(found, "dragonfly"))


def _torus(found: Mapping[str, Any], folder: Path) -> Network:
    return Torus(size=_several(found["torus"]), **_speeds(found, "torus"))


def _slurm(found: Mapping[str, Any], folder: Path) -> Network:
    speeds = _speeds(found, "slurm", "nodes")
    path = _path("slurm", found, folder)
    wanted = found.get("nodes", "")
    if not isinstance(wanted, str):
        raise InputError(f"nodes must be names as Slurm writes them, such as n[1-8], got {wanted!r}"[:300])
    try:
        network = slurm_network.parse(texts.read(path))
        names = expand(wanted) if wanted else sorted(network.nodes, key=natural)
        return SlurmTree(network, tuple(names), **speeds)
    except AristosError as why:
        raise InputError(f"{path}: {why}") from why


def _named(found: Mapping[str, Any], folder: Path) -> Network:
    if len(found) > 1:
        raise InputError(
            f"must have only the key file, because that file has all speeds, got {', '.join(map(str, found))}"[:300]
        )
    return from_file(_path("file", found, folder))


def _path(key: str, found: Mapping[str, Any], folder: Path) -> Path:
    """The file that a key names."""
    if not isinstance(found[key], str) or not found[key] or "\0" in found[key]:
        raise InputError(f"{key} must be a file's name, got {found[key]!r}"[:300])
    return folder / found[key]


KINDS: dict[str, Callable[[Mapping[str, Any], Path], Network]] = {
    "fat-tree": _fat_tree,
    "dragonfly": _dragonfly,
    "torus": _torus,
    "slurm": _slurm,
    "file": _named,
}
