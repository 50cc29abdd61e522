"""What a stream or a node of a graph does, and graphs with their executable forms.

A launch of a graph queues each of its works in a stream of the graph's own, so that nothing but edges orders them:
works that follow each other along edges share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..launches import Launch
from ..streams import Stream
from .results import Refused
from .state import State

KERNEL, COPY, FILL, HOST, CHILD, EMPTY, WAIT, RECORD = range(8)  # CUgraphNodeType


@dataclass(eq=False)
class Work:
    """A kernel, a copy, a fill, a host function, or a record of an event. kind: by its number in CUgraphNodeType.

    queue: queues the work in a stream. asked: the parameters that the program gave, which it can ask for.
    """

    kind: int
    queue: Callable[[State, Stream], Any]
    asked: Any = None


@dataclass(eq=False)
class Node:
    """A node of a graph. needs: the nodes from which edges lead to it. child: the graph of a child node, else None.

    origin: the node of which it is a copy.
    """

    graph: Graph
    work: Work
    device: int
    needs: list[Node] = field(default_factory=list)
    child: Graph | None = None
    handle: int = 0
    origin: Node | None = None


@dataclass(eq=False)
class Graph:
    """A graph of the program. users: the user objects that it refers to, with how many references it has."""

    nodes: list[Node] = field(default_factory=list)
    handle: int = 0
    users: dict[Any, int] = field(default_factory=dict)
    owner: Node | None = None  # the node whose child it is

    def add(self, now: State, work: Work, device: int, needs: list[Node], child: Graph | None = None) -> Node:
        """A new node."""
        made = Node(self, work, device, list(dict.fromkeys(needs)), child)
        now.keep(made)
        self.nodes.append(made)
        if child is not None:
            child.owner = made
        return made

    def clone(self, now: State) -> Graph:
        """A copy with nodes of its own."""
        made = Graph()
        now.keep(made)
        copies: dict[Node, Node] = {}
        for node in self.nodes:
            child = node.child.clone(now) if node.child is not None else None
            copies[node] = made.add(now, node.work, node.device, [], child)
            copies[node].origin = node
        for node, copy in copies.items():
            copy.needs = [copies[need] for need in node.needs]
        return made

    def ordered(self) -> list[Node]:
        """The nodes, each after those that it needs. Raises Refused if edges form a cycle."""
        left, found, done = list(self.nodes), list[Node](), set[Node]()
        while left:
            ready = [node for node in left if done.issuperset(node.needs)]
            if not ready:
                raise Refused("ERROR_INVALID_VALUE", "the edges of a graph form a cycle")
            found += ready
            done.update(ready)
            left = [node for node in left if node not in done]
        return found

    def ends(self) -> list[Node]:
        """The nodes from which no edge leads on."""
        needed = {need for node in self.nodes for need in node.needs}
        return [node for node in self.nodes if node not in needed]


def ancestors(nodes: list[Node]) -> set[Node]:
    """Nodes and all from which edges lead to them."""
    found, left = set[Node](), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.needs
    return found


@dataclass(eq=False)
class Step:
    """A work of an executable graph. needs: the steps before it. chain: the number of its stream. path: its node, after
    the nodes whose child graphs it is in."""

    path: tuple[Node, ...]
    work: Work
    needs: list[Step]
    chain: int


@dataclass(eq=False)
class Executable:
    """An executable graph. streams: of its works. last: the final works of its latest launch."""

    graph: Graph
    flags: int = 0
    handle: int = 0
    steps: list[Step] = field(default_factory=list)
    ends: list[Step] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    last: list[Launch] = field(default_factory=list)
    users: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Order the graph's works. Raises Refused if its edges form a cycle."""
        self.ends = self.expand(self.graph, (), [], [])

    def expand(self, graph: Graph, path: tuple[Node, ...], before: list[Step], tails: list[Step]) -> list[Step]:
        """Add a graph's works after the steps `before`. Returns the steps after which no other step of the graph comes.

        tails: the last step of each stream.
        """
        after: dict[Node, list[Step]] = {}
        for node in graph.ordered():
            needs = list(dict.fromkeys(step for need in node.needs for step in after[need])) if node.needs else before
            if node.child is not None:
                after[node] = self.expand(node.child, (*path, node), needs, tails)
            elif node.work.kind == EMPTY:
                after[node] = needs
            else:
                chain = next((one.chain for one in reversed(needs) if self.continues(one, node, tails)), len(tails))
                made = Step((*path, node), node.work, needs, chain)
                if chain == len(tails):
                    tails.append(made)
                    self.streams.append(Stream(node.device, blocking=False, graph=self))
                tails[chain] = made
                self.steps.append(made)
                after[node] = [made]
        return list(dict.fromkeys(step for node in graph.ends() for step in after[node])) or before

    def continues(self, step: Step, node: Node, tails: list[Step]) -> bool:
        """Whether a node's work can follow a step in its stream."""
        return tails[step.chain] is step and self.streams[step.chain].device == node.device

    def launch(self, now: State, stream: Stream) -> None:
        """Queue the works after all that is in a stream, and after the last launch of this graph."""
        before = list({id(one): one for one in (*now.machine.needs_of(stream), *self.last)}.values())
        done: dict[Step, list[Launch]] = {}
        for step in self.steps:
            queue = self.streams[step.chain]
            needs = [one for need in step.needs for one in done[need]] if step.needs else before
            first = queue.last
            queue.waits = [one for one in needs if one is not first]
            step.work.queue(now, queue)
            added = queue.last is not first
            if added and queue.last is not None and not step.needs:
                queue.last.programmatic = False  # no programmatic edge leads into a graph
            done[step] = [queue.last] if added and queue.last is not None else [*needs, *queue.waits]
        ends = list({id(one): one for step in self.ends for one in done[step]}.values())
        if ends:
            self.last, stream.waits = ends, list(ends)

    def same_form(self, graph: Graph) -> bool:
        """Whether a graph has works of the same kinds, with the same edges."""
        other = Executable(graph)
        number = {step: at for at, step in enumerate((*self.steps, *other.steps))}
        shift = len(self.steps)
        return len(self.steps) == len(other.steps) and all(
            mine.work.kind == theirs.work.kind
            and {number[need] for need in mine.needs} == {number[need] - shift for need in theirs.needs}
            for mine, theirs in zip(self.steps, other.steps)
        )
