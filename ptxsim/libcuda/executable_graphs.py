"""Executable graphs: how they are made, launched, updated and destroyed."""

from __future__ import annotations

import ctypes

from .calls import HANDLE, INT, LONG, POINTER, SIZE, call, put
from .capture import submit
from .graph_nodes import copy_work, fill_work, host_work_at, kernel_work, work_at
from .results import Refused
from .state import State
from .user_objects import release_all, retained
from .work import CHILD, Executable, Graph, Node, Work

INVALID_STRUCTURE, TOPOLOGY_CHANGED = 2, 2  # CUgraphInstantiateResult, CUgraphExecUpdateResult
DEVICE_LAUNCH = 4  # a flag: kernels launch the graph


def instantiated(now: State, graph: Graph, flags: int) -> Executable:
    """A new executable graph. Raises Refused if edges form a cycle, or if kernels launch the graph."""
    if flags & DEVICE_LAUNCH:
        raise Refused("ERROR_NOT_SUPPORTED", "graphs that kernels launch are not supported")
    made = Executable(graph, flags)
    made.users = retained(graph.users)
    now.keep(made)
    return made


@call(POINTER, HANDLE, LONG)
def cuGraphInstantiateWithFlags(now: State, made: int, graph: int, flags: int) -> None:
    put(made, HANDLE, instantiated(now, now.get(graph, Graph), flags).handle)


@call(POINTER, HANDLE, POINTER, POINTER, SIZE, also=("cuGraphInstantiate_v2",))
def cuGraphInstantiate(now: State, made: int, graph: int, node: int, log: int, size: int) -> None:
    put(made, HANDLE, instantiated(now, now.get(graph, Graph), 0).handle)


class Instantiation(ctypes.Structure):
    """CUDA_GRAPH_INSTANTIATE_PARAMS."""

    _fields_ = [("flags", LONG), ("stream", HANDLE), ("node", HANDLE), ("result", INT)]


@call(POINTER, HANDLE, POINTER)
def cuGraphInstantiateWithParams(now: State, made: int, graph: int, how: int) -> None:
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    asked = Instantiation.from_address(how)
    found = now.get(graph, Graph)
    asked.node, asked.result = 0, INVALID_STRUCTURE
    put(made, HANDLE, instantiated(now, found, asked.flags).handle)
    asked.result = 0


@call(HANDLE, HANDLE)
def cuGraphLaunch(now: State, made: int, stream: int) -> None:
    """Queue a graph's works in a stream, or make the graph a node of the stream's capture."""
    found = now.get(made, Executable)
    queue = now.stream(stream)
    submit(now, queue, Work(CHILD, found.launch), found.graph)


@call(HANDLE, HANDLE)
def cuGraphUpload(now: State, made: int, stream: int) -> None:
    """Do nothing: a graph has all that it needs."""
    now.get(made, Executable)
    now.stream(stream)


@call(HANDLE)
def cuGraphExecDestroy(now: State, made: int) -> None:
    """Forget the handle. What was launched still runs."""
    found = now.get(made, Executable)
    del now.objects[made]
    release_all(now, found.users)


@call(HANDLE, POINTER)
def cuGraphExecGetFlags(now: State, made: int, flags: int) -> None:
    put(flags, LONG, now.get(made, Executable).flags)


class Update(ctypes.Structure):
    """CUgraphExecUpdateResultInfo."""

    _fields_ = [("result", INT), ("node", HANDLE), ("source", HANDLE)]


@call(HANDLE, HANDLE, POINTER)
def cuGraphExecUpdate_v2(now: State, made: int, graph: int, result: int) -> None:
    """Give an executable graph the works of another graph with the same edges and kinds of nodes."""
    found, other = now.get(made, Executable), now.get(graph, Graph)
    if not result:
        raise Refused("ERROR_INVALID_VALUE")
    out = Update.from_address(result)
    out.result, out.node, out.source = 0, 0, 0
    if not found.same_form(other):
        out.result = TOPOLOGY_CHANGED
        raise Refused("ERROR_GRAPH_EXEC_UPDATE_FAILURE")
    for mine, theirs in zip(found.steps, Executable(other).steps):
        mine.work = theirs.work


def set_step(now: State, made: int, node: int, work: Work) -> None:
    """Replace the work of an executable graph's node."""
    wanted = now.get(node, Node)
    found = [step for step in now.get(made, Executable).steps if step.path == (wanted,)]
    if not found or found[0].work.kind != work.kind:
        raise Refused("ERROR_INVALID_VALUE")
    found[0].work = work


@call(HANDLE, HANDLE, POINTER)
def cuGraphExecKernelNodeSetParams_v2(now: State, made: int, node: int, how: int) -> None:
    set_step(now, made, node, kernel_work(now, how))


@call(HANDLE, HANDLE, POINTER)
def cuGraphExecKernelNodeSetParams(now: State, made: int, node: int, how: int) -> None:
    set_step(now, made, node, kernel_work(now, how, 1))


@call(HANDLE, HANDLE, POINTER, HANDLE)
def cuGraphExecMemcpyNodeSetParams(now: State, made: int, node: int, how: int, context: int) -> None:
    set_step(now, made, node, copy_work(now, how))


@call(HANDLE, HANDLE, POINTER, HANDLE)
def cuGraphExecMemsetNodeSetParams(now: State, made: int, node: int, how: int, context: int) -> None:
    set_step(now, made, node, fill_work(now, how))


@call(HANDLE, HANDLE, POINTER)
def cuGraphExecHostNodeSetParams(now: State, made: int, node: int, how: int) -> None:
    set_step(now, made, node, host_work_at(now, how))


@call(HANDLE, HANDLE, POINTER)
def cuGraphExecNodeSetParams(now: State, made: int, node: int, how: int) -> None:
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    set_step(now, made, node, work_at(now, INT.from_address(how).value, how + 16))
