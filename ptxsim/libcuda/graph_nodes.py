"""The driver API's functions for graphs, their nodes and their edges."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from . import actions, fills, memory
from .calls import ADDRESS, HANDLE, INT, POINTER, SIZE, UINT, call, put, text_at
from .capture import nodes_at
from .host_functions import host_work
from .launching import Kernel, kernel
from .queues import record_in, wait_for
from .results import Refused
from .state import Function, ProgramEvent, State
from .user_objects import release_all, retained
from .work import CHILD, COPY, EMPTY, FILL, HOST, KERNEL, RECORD, WAIT, Graph, Node, Work


class KernelParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS. Its first form ends before `kernel`."""

    _fields_ = [
        ("function", HANDLE),
        ("grid", UINT * 3),
        ("block", UINT * 3),
        ("shared", UINT),
        ("values", POINTER),
        ("extra", POINTER),
        ("kernel", HANDLE),
        ("context", HANDLE),
    ]


class FillParameters(ctypes.Structure):
    """CUDA_MEMSET_NODE_PARAMS."""

    _fields_ = [
        ("to", ADDRESS),
        ("pitch", SIZE),
        ("value", UINT),
        ("size", UINT),
        ("width", SIZE),
        ("height", SIZE),
    ]


class Copy3D(ctypes.Structure):
    """CUDA_MEMCPY3D."""

    _fields_ = [
        *memory.sides(
            [
                *(("XInBytes", SIZE), ("Y", SIZE), ("Z", SIZE), ("LOD", SIZE)),
                *memory.PLACE,
                *(("reserved", POINTER), ("Pitch", SIZE), ("Height", SIZE)),
            ]
        ),
        *(("WidthInBytes", SIZE), ("Height", SIZE), ("Depth", SIZE)),
    ]


# ---- works of nodes, by the program's parameters at an address ----
def kernel_work(now: State, address: int, form: int = 2) -> Work:
    asked = KernelParameters.from_address(address)
    function = now.get(asked.function or (asked.kernel if form > 1 else 0), Function)
    how = {"shared": asked.shared}
    return kernel(now, function, tuple(asked.grid), tuple(asked.block), how, asked.values or 0, asked.extra or 0)


def fill_work(now: State, address: int) -> Work:
    asked = FillParameters.from_address(address)
    if asked.size not in (1, 2, 4) or asked.value >> 8 * asked.size:
        raise Refused("ERROR_INVALID_VALUE")
    pitch = asked.pitch if asked.height > 1 else 0
    return fills.fill_work(
        now, asked.to, pitch, asked.value, asked.width, asked.height, asked.size, "cuGraphAddMemsetNode"
    )


def copy_work(now: State, address: int) -> Work:
    asked, what = Copy3D.from_address(address), "cuGraphAddMemcpyNode"
    if asked.Depth != 1:
        raise Refused("ERROR_NOT_SUPPORTED", f"{what}: the stand-in libcuda copies one or two dimensions")
    sides = [memory.side_2d(now, asked, name, what) for name in ("dst", "src")]
    if not any(side.device for side in sides):
        raise Refused("ERROR_NOT_SUPPORTED", f"{what}: neither side is memory of a device")
    queue = partial(
        memory.queue_copy,
        to=sides[0],
        source=sides[1],
        width=asked.WidthInBytes,
        height=asked.Height,
        what=what,
        place=actions.caller(),
    )
    return Work(COPY, queue)


def host_work_at(now: State, address: int) -> Work:
    return host_work(POINTER.from_address(address).value or 0, POINTER.from_address(address + 8).value or 0)


def event_work(now: State, event: int, kind: int) -> Work:
    found = now.get(event, ProgramEvent)
    return Work(kind, partial(record_in if kind == RECORD else wait_for, event=found), found)


def nothing(*_: Any) -> None:
    """Queue nothing: for an empty node, and for a node with a child graph, whose nodes are queued instead."""


def child_node(now: State, graph: Graph, needs: list[Node], child: int) -> Node:
    """A new node, whose child is a copy of a graph."""
    return graph.add(now, Work(CHILD, nothing), device_of(now), needs, now.get(child, Graph).clone(now))


