"""Slurm's descriptions of the network: topology.conf, topology.yaml, `scontrol show topology`, SLURM_TOPOLOGY_ADDR."""

from __future__ import annotations

import graphlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernel_cache.texts import whole

from ..errors import TopologyError
from .hostlist import expand, split
from .matrix import complaint
from .network import Network

_KEY = re.compile(r'\b(\w+)\s*=\s*(?:"([^"]*)"|((?!\w+\s*=)\S*))')  # as Slurm reads it: quotes, blanks around =
NAMES = {
    "switchname": "tree",
    "blockname": "block",
    "aggregatedblock": "block",
    "ringname": "ring",
    "torusname": "torus3d",
}


def parse(text: str, topology: str | None = None) -> Network:
    """A network from the text of a file or of scontrol. Raises TopologyError for a line of another form.

    topology: the topology to read if the text has several. For a topology.yaml this is a name, and None means the
    cluster's default. For a topology.conf this is a kind (Slurm itself reads the lines of its TopologyPlugin), and None
    means the first kind of READERS that the text has.
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
        raise TopologyError(f"expected a topology of kind {topology}, got {' and '.join(sorted(by_kind))}")
    kind = topology or next(kind for kind in READERS if kind in by_kind)
    return READERS[kind](by_kind[kind])


def _logical(text: str) -> list[str]:
    """Lines without comments and blank lines. As in Slurm, a backslash joins the next line without a space."""
    joined = re.sub(r"\\[ \t]*\n", "", text.removeprefix("\ufeff").replace("\r\n", "\n"))
    lines = (line.split("#")[0].strip() for line in joined.split("\n"))
    return [line for line in lines if line and not line.startswith(".")]  # leaves out macros of a manual page


def _entry(line: str) -> dict[str, str]:
    """The values of a line, by key. Keys are in lower case."""
    if line.lower().startswith("include "):
        raise TopologyError(
            f"Aristos does not read the file that is named in {line[:200]!r}: put that file's text in place of this"
            " line, or give the output of `scontrol show topology`"
        )
    keys = {key.lower(): quoted or plain for key, quoted, plain in _KEY.findall(line)}
    known = set(keys) & {*NAMES, "blocksizes"}
    if not known or _KEY.sub("", line).strip():
        raise TopologyError(
            f"expected SwitchName=, BlockName=, BlockSizes=, RingName= or TorusName=, got {line[:200]!r}"
        )
    return {key: "" if value == "(null)" else value for key, value in keys.items()}


class Parents(dict[str, dict[str, None]]):
    """The switches above each name, in order."""

    links = 0

    def put(self, parents: Sequence[str], names: Sequence[str]) -> None:
        """Put names below each of `parents`. Raises TopologyError if there are more links than a cluster has."""
        self.links += len(parents) * max(1, len(names))
        if self.links > MOST_LINKS:
            raise TopologyError(
                f"expected at most {MOST_LINKS} links between switches and nodes, got more, the last below"
                f" {parents[-1]!r}"
            )
        for name in names:
            self.setdefault(name, {}).update(dict.fromkeys(parents))


def _network(kind: str, parents: Mapping[str, Iterable[str]], nodes: Iterable[str], **more: Any) -> Network:
    return Network(kind, {name: tuple(above) for name, above in parents.items()}, frozenset(nodes), **more)


def _tree(entries: Sequence[Mapping[str, str]]) -> Network:
    """The network of a tree.

    Only switches without child switches have nodes, although `scontrol` also lists the nodes below a spine."""
    switches, hosts = Parents(), Parents()
    for entry in entries:
        children, nodes = expand(entry.get("switches", "")), expand(entry.get("nodes", ""))
        names = expand(entry["switchname"])
        switches.put(names, children)
        if not children:
            hosts.put(names, nodes)
    both = set(switches) & set(hosts)
    if both:
        raise TopologyError(f"switches and nodes must have different names, but {sorted(both)[0]!r} is both")
    _acyclic(switches)
    return _network("tree", switches | hosts, hosts)


def _acyclic(parents: Mapping[str, Iterable[str]]) -> None:
    """Raise TopologyError if a switch is above itself."""
    try:
        graphlib.TopologicalSorter(parents).prepare()
    except graphlib.CycleError as error:
        downwards = error.args[1]
        way = " below ".join(reversed(downwards))
        raise TopologyError(f"switch {downwards[0]!r} is below itself: {way[:400]}") from None


def _block(entries: Sequence[Mapping[str, str]]) -> Network:
    """The network of blocks, and of bigger blocks that contain consecutive blocks.

    If the text does not list the bigger blocks, they follow from BlockSizes."""
    parents = Parents()
    blocks: list[str] = []
    members: dict[str, int] = {}
    bigger: list[tuple[str, list[str]]] = []
    sizes: list[int] = []
    for entry in entries:
        if "blocksizes" in entry:
            sizes = _sizes(entry["blocksizes"])
        if "blockname" in entry:
            hosts = expand(entry.get("nodes", ""))
            names = expand(entry["blockname"])
            parents.put(names, hosts)
            blocks += names
            members |= dict.fromkeys(names, len(hosts))
        if "aggregatedblock" in entry:
            bigger.append((entry["aggregatedblock"], expand(entry["aggregatedblock"])))
    hosts_seen = set(parents)
    if not bigger:
        bigger = _aggregated(blocks, sizes or [min(members.values(), default=1) or 1])
    above: dict[str, str] = {}  # the biggest block so far that contains each block
    for name, parts in sorted(bigger, key=lambda each: len(each[1])):
        label = f"{name} " if name in hosts_seen or name in members else name
        for part in parts:
            if above.get(part, part) != label:
                parents.put([label], [above.get(part, part)])
            above[part] = label
    return _network("block", parents, hosts_seen)


def _sizes(text: str) -> list[int]:
    sizes = [whole(size) for size in text.split(",", MOST_SIZES)]
    if len(sizes) > MOST_SIZES or not all(sizes):
        raise TopologyError(f"expected at most {MOST_SIZES} BlockSizes like 4,8,16, got {text[:200]!r}")
    return [size for size in sizes if size]


def _aggregated(blocks: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, list[str]]]:
    """The bigger blocks that Slurm makes: for each size after the first size, (size / first size) consecutive blocks
    form one bigger block."""
    found = []
    for size in sizes[1:]:
        count = max(1, size // sizes[0])
        for at in range(0, len(blocks), count):
            parts = list(blocks[at : at + count])
            if len(parts) == count and count > 1:
                found.append((",".join(parts), parts))
    return found


def _ring(entries: Sequence[Mapping[str, str]]) -> Network:
    parents = Parents()
    rings = []
    for entry in entries:
        hosts = expand(entry.get("nodes", ""))
        parents.put([entry["ringname"]], hosts)
        rings.append(tuple(hosts))
    return _network("ring", parents, parents, rings=tuple(rings))


def _torus(entries: Sequence[Mapping[str, str]]) -> Network:
    parents = Parents()
    for entry in entries:
        parents.put([entry["torusname"]], expand(entry.get("nodes", "")))
    return _network("torus3d", parents, parents)


def _yaml(text: str, topology: str | None) -> Network:
    try:
        import yaml  # only for a topology.yaml
    except ImportError:
        raise TopologyError("topology.yaml needs PyYAML: pip install 'aristos[topo]'") from None

    # reads all scalars as text, not as dates, numbers or objects
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        _unfolded(yaml.parse(text, Loader=loader))
        found = yaml.load(text, Loader=loader)
    except UnicodeError as why:
        raise TopologyError(f"topology.yaml cannot be read: {why}") from None
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


def _unfolded(events: Iterable[Any]) -> None:
    """Raise TopologyError for deep nesting, and for aliases, with which a short text can stand for an endless text."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise TopologyError(f"topology.yaml must have no aliases, got *{event.anchor}: write the text out")
        if depth > MOST_DEPTH:
            raise TopologyError(f"topology.yaml must have at most {MOST_DEPTH} levels of nesting, got more")


