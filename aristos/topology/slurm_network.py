"""Slurm's descriptions of the network: topology.conf, topology.yaml, `scontrol show topology`, SLURM_TOPOLOGY_ADDR."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import TopologyError
from .hostlist import expand, split
from .matrix import complaint
from .network import Network

_KEY = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|((?!\w+\s*=)\S*))')  # as Slurm reads it: quotes, blanks around =
NAMES = {
    "switchname": "tree",
    "blockname": "block",
    "aggregatedblock": "block",
    "ringname": "ring",
    "torusname": "torus3d",
}


def parse(text: str, topology: str | None = None) -> Network:
    """A network from the text of a file or of scontrol. Raises TopologyError for any other line.

    topology: which one, if the text has several. In a topology.yaml it is a name, and None is the cluster's default. In
    a topology.conf it is a kind (Slurm itself reads the lines of its TopologyPlugin), and None is the tree.
    """
    lines = _logical(text)
    if any(re.match(r"-\s|---|\w+:$", line) for line in lines[:1]):
        return _yaml(text, topology)
    entries = [_entry(line) for line in lines]
    by_kind: dict[str, list[dict[str, str]]] = {}
    for entry in entries:
        kind = next((NAMES[key] for key in entry if key in NAMES), "block")
        by_kind.setdefault(kind, []).append(entry)
    if not by_kind:
        raise complaint("scontrol show topology", text)
    if topology is not None and topology not in by_kind:
        raise TopologyError(f"no {topology} here, but {' and '.join(sorted(by_kind))}")
    kind = topology or next(kind for kind in READERS if kind in by_kind)
    return READERS[kind](by_kind[kind])


def _logical(text: str) -> list[str]:
    """Lines without comments and blank lines; a backslash joins the next line without a space, as in Slurm."""
    joined = re.sub(r"\\[ \t]*\n", "", text.removeprefix("\ufeff").replace("\r\n", "\n"))
    lines = (line.split("#")[0].strip() for line in joined.split("\n"))
    return [line for line in lines if line and not line.startswith(".")]  # macros of a manual page start with a dot


def _entry(line: str) -> dict[str, str]:
    """Keys in lower case -> values."""
    if line.lower().startswith("include "):
        raise TopologyError(
            f"{line[:200]!r} is not followed: insert that file here, or give the output of `scontrol show topology`"
        )
    keys = {key.lower(): quoted or plain for key, quoted, plain in _KEY.findall(line)}
    known = set(keys) & {*NAMES, "blocksizes"}
    if not known or _KEY.sub("", line).strip():
        raise TopologyError(
            f"expected SwitchName=, BlockName=, BlockSizes=, RingName= or TorusName=, got {line[:200]!r}"
        )
    return {key: "" if value == "(null)" else value for key, value in keys.items()}


Parents = dict[str, list[str]]


def _below(parents: Parents, parent: str, names: Iterable[str]) -> None:
    for name in names:
        above = parents.get(name)
        if above is None:
            parents[name] = [parent]
        elif parent not in above:
            above.append(parent)


def _network(kind: str, parents: Parents, nodes: Iterable[str], **more: Any) -> Network:
    return Network(kind, {name: tuple(above) for name, above in parents.items()}, frozenset(nodes), **more)


def _tree(entries: Sequence[Mapping[str, str]]) -> Network:
    """A tree. `scontrol` also lists the nodes below a spine: only a switch without child switches has own nodes."""
    switches: Parents = {}
    hosts: Parents = {}
    for entry in entries:
        for name in expand(entry["switchname"]):
            children = expand(entry.get("switches", ""))
            _below(switches, name, children)
            if not children:
                _below(hosts, name, expand(entry.get("nodes", "")))
    both = set(switches) & set(hosts)
    if both:
        raise TopologyError(f"{sorted(both)[0]!r} is a switch and a node, so the tree is ambiguous")
    _acyclic(switches)
    return _network("tree", switches | hosts, hosts)


def _acyclic(parents: Parents) -> None:
    """Raise TopologyError if a switch is above itself."""
    done: set[str] = set()
    for start in parents:
        path: list[str] = []
        stack = [(start, 0)]
        while stack:
            name, depth = stack.pop()
            del path[depth:]
            if name in path:
                raise TopologyError(f"switch {name!r} is below itself: {' below '.join([*path, name])}")
            if name in done:
                continue
            path.append(name)
            above = parents.get(name, [])
            stack += [(parent, depth + 1) for parent in above]
            if not above:
                done.update(path)


def _block(entries: Sequence[Mapping[str, str]]) -> Network:
    """Blocks, and the bigger blocks of consecutive ones: as scontrol prints them, or by BlockSizes."""
    parents: Parents = {}
    blocks: list[str] = []
    members: dict[str, int] = {}
    bigger: list[tuple[str, list[str]]] = []
    sizes: list[int] = []
    for entry in entries:
        if "blocksizes" in entry:
            sizes = _sizes(entry["blocksizes"])
        if "blockname" in entry:
            for name in expand(entry["blockname"]):
                hosts = expand(entry.get("nodes", ""))
                blocks.append(name)
                members[name] = len(hosts)
                _below(parents, name, hosts)
        if "aggregatedblock" in entry:
            bigger.append((entry["aggregatedblock"], expand(entry["aggregatedblock"])))
    hosts_seen = set(parents)
    if not bigger:
        bigger = _aggregated(blocks, sizes or [min(members.values(), default=1) or 1])
    above: dict[str, str] = {}  # block -> the biggest block so far that contains it
    for name, parts in sorted(bigger, key=lambda each: len(each[1])):
        label = f"{name} " if name in hosts_seen or name in members else name
        for part in parts:
            if above.get(part, part) != label:
                _below(parents, label, [above.get(part, part)])
            above[part] = label
    return _network("block", parents, hosts_seen)


def _sizes(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text) or any(int(size) < 1 for size in text.split(",")):
        raise TopologyError(f"expected BlockSizes like 4,8,16, got {text!r}")
    return [int(size) for size in text.split(",")]


def _aggregated(blocks: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Slurm's bigger blocks: for each size after the first, runs of size/first blocks in order."""
    found = []
    for size in sizes[1:]:
        count = max(1, size // sizes[0])
        for at in range(0, len(blocks), count):
            parts = list(blocks[at : at + count])
            if len(parts) == count and count > 1:
                found.append((",".join(parts), parts))
    return found


def _ring(entries: Sequence[Mapping[str, str]]) -> Network:
    parents: Parents = {}
    rings = []
    for entry in entries:
        hosts = expand(entry.get("nodes", ""))
        _below(parents, entry["ringname"], hosts)
        rings.append(tuple(hosts))
    return _network("ring", parents, parents, rings=tuple(rings))


def _torus(entries: Sequence[Mapping[str, str]]) -> Network:
    parents: Parents = {}
    for entry in entries:
        _below(parents, entry["torusname"], expand(entry.get("nodes", "")))
    return _network("torus3d", parents, parents)


def _yaml(text: str, topology: str | None) -> Network:
    import yaml  # only for a topology.yaml

    try:
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as why:
        mark = getattr(why, "problem_mark", None)
        line = text.split("\n")[mark.line].strip() if mark and mark.line < text.count("\n") + 1 else str(why)
        raise TopologyError(f"topology.yaml cannot be read at {line[:200]!r}: {getattr(why, 'problem', why)}") from None
    listed = (
        [each for each in found if isinstance(each, dict) and "topology" in each] if isinstance(found, list) else []
    )
    if not listed or len(listed) < len(found):
        raise TopologyError(f"expected topology.yaml, a list of `- topology: NAME`, got {_logical(text)[0][:200]!r}")
    chosen = _chosen(listed, topology)
    kinds = [kind for kind in ("tree", "block", "flat", "ring", "torus3d") if kind in chosen]
    if len(kinds) != 1:
        raise TopologyError(
            f"topology {chosen['topology']!r} must be a tree, block, flat, ring or torus3d, got {', '.join(chosen)}"
        )
    return _of_yaml(kinds[0], chosen[kinds[0]], str(chosen["topology"]))


def _chosen(listed: Sequence[Mapping[str, Any]], topology: str | None) -> Mapping[str, Any]:
    if topology is None:
        return next((each for each in listed if each.get("cluster_default") is True), listed[0])
    for each in listed:
        if each["topology"] == topology:
            return each
    raise TopologyError(f"no topology {topology!r} among {', '.join(str(each['topology']) for each in listed)}")


READERS = {"tree": _tree, "block": _block, "ring": _ring, "torus3d": _torus}
_YAML = {  # kind -> (list, key of a name, key of its children)
    "tree": ("switches", "switch", "children"),
    "block": ("blocks", "block", ""),
    "ring": ("rings", "ring", ""),
    "torus3d": ("toruses", "name", ""),
}
_LINES = {"tree": "switchname", "block": "blockname", "ring": "ringname", "torus3d": "torusname"}


def _of_yaml(kind: str, body: Any, name: str) -> Network:
    """A network of a topology.yaml, by way of the equivalent lines of a topology.conf."""
    if kind == "flat":
        return Network("flat")
    many, one, children = _YAML[kind]
    listed = body.get(many) if isinstance(body, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) and one in each for each in listed):
        raise TopologyError(
            f"{kind} of topology {name!r} must have a list {many}: - {one}: ..., got {str(body)[:200]!r}"
        )
    entries = [
        {
            _LINES[kind]: str(each[one]),
            "nodes": str(each.get("nodes") or ""),
            "switches": str(each.get(children) or "") if children else "",
        }
        for each in listed
    ]
    if kind == "block" and body.get("block_sizes"):
        sizes = body["block_sizes"]
        entries.append({"blocksizes": ",".join(map(str, sizes if isinstance(sizes, list) else [sizes]))})
    return READERS[kind](entries)


def from_addresses(addresses: Iterable[tuple[str, str]]) -> Network:
    """A network from SLURM_TOPOLOGY_ADDR and its _PATTERN of each node, e.g. ('spine.leaf1.n3', 'switch.switch.node').

    A level may be several switches ('s[1-2].leaf.n3') or empty; without a pattern the last component is the node.
    """
    parents: Parents = {}
    nodes, kinds = [], set()
    for address, pattern in addresses:
        levels = split(address, ".")
        depth = len(pattern.split(".")) if pattern else len(levels)
        levels = [*levels[: depth - 1], ".".join(levels[depth - 1 :])]  # a node's name may have dots
        kinds.add("block" if pattern.startswith("block") else "tree")
        nodes.append(levels[-1])
        path = [expand(level) for level in levels if level]
        for above, below in itertools.pairwise(path):
            for name in below:
                for parent in above:
                    _below(parents, parent, [name])
    if not parents:
        return Network(nodes=frozenset(nodes))
    return _network(kinds.pop() if len(kinds) == 1 else "tree", parents, nodes)