def device_of(now: State) -> int:
    """The device of the current context; 0 if there is none."""
    stack = now.stack()
    return stack[-1].device if stack else 0


# ---- graphs ----
@call(POINTER, UINT)
def cuGraphCreate(now: State, graph: int, flags: int) -> None:
    if flags:
        raise Refused("ERROR_INVALID_VALUE")
    put(graph, HANDLE, now.keep(Graph()))


@call(HANDLE)
def cuGraphDestroy(now: State, graph: int) -> None:
    found = now.get(graph, Graph)
    forget(now, found)


def forget(now: State, graph: Graph) -> None:
    """Forget the handles of a graph and its nodes, and release its user objects."""
    for node in graph.nodes:
        now.objects.pop(node.handle, None)
        if node.child is not None:
            forget(now, node.child)
    now.objects.pop(graph.handle, None)
    release_all(now, graph.users)


@call(POINTER, HANDLE)
def cuGraphClone(now: State, clone: int, graph: int) -> None:
    found = now.get(graph, Graph)
    made = found.clone(now)
    made.users = retained(found.users)
    put(clone, HANDLE, made.handle)


@call(POINTER, HANDLE, HANDLE)
def cuGraphNodeFindInClone(now: State, node: int, original: int, clone: int) -> None:
    wanted = now.get(original, Node)
    found = next((one for one in now.get(clone, Graph).nodes if one.origin is wanted), None)
    if found is None:
        raise Refused("ERROR_INVALID_VALUE")
    put(node, HANDLE, found.handle)


# ---- nodes ----
def adds(name: str, made: Callable[..., Work], *types: Any) -> None:
    """Declare a function that adds a node. made: makes the node's work from arguments of `types`."""

    def add(now: State, node: int, graph: int, needs: int, count: int, first: int, *more: int) -> None:
        if not first:
            raise Refused("ERROR_INVALID_VALUE")
        found = now.get(graph, Graph)
        before = nodes_at(now, needs, count)
        put(node, HANDLE, found.add(now, made(now, first), device_of(now), before).handle)

    call(POINTER, HANDLE, POINTER, SIZE, *types)(memory.renamed(add, name))


adds("cuGraphAddKernelNode", partial(kernel_work, form=1), POINTER)
adds("cuGraphAddKernelNode_v2", kernel_work, POINTER)
adds("cuGraphAddMemcpyNode", copy_work, POINTER, HANDLE)
adds("cuGraphAddMemsetNode", fill_work, POINTER, HANDLE)
adds("cuGraphAddHostNode", host_work_at, POINTER)
adds("cuGraphAddEventRecordNode", partial(event_work, kind=RECORD), HANDLE)
adds("cuGraphAddEventWaitNode", partial(event_work, kind=WAIT), HANDLE)


@call(POINTER, HANDLE, POINTER, SIZE)
def cuGraphAddEmptyNode(now: State, node: int, graph: int, needs: int, count: int) -> None:
    before = nodes_at(now, needs, count)
    put(node, HANDLE, now.get(graph, Graph).add(now, Work(EMPTY, nothing), device_of(now), before).handle)


@call(POINTER, HANDLE, POINTER, SIZE, HANDLE)
def cuGraphAddChildGraphNode(now: State, node: int, graph: int, needs: int, count: int, child: int) -> None:
    put(node, HANDLE, child_node(now, now.get(graph, Graph), nodes_at(now, needs, count), child).handle)


@call(POINTER, HANDLE, POINTER, POINTER, SIZE, POINTER)
def cuGraphAddNode_v2(now: State, node: int, graph: int, needs: int, edges: int, count: int, how: int) -> None:
    """Add a node of a kind that CUgraphNodeParams names, at whose byte 16 the kind's parameters begin."""
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    kind, at = INT.from_address(how).value, how + 16
    found, before = now.get(graph, Graph), nodes_at(now, needs, count)
    if kind == CHILD:
        made = child_node(now, found, before, POINTER.from_address(at).value or 0)
    else:
        made = found.add(now, work_at(now, kind, at), device_of(now), before)
    put(node, HANDLE, made.handle)


# kinds of nodes that the stand-in lacks
OTHERS = {
    10: "that allocate memory",
    11: "that free memory",
    12: "of batches of memory operations",
    13: "with conditions",
}