def _chosen(listed: Sequence[Mapping[str, Any]], topology: str | None) -> Mapping[str, Any]:
    if topology is None:
        return next((each for each in listed if str(each.get("cluster_default")).lower() in TRUE), listed[0])
    for each in listed:
        if each["topology"] == topology:
            return each
    raise TopologyError(
        f"topology must be one of {', '.join(str(each['topology']) for each in listed)}, got {topology!r}"
    )


MOST_LINKS = 1 << 18
MOST_SIZES = 32
MOST_DEPTH = 32
TRUE = ("true", "yes", "on")
READERS = {"tree": _tree, "block": _block, "ring": _ring, "torus3d": _torus}
_YAML = {  # kind -> (list, key of a name, key of its children)
    "tree": ("switches", "switch", "children"),
    "block": ("blocks", "block", ""),
    "ring": ("rings", "ring", ""),
    "torus3d": ("toruses", "name", ""),
}
_LINES = {"tree": "switchname", "block": "blockname", "ring": "ringname", "torus3d": "torusname"}


def _of_yaml(kind: str, body: Any, name: str) -> Network:
    """The network of a topology.yaml, made from the equivalent lines of a topology.conf."""
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
            "nodes": _value(each, "nodes"),
            "switches": _value(each, children),
        }
        for each in listed
    ]
    if kind == "block" and body.get("block_sizes"):
        sizes = body["block_sizes"]
        entries.append({"blocksizes": ",".join(map(str, sizes if isinstance(sizes, list) else [sizes]))})
    return READERS[kind](entries)


def _value(found: Mapping[str, Any], key: str) -> str:
    value = str(found.get(key, ""))
    return "" if value.lower() in ("null", "~") else value


def from_addresses(addresses: Iterable[tuple[str, str]]) -> Network:
    """A network from each node's SLURM_TOPOLOGY_ADDR and its _PATTERN, e.g. ('spine.leaf1.n3', 'switch.switch.node').

    A level may consist of several switches ('s[1-2].leaf.n3') or be empty. Without a pattern the last component is the
    node.
    """
    parents = Parents()
    nodes, kinds = [], set()
    for address, pattern in addresses:
        levels = split(address, ".")
        depth = len(pattern.split(".")) if pattern else len(levels)
        levels = [*levels[: depth - 1], ".".join(levels[depth - 1 :])]  # a node's name may have dots
        kinds.add("block" if pattern.startswith("block") else "tree")
        nodes.append(levels[-1])
        for above, below in itertools.pairwise(expand(level) for level in levels if level):
            parents.put(above, below)
    if not parents:
        return Network(nodes=frozenset(nodes))
    return _network(kinds.pop() if len(kinds) == 1 else "tree", parents, nodes)
