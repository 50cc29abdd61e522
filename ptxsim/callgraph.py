"""Analysis of a program's call graph: recursion, depth of calls, bytes of frames. Also an estimate of registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from . import isa
from .program import FunctionInfo

# in a program with recursion a lane has space for: depth of calls, bytes of frames, recursive calls that save registers
RECURSIVE_DEPTH, RECURSIVE_FRAMES, RECURSIVE_SAVED = 400, 32768, 100


def mark_recursive(functions: dict[str, FunctionInfo], code: list[list[int]]) -> None:
    """Mark the functions that can be active twice in one lane. A call of such a function saves its registers."""
    repeated = cyclic({name: info.calls for name, info in functions.items()} | {"*": callees(functions, "*")})
    for name, info in functions.items():
        info.recursive = name in repeated
    at = {info.start: info for info in reversed(functions.values())}
    for line in code:
        if line[isa.OP] == isa.CALL:
            callee = at[line[isa.IMM]]
            line[isa.C] = callee.first_row if callee.recursive else 0
            line[isa.E] = callee.end_row if callee.recursive else 0


def cyclic(graph: Mapping[str, Iterable[str]]) -> set[str]:
    """The nodes that lie on a cycle of a directed graph.

    The algorithm is R. Tarjan's for strongly connected components, without recursion: "Depth-first search and linear
    graph algorithms", SIAM J. Comput. 1 (1972).
    """
    number: dict[str, int] = {}  # in order of discovery
    lowest: dict[str, int] = {}  # the lowest number that a node reaches within its component
    open_nodes: list[str] = []
    found: set[str] = set()
    for root in graph:
        path = [] if root in number else [(root, iter(graph[root]))]
        if path:
            number[root] = lowest[root] = len(number)
            open_nodes.append(root)
        while path:
            name, rest = path[-1]
            for callee in rest:
                if callee not in number:
                    number[callee] = lowest[callee] = len(number)
                    open_nodes.append(callee)
                    path.append((callee, iter(graph[callee])))
                    break
                lowest[name] = min(lowest[name], lowest[callee])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[name])
                if lowest[name] == number[name]:
                    at = open_nodes.index(name)
                    component = open_nodes[at:]
                    del open_nodes[at:]
                    if len(component) > 1 or name in graph[name]:
                        found.update(component)
                    # the component is closed, so later nodes do not reach it
                    lowest.update(dict.fromkeys(component, len(graph) + 1))
    return found


def callees(functions: dict[str, FunctionInfo], name: str) -> set[str]:
    """The functions that a function may call. A call through a register ("*") may call any function but entries."""
    calls = {"*"} if name == "*" else functions[name].calls
    if "*" not in calls:
        return calls
    return {name for name, f in functions.items() if not f.entry}


def longest(functions: dict[str, FunctionInfo]) -> tuple[int, int, int]:
    """The most that a lane needs for its calls: (depth of calls, bytes of frames, rows of registers saved)."""
    if any(f.recursive for f in functions.values()):
        widest = max(f.end_row - f.first_row for f in functions.values() if f.recursive)
        return RECURSIVE_DEPTH, RECURSIVE_FRAMES, RECURSIVE_SAVED * max(widest, 1)

    deepest: dict[str, tuple[int, int]] = {}  # by function: depth of calls and bytes of frames, including its own
    todo = [name for name, f in functions.items() if f.entry]
    while todo:
        called = callees(functions, todo[-1])
        later = [callee for callee in called if callee not in deepest]
        if later:
            todo += later
            continue
        name = todo.pop()
        below = [deepest[callee] for callee in called]
        frame = functions[name].frame + max((b for _, b in below), default=0)
        deepest[name] = 1 + max((d for d, _ in below), default=0), frame
    both = [deepest[name] for name, f in functions.items() if f.entry] or [(1, 0)]
    return max(d for d, _ in both) + 1, max(b for _, b in both) + 16, 0


def registers(code: np.ndarray, operands: list[int], functions: dict[str, FunctionInfo]) -> int:
    """An estimate of a thread's registers: the most values alive at once, in 32-bit words, rounded up to 8.

    Lifetimes follow the order of the code. On hardware ptxas decides; on the machine the estimate only determines how
    many blocks are resident.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    lowest = min((f.first_row for f in functions.values()), default=0)
    wide = {}
    for pc, line in enumerate(code.tolist()):
        listed = operands[line[isa.LIST] : line[isa.LIST] + line[isa.COUNT]] if line[isa.OP] in isa.ROW_LISTS else []
        for row in [*(line[column] for column in (isa.D, isa.A, isa.B, isa.C, isa.E, isa.D2)), *listed]:
            if row >= lowest:
                first.setdefault(row, pc)
                last[row] = pc
                wide[row] = 2 if line[isa.TYPE] & 15 == 8 and line[isa.TYPE] & 0xF0 < 0x40 else 1
    for pc, line in enumerate(code.tolist()):
        if line[isa.OP] == isa.BRA and line[isa.IMM] <= pc:
            for row, start in first.items():
                if start < line[isa.IMM] <= last[row] < pc:
                    last[row] = pc
    change = np.zeros(len(code) + 2, np.int64)
    for row, start in first.items():
        change[start] += wide[row]
        change[last[row] + 1] -= wide[row]
    most = int(np.cumsum(change).max()) if len(code) else 0
    return min(max(-(-(most + 8) // 8) * 8, 16), 255)