def work_at(now: State, kind: int, at: int) -> Work:
    """The work of a kind, by the parameters of CUgraphNodeParams at an address."""
    if kind in (RECORD, WAIT):
        return event_work(now, POINTER.from_address(at).value or 0, kind)
    makers: dict[int, Callable[[State, int], Work]] = {
        KERNEL: kernel_work,
        FILL: fill_work,
        HOST: host_work_at,
        EMPTY: lambda now, at: Work(EMPTY, nothing),
        COPY: lambda now, at: copy_work(now, at + 16),
    }
    if kind not in makers:
        what = OTHERS.get(kind, f"of kind {kind}")
        raise Refused("ERROR_NOT_SUPPORTED", f"graphs of the stand-in libcuda have no nodes {what}")
    return makers[kind](now, at)


@call(POINTER, HANDLE, POINTER, SIZE, POINTER)
def cuGraphAddNode(now: State, node: int, graph: int, needs: int, count: int, how: int) -> None:
    cuGraphAddNode_v2(now, node, graph, needs, 0, count, how)


@call(HANDLE)
def cuGraphDestroyNode(now: State, node: int) -> None:
    found = now.get(node, Node)
    found.graph.nodes.remove(found)
    for one in found.graph.nodes:
        one.needs = [need for need in one.needs if need is not found]
    del now.objects[node]


@call(HANDLE, POINTER)
def cuGraphNodeGetType(now: State, node: int, kind: int) -> None:
    put(kind, INT, now.get(node, Node).work.kind)


@call(HANDLE, POINTER)
def cuGraphChildGraphNodeGetGraph(now: State, node: int, graph: int) -> None:
    child = now.get(node, Node).child
    if child is None:
        raise Refused("ERROR_INVALID_VALUE")
    put(graph, HANDLE, child.handle)


@call(HANDLE, POINTER)
def cuGraphKernelNodeGetParams_v2(now: State, node: int, how: int) -> None:
    """Write the parameters of a kernel's node. The values of its parameters lie in memory of the stand-in."""
    asked = now.get(node, Node).work.asked
    if not how or not isinstance(asked, Kernel):
        raise Refused("ERROR_INVALID_VALUE")
    out = KernelParameters.from_address(how)
    ctypes.memset(how, 0, ctypes.sizeof(out))
    out.function, out.grid, out.block = asked.function.handle, asked.grid, asked.block
    out.shared, out.values = asked.how["shared"], asked.pointers()


@call(HANDLE, POINTER)
def cuGraphKernelNodeSetParams_v2(now: State, node: int, how: int) -> None:
    set_work(now.get(node, Node), kernel_work(now, how))


@call(HANDLE, POINTER)
def cuGraphNodeSetParams(now: State, node: int, how: int) -> None:
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    set_work(now.get(node, Node), work_at(now, INT.from_address(how).value, how + 16))


def set_work(node: Node, work: Work) -> None:
    """Replace a node's work by one of its kind."""
    if node.work.kind != work.kind:
        raise Refused("ERROR_INVALID_VALUE")
    node.work = work


# ---- edges ----
@call(HANDLE, POINTER, POINTER, SIZE)
def cuGraphAddDependencies(now: State, graph: int, sources: int, targets: int, count: int) -> None:
    now.get(graph, Graph)
    pairs = list(zip(nodes_at(now, sources, count), nodes_at(now, targets, count)))
    if any(source in target.needs or source is target for source, target in pairs):
        raise Refused("ERROR_INVALID_VALUE")
    for source, target in pairs:
        target.needs.append(source)


@call(HANDLE, POINTER, POINTER, POINTER, SIZE)
def cuGraphAddDependencies_v2(now: State, graph: int, sources: int, targets: int, edges: int, count: int) -> None:
    cuGraphAddDependencies(now, graph, sources, targets, count)


@call(HANDLE, POINTER, POINTER, SIZE)
def cuGraphRemoveDependencies(now: State, graph: int, sources: int, targets: int, count: int) -> None:
    now.get(graph, Graph)
    for source, target in zip(nodes_at(now, sources, count), nodes_at(now, targets, count)):
        if source not in target.needs:
            raise Refused("ERROR_INVALID_VALUE")
        target.needs.remove(source)


@call(HANDLE, POINTER, POINTER, POINTER, SIZE)
def cuGraphRemoveDependencies_v2(now: State, graph: int, sources: int, targets: int, edges: int, count: int) -> None:
    cuGraphRemoveDependencies(now, graph, sources, targets, count)


def put_list(count: int, *lists: tuple[int, list[Node]]) -> None:
    """Write lists of nodes, of equal length, to arrays of the program, or only the length if there are no arrays.

    count: the address of the arrays' length, which becomes the number of nodes that are written.
    """
    if not count:
        raise Refused("ERROR_INVALID_VALUE")
    length = len(lists[0][1])
    if lists[0][0]:
        space = SIZE.from_address(count).value
        for address, nodes in lists:
            for at in range(space):
                put(address + 8 * at, HANDLE, nodes[at].handle if at < length else 0)
        length = min(space, length)
    put(count, SIZE, length)


@call(HANDLE, POINTER, POINTER)
def cuGraphGetNodes(now: State, graph: int, nodes: int, count: int) -> None:
    put_list(count, (nodes, now.get(graph, Graph).nodes))


@call(HANDLE, POINTER, POINTER)
def cuGraphGetRootNodes(now: State, graph: int, nodes: int, count: int) -> None:
    put_list(count, (nodes, [node for node in now.get(graph, Graph).nodes if not node.needs]))


@call(HANDLE, POINTER, POINTER, POINTER)
def cuGraphGetEdges(now: State, graph: int, sources: int, targets: int, count: int) -> None:
    edges = [(need, node) for node in now.get(graph, Graph).nodes for need in node.needs]
    put_list(count, (sources, [source for source, _ in edges]), (targets, [target for _, target in edges]))


@call(HANDLE, POINTER, POINTER, POINTER, POINTER)
def cuGraphGetEdges_v2(now: State, graph: int, sources: int, targets: int, edges: int, count: int) -> None:
    clear(edges, count, lambda: cuGraphGetEdges(now, graph, sources, targets, count))


@call(HANDLE, POINTER, POINTER)
def cuGraphNodeGetDependencies(now: State, node: int, nodes: int, count: int) -> None:
    put_list(count, (nodes, now.get(node, Node).needs))


@call(HANDLE, POINTER, POINTER, POINTER)
def cuGraphNodeGetDependencies_v2(now: State, node: int, nodes: int, edges: int, count: int) -> None:
    clear(edges, count, lambda: cuGraphNodeGetDependencies(now, node, nodes, count))


@call(HANDLE, POINTER, POINTER)
def cuGraphNodeGetDependentNodes(now: State, node: int, nodes: int, count: int) -> None:
    found = now.get(node, Node)
    put_list(count, (nodes, [one for one in found.graph.nodes if found in one.needs]))


@call(HANDLE, POINTER, POINTER, POINTER)
def cuGraphNodeGetDependentNodes_v2(now: State, node: int, nodes: int, edges: int, count: int) -> None:
    clear(edges, count, lambda: cuGraphNodeGetDependentNodes(now, node, nodes, count))


def clear(edges: int, count: int, listing: Callable[[], None]) -> None:
    """List nodes, and write that their edges are ordinary ones: 8 zeros for each."""
    listing()
    if edges:
        ctypes.memset(edges, 0, 8 * SIZE.from_address(count).value)


@call(HANDLE, POINTER, UINT)
def cuGraphDebugDotPrint(now: State, graph: int, path: int, flags: int) -> None:
    """Write a graph's nodes and edges as a file for Graphviz."""
    names = ["kernel", "copy", "fill", "host", "graph", "empty", "wait", "record"]
    lines = ["digraph {"]
    for node in now.get(graph, Graph).nodes:
        label = node.work.asked.function.name if isinstance(node.work.asked, Kernel) else names[node.work.kind]
        lines.append(f'n{node.handle} [label="{label}"];')
        lines += [f"n{need.handle} -> n{node.handle};" for need in node.needs]
    try:
        with open(text_at(path), "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, "}\n"]))
    except OSError as error:
        raise Refused("ERROR_INVALID_VALUE", f"cannot write a graph's file: {error}") from error
